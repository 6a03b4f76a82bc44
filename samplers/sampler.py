"""The interface of samplers, which generate images from prompts: diffusion pipelines and GAN generators.

Evaluation, costs and the server use only this interface.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.metrics.cost.components import Component
from gendistill.samplers.spec import StudentSpec
from gendistill.samplers.tasks import TEXT_TO_IMAGE, Task

NETWORK = "network"  # the component whose calls are the network calls of an image
PIXELS_AT_ONCE = 2**19  # a VAE in float32 needs 1 to 2 KB per pixel


@dataclass(frozen=True)
class SampleRequest:
    """A request for images, one per prompt; the fields are the arguments of `Sampler.images`."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    num_inference_steps: int
    guidance_scale: float
    batch_size: int
    task: Task = TEXT_TO_IMAGE
    size: tuple[int, int] | None = None
    latent: bool = False


class Sampler(ABC):
    """Samples images; each depends only on its own prompt and seed, not on its batch.

    Attributes:
        spec: the sampling settings of a diffusion student; None for other models.
        eta: fraction of fresh noise in a step, in [0, 1].
        text_to_image: whether it is a text-to-image diffusion model, which supports a `Task` and other sizes.
        size_multiple: the edges of images of other sizes are multiples of so many pixels; None if there are no other sizes.
        from_images: whether its prompts are files of input images.
    """

    spec: StudentSpec | None = None
    eta: float = 0.0
    text_to_image: bool = False
    size_multiple: int | None = None
    from_images: bool = False

    @property
    @abstractmethod
    def kind(self) -> str:
        """The class of the model: `StableDiffusionPipeline`, `ResNetGenerator`."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model."""
        return torch.float32

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""

    @property
    def resolution(self) -> int:
        """The longer edge of the images in pixels."""
        return max(self.size)

    @property
    @abstractmethod
    def own_prompts(self) -> list[str] | None:
        """All prompts of the model; `[""]` for a model without prompts, which ignores them; None if any text is a prompt."""

    @property
    @abstractmethod
    def texts(self) -> bool:
        """Whether prompts describe the image in words, so that an image can be compared with its prompt."""

    def knows(self, prompts: Iterable[str]) -> bool:
        """Whether all of these are prompts of the model."""
        own = self.own_prompts
        return own is None or own == [""] or set(prompts) <= set(own)

    def distinguishes(self, a: Sequence[str], b: Sequence[str]) -> bool:
        """Whether the model distinguishes any prompt of `b` from the prompt of `a` at the same position."""
        return list(a) != list(b)

    @property
    @abstractmethod
    def default_steps(self) -> int:
        """The default step count."""

    @property
    def step_counts(self) -> tuple[int, ...] | None:
        """The step counts of a student, the best first; None for a model without preferred step counts."""
        return self.spec.num_inference_steps if self.spec else None

    @abstractmethod
    def require_steps(self, steps: int) -> None:
        """Raise ValueError if the model does not support the step count."""

    @property
    @abstractmethod
    def default_guidance_scale(self) -> float: ...

    @property
    @abstractmethod
    def guided(self) -> bool:
        """Whether the guidance scale is the caller's choice."""

    @property
    @abstractmethod
    def solver(self) -> str:
        """The name of the solver."""

    @property
    @abstractmethod
    def method(self) -> str | None:
        """The distillation method of a student; None for a teacher."""

    @abstractmethod
    def network_calls(self, steps: int, guidance_scale: float) -> int:
        """Network calls per image; a step of classifier-free guidance is two."""

    @property
    @abstractmethod
    def weights_hash(self) -> str:
        """16 hex digits of the SHA-256 of all weights."""

    @abstractmethod
    def described(self, steps: int, guidance_scale: float) -> dict[str, Any]:
        """Everything that determines an image in addition to its prompt and seed, as JSON types."""

    @abstractmethod
    def components(self) -> dict[str, Component]:
        """The networks by name; one of them is `NETWORK`."""

    @abstractmethod
    def setting(self, steps: int, guidance_scale: float) -> dict[str, str | int | float]:
        """The sampling settings for a report of the costs."""

    def cold(self) -> Sampler:
        """This sampler with empty caches, so that every prompt costs as much as a new one."""
        return self

    def advice(self, steps: int, guidance_scale: float | None = None) -> list[str]:
        """Warnings about these sampling settings, as sentences; none for a model that is no student."""
        return []

    @abstractmethod
    def require_guidance(self, guidance_scale: float) -> None:
        """Raise ValueError if the model does not support the guidance scale."""

    def images(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
        task: Task = TEXT_TO_IMAGE,
        size: tuple[int, int] | None = None,
        latent: bool = False,
    ) -> Iterator[Tensor]:
        """Batches of images (B, 3, H, W), float32 in [0, 1], in the order of the prompts.

        Args:
            seeds: one per prompt; the noise of image k is from `torch.Generator().manual_seed(seeds[k])` on the CPU.
            num_inference_steps, guidance_scale: by default the model's; the scale is that of the pipeline's call.
            batch_size: by default `images_at_once`.
            progress: called with the number of images of each batch.
            task: inputs in addition to the prompts.
            size: height and width in pixels; by default the model's, or that of the task's images.
            latent: return latents (B, C, h, w) instead, scaled as the network's inputs, in its dtype.

        Raises:
            ValueError: the model does not support a prompt, the guidance scale or the step count, the model, the steps or the
                prompts do not fit the task, or an image has values that are not finite.
        """
        steps = self.default_steps if num_inference_steps is None else num_inference_steps
        scale = self.default_guidance_scale if guidance_scale is None else guidance_scale
        batch_size = batch_size or images_at_once(max(size or self.size))
        self.require_guidance(scale)
        if not self.text_to_image and (task is not TEXT_TO_IMAGE or size is not None):
            raise ValueError(f"a {self.kind} samples from noise only; other tasks expect a text-to-image model")
        request = SampleRequest(prompts, seeds, steps, scale, batch_size, task, size, latent)
        for batch in self._batches(request):
            if not batch.isfinite().all():
                raise ValueError(self._not_finite(request))
            yield batch if latent else batch.float()
            if progress:
                progress(len(batch))

    def _not_finite(self, request: SampleRequest) -> str:
        """The error message for a batch with values that are not finite."""
        return f"the images of a {self.kind} have values that are not finite; expects a model with undamaged weights"

    @abstractmethod
    def _batches(self, request: SampleRequest) -> Iterator[Tensor]:
        """The batches of `images`, in any floating-point dtype."""


def images_at_once(resolution: int, max_images: int = 64) -> int:
    """Batch size to sample, encode or decode: 64 at 64 pixels, 2 at 512, 1 at 1024."""
    return min(max_images, max(1, PIXELS_AT_ONCE // resolution**2))


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8, rounded as in diffusers' conversion to PIL."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def image_grid(images: Tensor, columns: int = 8, padding: int = 2) -> Tensor:
    """Images (N, C, H, W) as one image (C, h, w), row by row, black between them; a single image as it is."""
    if len(images) == 1:
        return images[0]
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = images.new_zeros(channels, rows * (height + padding) + padding, columns * (width + padding) + padding)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = padding + row * (height + padding), padding + column * (width + padding)
        grid[:, top : top + height, left : left + width] = image
    return grid


def hash_of_weights(modules: Mapping[str, nn.Module]) -> str:
    """16 hex digits of the SHA-256 of the names, dtypes, shapes and values of all weights and persistent buffers."""
    digest = hashlib.sha256()
    for name, module in sorted(modules.items()):
        for key, weight in sorted(module.state_dict().items()):
            digest.update(f"{name}/{key} {weight.dtype} {tuple(weight.shape)}".encode())
            for tensor in _tensors_of(weight):
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _tensors_of(weight: Any) -> Iterator[Tensor]:
    """The weight itself, or the inner tensors of a tensor subclass, such as torchao's."""
    if not hasattr(weight, "__tensor_flatten__"):
        yield weight
        return
    for name in weight.__tensor_flatten__()[0]:
        if (part := getattr(weight, name)) is not None:
            yield from _tensors_of(part)
