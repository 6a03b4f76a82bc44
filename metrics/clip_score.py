"""How well pictures fit their prompts: 100 max(cos(image, text), 0) (Hessel et al. 2021, with torchmetrics' scale).

Each picture is cut off at 0, as in the paper; torchmetrics cuts off the mean over all pictures, which differs where
some cosine is negative.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from gendistill.metrics.weights import weights_hash


class ClipScorer:
    """A frozen open_clip model with its own preprocessing and tokenizer.

    name: the folder's name or open_clip's `MODEL/TAG`; weights_hash: 16 hex digits.
    """

    def __init__(
        self,
        model: open_clip.CLIP | open_clip.CustomTextCLIP,
        preprocess: Callable[[Image.Image], torch.Tensor],
        tokenizer: Callable[[list[str]], torch.Tensor],
        name: str,
        weights_hash: str,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.preprocess, self.tokenizer, self.device = preprocess, tokenizer, device
        self.name, self.weights_hash = name, weights_hash

    @classmethod
    def from_folder(cls, path: str | Path, device: torch.device | str = "cpu") -> "ClipScorer":
        """From a folder of `open_clip_config.json` and `open_clip_model.safetensors`, such as `assets/tiny-clip`.

        Raises:
            FileNotFoundError: one of the two is missing.
        """
        folder = Path(path)
        weights = folder / "open_clip_model.safetensors"
        digest = weights_hash(weights)
        model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        return cls(model, preprocess, tokenizer, folder.resolve().name, digest, device)

    @classmethod
    def from_pretrained(cls, model_and_tag: str, device: torch.device | str = "cpu") -> "ClipScorer":
        """From open_clip's own list, `MODEL/TAG` such as `ViT-B-32/laion2b_s34b_b79k`; downloaded once.

        Raises:
            ValueError: open_clip lists no such pair.
        """
        name, _, tag = model_and_tag.partition("/")
        if (name, tag) not in open_clip.list_pretrained():
            raise ValueError(
                f"CLIP model: got {model_and_tag!r}, takes a folder with open_clip_config.json or MODEL/TAG of "
                f"open_clip.list_pretrained(), such as 'ViT-B-32/laion2b_s34b_b79k'."
            )
        weights = Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag)))
        model, preprocess = open_clip.create_model_from_pretrained(name, pretrained=tag)
        return cls(model, preprocess, open_clip.get_tokenizer(name), model_and_tag, weights_hash(weights), device)

    @torch.inference_mode()
    def score(self, images: torch.Tensor, prompts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        """CLIP score float32 (N,) in [0, 100], on the CPU, of `images` uint8 (N, 3, H, W) with a prompt each.

        Raises:
            ValueError: the pictures are not uint8 (N, 3, H, W), or the prompts are not N.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: got {images.dtype} {tuple(images.shape)}, takes torch.uint8 (N, 3, H, W).")
        if len(images) != len(prompts):
            raise ValueError(f"prompts: got {len(prompts)} for {len(images)} pictures, takes one a picture.")
        scores = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].cpu()
            pictures = torch.stack([self.preprocess(to_pil_image(image)) for image in batch])
            tokens = self.tokenizer(list(prompts[start : start + batch_size]))
            image_features = self.model.encode_image(pictures.to(self.device), normalize=True)
            text_features = self.model.encode_text(tokens.to(self.device), normalize=True)
            scores.append(100 * (image_features * text_features).sum(dim=1).clamp(min=0).float().cpu())
        return torch.cat(scores)


def load_scorer(name_or_path: str | Path, device: torch.device | str = "cpu") -> ClipScorer:
    """A folder that `ClipScorer.from_folder` reads, or a `MODEL/TAG` of open_clip; ValueError if it is neither."""
    if (Path(name_or_path) / "open_clip_config.json").is_file():
        return ClipScorer.from_folder(name_or_path, device)
    return ClipScorer.from_pretrained(str(name_or_path), device)
