import pytest
import torch
from torchmetrics.multimodal import CLIPScore
from torchvision.transforms.functional import to_pil_image

from gendistill.metrics.distances.clip_score import load_scorer


class Processor:
    """The scorer's preprocessing under the signature that torchmetrics calls."""

    def __init__(self, scorer):
        self.scorer = scorer

    def __call__(self, text=None, images=None, **_):
        if images is not None:
            return {"pixel_values": torch.stack([self.scorer.preprocess(to_pil_image(i)) for i in images])}
        tokens = self.scorer.tokenizer(list(text))
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


class Model(torch.nn.Module):
    """The scorer's network under the signature that torchmetrics calls."""

    config = object()

    def __init__(self, scorer):
        super().__init__()
        self.clip = scorer.model

    def get_image_features(self, pixel_values):
        return self.clip.encode_image(pixel_values)

    def get_text_features(self, input_ids, attention_mask):
        return self.clip.encode_text(input_ids)


def test_each_score_equals_that_of_torchmetrics_on_the_same_network(scorer, held_out):
    images, prompts = held_out[0][:12], [c["name"] for c in held_out[1][6:18]]
    reference = CLIPScore(lambda: (Model(scorer), Processor(scorer)))
    expected = torch.stack([reference(image, prompt) for image, prompt in zip(images, prompts, strict=True)])
    torch.testing.assert_close(scorer.score(images, prompts, batch_size=5), expected.detach(), rtol=1e-4, atol=1e-3)


def test_scores_lie_between_0_and_100(scorer, held_out):
    scores = scorer.score(held_out[0][:64], [c["name"] for c in held_out[1][64:128]])
    assert scores.shape == (64,)
    assert scores.min() >= 0
    assert scores.max() <= 100


def test_a_image_fits_its_own_caption_better_than_those_of_others(scorer, held_out):
    images, prompts = held_out[0][:200], [c["name"] for c in held_out[1][:200]]
    own, other = scorer.score(images, prompts), scorer.score(images, prompts[100:] + prompts[:100])
    assert own.mean() > other.mean() + 10


def test_a_wrong_count_of_prompts_and_an_unknown_model_are_refused(scorer, held_out):
    with pytest.raises(ValueError, match="1 for 2 images"):
        scorer.score(held_out[0][:2], ["google emoji of red apple"])
    with pytest.raises(ValueError, match="MODEL/TAG"):
        load_scorer("ViT-B-32/no-such-tag")
