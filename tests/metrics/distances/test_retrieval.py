import numpy as np
import pytest
import torch

from gendistill.metrics.distances.retrieval import retrieval_precision


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_images_that_are_their_prompts_are_all_found_and_random_ones_as_often_as_chance():
    rng = np.random.default_rng(0)
    texts, prompts = unit(rng, 2000, 16), [f"prompt {i}" for i in range(2000)]
    assert retrieval_precision(texts, texts, prompts).mean() == 1
    found = retrieval_precision(unit(rng, 2000, 16), texts, prompts, candidates=10)
    assert found.mean() == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 / 2000))


def test_with_all_prompts_as_candidates_it_is_the_share_of_best_matches():
    rng = np.random.default_rng(1)
    texts = unit(rng, 40, 8)
    images = unit(rng, 40, 8) + texts
    expected = (images @ texts.T).argmax(axis=1) == np.arange(40)
    assert 0 < expected.mean() < 1
    found = retrieval_precision(images, texts, [str(i) for i in range(40)], candidates=1000)
    np.testing.assert_array_equal(found, expected)


def test_images_of_one_prompt_never_compete_with_each_other():
    rng = np.random.default_rng(2)
    texts = np.repeat(unit(rng, 5, 8), 4, axis=0)
    assert retrieval_precision(texts, texts, [f"prompt {i // 4}" for i in range(20)]).tolist() == [1] * 20


def test_prompts_that_the_text_encoder_cannot_tell_apart_score_no_more_than_chance():
    rng = np.random.default_rng(3)
    texts = np.repeat(unit(rng, 1, 8), 20, axis=0)
    found = retrieval_precision(unit(rng, 20, 8), texts, [str(i) for i in range(20)], candidates=5)
    assert found.tolist() == [1 / 5] * 20


def test_the_seed_alone_decides_the_candidates():
    rng = np.random.default_rng(4)
    texts, prompts = unit(rng, 300, 8), [str(i) for i in range(300)]
    images = texts + unit(rng, 300, 8)
    first = retrieval_precision(images, texts, prompts, candidates=20, seed=1)
    np.testing.assert_array_equal(first, retrieval_precision(images, texts, prompts, candidates=20, seed=1))
    assert (first != retrieval_precision(images, texts, prompts, candidates=20, seed=2)).any()


def test_tiny_clip_finds_the_captions_of_held_out_emoji_far_more_often_than_chance(scorer, held_out):
    from torchvision.transforms.functional import to_pil_image

    images, captions = held_out[0][::8], [caption["name"] for caption in held_out[1][::8]]
    with torch.inference_mode():
        batch = torch.stack([scorer.preprocess(to_pil_image(image)) for image in images])
        image_embeddings = scorer.model.encode_image(batch, normalize=True)
        text_embeddings = scorer.model.encode_text(scorer.tokenizer(captions), normalize=True)
    found = retrieval_precision(image_embeddings, text_embeddings, captions, candidates=50)
    assert found.mean() > 5 / 50


def test_what_does_not_fit_is_named():
    x = np.eye(4)
    with pytest.raises(ValueError, match="only one text"):
        retrieval_precision(x, x, ["a"] * 4)
    with pytest.raises(ValueError, match="4 images, 4 text embeddings and 3 prompts"):
        retrieval_precision(x, x, ["a", "b", "c"])
    with pytest.raises(ValueError, match="candidates: got 1"):
        retrieval_precision(x, x, ["a", "b", "c", "d"], candidates=1)
