"""What draws pictures from prompts: a diffusion pipeline in steps, a generator in one call; all that judges it sees this."""

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

NETWORK = "network"  # the component whose calls are the network calls of a picture
PIXELS_AT_ONCE = 2**19  # a VAE in float32 takes 1 to 2 KB for each of them


@dataclass(frozen=True)
class SampleRequest:
    """Images that a sampler is asked for, one a prompt; the members are the arguments of `Sampler.pictures`, none left open."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    num_inference_steps: int
    guidance_scale: float
    batch_size: int
    task: Task = TEXT_TO_IMAGE
    size: tuple[int, int] | None = None
    latent: bool = False


class Sampler(ABC):
    """Draws pictures, each from its own prompt and seed alone, whatever batch it is drawn in.

    Attributes:
        spec: of a diffusion student how it wants to be sampled; None of all else.
        eta: the share of fresh noise in a step, in [0, 1].
        text_to_image: whether it samples from texts by diffusion: it then takes a `Task`, and any size, beside a prompt.
        of_pictures: whether its prompts are files of input images.
    """

    spec: StudentSpec | None = None
    eta: float = 0.0
    text_to_image: bool = False
    of_pictures: bool = False

    @property
    @abstractmethod
    def kind(self) -> str:
        """The class of what draws: `StableDiffusionPipeline`, `ResNetGenerator`."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width of its pictures, in pixels."""

    @property
    def resolution(self) -> int:
        """Pixels along the longer edge of its pictures."""
        return max(self.size)

    @property
    @abstractmethod
    def own_prompts(self) -> list[str] | None:
        """All prompts that the model knows, `[""]` where it knows none and any will do; None where it takes any text."""

    @property
    @abstractmethod
    def texts(self) -> bool:
        """Whether its prompts say in words what to draw, so that a picture can be held against them."""

    def knows(self, prompts: Iterable[str]) -> bool:
        """Whether it can draw all of these."""
        own = self.own_prompts
        return own is None or own == [""] or set(prompts) <= set(own)

    def tells_apart(self, a: Sequence[str], b: Sequence[str]) -> bool:
        """Whether any prompt of `b` is another one to the model than that of `a` at its place."""
        return list(a) != list(b)

    @property
    @abstractmethod
    def default_steps(self) -> int:
        """The step count to sample with where nothing else is asked for."""

    @property
    def step_counts(self) -> tuple[int, ...] | None:
        """Those that it was made for, best first; None where any is as good as another."""
        return self.spec.num_inference_steps if self.spec else None

    @abstractmethod
    def require_steps(self, steps: int) -> None:
        """Raise ValueError where it cannot be sampled in so many steps."""

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
        """The way of stepping, in a word."""

    @property
    @abstractmethod
    def method(self) -> str | None:
        """Of a student how it was distilled; None of a teacher."""

    @abstractmethod
    def network_calls(self, steps: int, guidance_scale: float) -> int:
        """Of one picture; a step of classifier-free guidance is two."""

    @property
    @abstractmethod
    def weights_hash(self) -> str:
        """16 hex digits of the SHA-256 of all weights."""

    @abstractmethod
    def described(self, steps: int, guidance_scale: float) -> dict[str, Any]:
        """All that a picture depends on beside its prompt and seed, as plain types."""

    @abstractmethod
    def components(self) -> dict[str, Component]:
        """The parts that compute, by name; one of them is `NETWORK`."""

    @abstractmethod
    def setting(self, steps: int, guidance_scale: float) -> dict[str, str | int | float]:
        """How pictures are drawn, for people who read what they cost."""

    def cold(self) -> Sampler:
        """The same with nothing kept of what it drew before: every prompt costs what a new one costs."""
        return self

    def advice(self, steps: int, guidance_scale: float | None = None) -> list[str]:
        """What to know before sampling it so, a sentence each; none of a model that is no student."""
        return []

    @abstractmethod
    def require_guidance(self, guidance_scale: float) -> None:
        """Raise ValueError where it cannot be sampled at such a scale."""

    def pictures(
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
        """Batches of pictures (B, 3, H, W), float32 in [0, 1], in the order of the prompts.

        Args:
            seeds: one a prompt; the noise of picture k is `torch.Generator().manual_seed(seeds[k])`'s on the CPU.
            num_inference_steps, guidance_scale: the model's own where None; the scale as the pipeline's.
            batch_size: what `pictures_at_once` says where None.
            progress: called with the number of pictures after each batch.
            task: what they are drawn from beside their prompts.
            size: height and width in pixels; the model's own, or that of the task's pictures, where None.
            latent: batches of latents (B, C, h, w) instead, scaled as the network sees them, in its dtype.

        Raises:
            ValueError: a prompt means nothing to the model, it knows no guidance or no such number of steps, or the model, the
                steps or the prompts do not go with the task.
        """
        steps = self.default_steps if num_inference_steps is None else num_inference_steps
        scale = self.default_guidance_scale if guidance_scale is None else guidance_scale
        batch_size = batch_size or pictures_at_once(max(size or self.size))
        self.require_guidance(scale)
        if not self.text_to_image and (task is not TEXT_TO_IMAGE or size is not None):
            raise ValueError(f"a {self.kind} draws from noise alone; other tasks take a text-to-image model")
        for batch in self._batches(SampleRequest(prompts, seeds, steps, scale, batch_size, task, size, latent)):
            yield batch if latent else batch.float()
            if progress:
                progress(len(batch))

    @abstractmethod
    def _batches(self, request: SampleRequest) -> Iterator[Tensor]:
        """What `pictures` gives, in any floating dtype."""


def pictures_at_once(resolution: int, most: int = 64) -> int:
    """How many pictures to draw, encode or decode together: 64 of 64 pixels, 2 of 512, 1 of 1024."""
    return min(most, max(1, PIXELS_AT_ONCE // resolution**2))


def to_uint8(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] to uint8, rounded as diffusers rounds them when it makes PIL images."""
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8)


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
    """16 hex digits of the SHA-256 of the names, dtypes, shapes and values of all weights and buffers that are saved."""
    digest = hashlib.sha256()
    for name, module in sorted(modules.items()):
        for key, weight in sorted(module.state_dict().items()):
            digest.update(f"{name}/{key} {weight.dtype} {tuple(weight.shape)}".encode())
            for tensor in _tensors_of(weight):
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _tensors_of(weight: Any) -> Iterator[Tensor]:
    """A weight itself, or what it is made of where it is of a kind that a library added: torchao's."""
    if not hasattr(weight, "__tensor_flatten__"):
        yield weight
        return
    for name in weight.__tensor_flatten__()[0]:
        if (part := getattr(weight, name)) is not None:
            yield from _tensors_of(part)
