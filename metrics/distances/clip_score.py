"""Similarity of images to their prompts: 100 max(cos(image, text), 0) (Hessel et al. 2021, with torchmetrics' scale).

The score of each image is clipped at 0, as in the paper; torchmetrics clips the mean over all images, which differs if
a cosine is negative.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from gendistill.metrics.features.feature_extractor import extract
from gendistill.metrics.features.vision_towers import ClipFeatures, OpenedClip, open_clip_model
from gendistill.metrics.metric import Metric, MetricInputs, Need


class ClipScorer:
    """A frozen open_clip model with its own preprocessing and tokenizer.

    name: the folder's name or open_clip's `MODEL/TAG`; weights_hash: hash of the weights, 16 hex digits.
    """

    def __init__(self, clip: OpenedClip, device: torch.device | str = "cpu") -> None:
        self.model = clip.model.eval().requires_grad_(False).to(device)
        self.preprocess, self.tokenizer, self.device = clip.preprocess, clip.tokenizer, device
        self.name, self.weights_hash = clip.name, clip.weights_hash
        self._clip = clip

    @property
    def image_extractor(self) -> ClipFeatures:
        """The model's image encoder as an extractor; its features are embeddings that are not normalised."""
        return ClipFeatures(self._clip, self.name, self.device)

    def embed_images(self, images: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
        """Embeddings of length 1, float32 (N, E), on the CPU, of `images` uint8 (N, 3, H, W).

        Raises:
            ValueError: the images are not uint8 (N, 3, H, W).
        """
        return F.normalize(extract(self.image_extractor, images, batch_size), dim=1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        """Embeddings of length 1, float32 (N, E), on the CPU, of `texts` (N); each distinct text is encoded once."""
        distinct = list(dict.fromkeys(texts))
        embeddings = []
        for start in range(0, len(distinct), batch_size):
            tokens = self.tokenizer(distinct[start : start + batch_size])
            embeddings.append(self.model.encode_text(tokens.to(self.device), normalize=True).float().cpu())
        numbers = {text: number for number, text in enumerate(distinct)}
        return torch.cat(embeddings)[[numbers[text] for text in texts]]

    def score(self, images: torch.Tensor, prompts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        """CLIP scores float32 (N,) in [0, 100], on the CPU, of `images` uint8 (N, 3, H, W) with one prompt each.

        Raises:
            ValueError: the images are not uint8 (N, 3, H, W), or there are not N prompts.
        """
        if len(images) != len(prompts):
            raise ValueError(f"prompts: got {len(prompts)} for {len(images)} images, expects one per image.")
        return clip_scores(self.embed_images(images, batch_size), self.embed_texts(prompts))


def clip_scores(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """CLIP scores (N,) in [0, 100] from embeddings of length 1, each (N, E)."""
    return 100 * (images * texts).sum(dim=1).clamp(min=0)


def load_scorer(name_or_path: str | Path, device: torch.device | str = "cpu") -> ClipScorer:
    """The scorer of a folder or of a `MODEL/TAG` of open_clip; raises as `open_clip_model`."""
    return ClipScorer(open_clip_model(name_or_path, "CLIP model"), device)


def _values(inputs: MetricInputs) -> NDArray[np.float64]:
    embeddings = (torch.as_tensor(inputs.image_embeddings), torch.as_tensor(inputs.text_embeddings))
    return clip_scores(*embeddings).numpy().astype(np.float64)


CLIP_SCORE = Metric(
    name="clip_score",
    label="CLIP",
    explanation="Similarity of an image to its prompt, 0 to 100.",
    compute=_values,
    higher_is_better=True,
    needs=frozenset({Need.CLIP}),
    default="quick",
    digits=1,
    aliases=("clip",),
)
