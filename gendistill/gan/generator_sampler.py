"""Sampling from a generator with prompts and seeds: one network call, independent of the batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendistill.gan.gan_folder import Gan
from gendistill.gan.generator import Generator, prefer_channels_last, slerp
from gendistill.metrics.cost.components import Component
from gendistill.samplers import NETWORK, Sampler, SampleRequest, hash_of_weights

IMAGE_CHANNELS = (1, 3)
CLASS_MARK = "#"  # between the path of an input image and the class number or name

ReadImage = Callable[[Path, int, int], Tensor]  # (path, height, width) -> float32 (3, H, W) in [-1, 1]


class GeneratorSampler(Sampler):
    """A sampler for generators of any architecture.

    A prompt is the name or the number of a class, or arbitrary for an unconditional generator. For an image-to-image generator
    a prompt is the path of the input image, followed by `#` and a class if the generator is class-conditional.

    A generator that samples random numbers itself is called once per image, with the seed of the image.

    Args:
        generator: its network in eval mode.
        student: the provenance of a student, see `Gan.student`.
        kind: the name of the architecture; None is the class name of the network.
        read: reads the input images of an image-to-image generator.

    Raises:
        ValueError: the images have neither 1 channel nor 3.
    """

    default_steps = 1
    step_counts = (1,)
    default_guidance_scale = 1.0
    guided = False
    solver = "generator"

    def __init__(
        self,
        generator: Generator,
        student: dict[str, Any] | None = None,
        *,
        kind: str | None = None,
        read: ReadImage | None = None,
    ) -> None:
        if (channels := generator.spec.output_shape[0]) not in IMAGE_CHANNELS:
            raise ValueError(f"generator: its images have {channels} channels; expects 1 or 3")
        self.generator, self.student, self._kind, self._read = generator, student, kind, read
        self.from_images = generator.spec.kind == "image"

    @staticmethod
    def from_gan(gan: Gan, *, device: str | torch.device = "cpu", read: ReadImage | None = None) -> GeneratorSampler:
        """A sampler of an opened GAN, whose generator is moved to the device and, on a CPU, to channels last."""
        network = gan.generator.network.to(device)
        if torch.device(device).type == "cpu":
            prefer_channels_last(network, lambda: gan.generator(*gan.generator.example(2)))
        return GeneratorSampler(gan.generator, gan.student, kind=gan.generator_source.class_name, read=read)

    @property
    def kind(self) -> str:
        return self._kind or type(self.generator.network).__name__

    @property
    def device(self) -> torch.device:
        tensors = (*self.generator.network.parameters(), *self.generator.network.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @property
    def size(self) -> tuple[int, int]:
        return self.generator.spec.output_shape[1:]

    @property
    def class_names(self) -> list[str]:
        """The names of all classes, or their numbers if they have no names."""
        spec = self.generator.spec
        return list(spec.classes) if spec.classes else [str(number) for number in range(spec.num_classes)]

    @property
    def own_prompts(self) -> list[str] | None:
        """The classes, or the empty prompt without classes; None for an image-to-image generator."""
        return None if self.from_images else self.class_names or [""]

    @property
    def texts(self) -> bool:
        return not self.from_images and any(not name.isdecimal() for name in self.generator.spec.classes)

    def knows(self, prompts: Iterable[str]) -> bool:
        if self.from_images:
            return all(Path(prompt.partition(CLASS_MARK)[0]).is_file() for prompt in prompts)
        numbers = {str(number) for number in range(self.generator.spec.num_classes)}
        return not numbers or set(prompts) <= numbers | set(self.class_names)

    def require_steps(self, steps: int) -> None:
        if steps != 1:
            raise ValueError(f"steps {steps}: expects 1, a generator samples in one call")

    def require_guidance(self, guidance_scale: float) -> None:
        if guidance_scale != 1:
            raise ValueError(f"guidance_scale {guidance_scale:g}: a generator has no guidance; expects 1")

    @property
    def method(self) -> str | None:
        return None if self.student is None else str(self.student.get("method", "gan"))

    def network_calls(self, steps: int, guidance_scale: float) -> int:
        return 1

    @cached_property
    def weights_hash(self) -> str:
        """The hash of the weights and buffers at the first access."""
        return hash_of_weights({NETWORK: self.generator.network})

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        return self.generator.fingerprint()

    def described(self, steps: int, guidance_scale: float) -> dict[str, Any]:
        return self._fingerprint

    def components(self) -> dict[str, Component]:
        return {NETWORK: Component(self.generator.network)}

    def setting(self, steps: int, guidance_scale: float) -> dict[str, str | int | float]:
        return {"generator": self.kind, "num_inference_steps": 1, "resolution": self.resolution, "text": "no text"}

    def _batches(self, request: SampleRequest) -> Iterator[Tensor]:
        self.require_steps(request.num_inference_steps)
        for start in range(0, len(request.prompts), request.batch_size):
            rows = slice(start, start + request.batch_size)
            prompts, seeds = request.prompts[rows], request.seeds[rows]
            yield self._generate(self._inputs(prompts, seeds), self.labels(prompts), seeds)

    def strips(self, prompts: Sequence[str], ends: Sequence[tuple[int, int]], count: int) -> Tensor:
        """Interpolations between the noise of two seeds with a constant prompt: (P, count, 3, H, W), float32 in [0, 1].

        Args:
            ends: the seeds of the first and the last image, one pair per prompt.
            count: images per interpolation, at least 2, at equal angles on the great circle between the ends.

        Raises:
            ValueError: the generator has images as input, or `count` is below 2.
        """
        if self.from_images:
            raise ValueError("interpolate: expects a generator with noise as input; the inputs of this one are images")
        if count < 2:
            raise ValueError(f"interpolate {count}: expects at least 2 images, the ends of a strip")
        fraction = torch.linspace(0, 1, count).view(-1, *(1 for _ in self.generator.spec.input_shape))
        strips = []
        for prompt, (first, last) in zip(prompts, ends, strict=True):
            noise = slerp(self._noise(first), self._noise(last), fraction)
            strips.append(self._generate(noise, self.labels([prompt] * count), [first] * count))
        return torch.stack(strips)

    def labels(self, prompts: Sequence[str]) -> Tensor | None:
        """The class numbers (B,) of prompts; None for an unconditional generator.

        Raises:
            ValueError: a prompt is not the name or the number of a class.
        """
        if not self.generator.spec.num_classes:
            return None
        return torch.tensor([self._label(prompt) for prompt in prompts], device=self.device)

    def _label(self, prompt: str) -> int:
        class_name = prompt.rpartition(CLASS_MARK)[2] if self.from_images and CLASS_MARK in prompt else prompt
        try:
            return self.generator.spec.class_of(class_name)
        except ValueError as error:
            raise ValueError(f"prompt {error}") from error

    def _inputs(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        if self.from_images:
            return torch.stack([self._image(prompt) for prompt in prompts])
        return torch.stack([self._noise(seed) for seed in seeds])

    def _noise(self, seed: int) -> Tensor:
        return torch.randn(self.generator.spec.input_shape, generator=torch.Generator().manual_seed(seed))

    def _image(self, prompt: str) -> Tensor:
        """The input image of a prompt in [-1, 1], center-cropped and resized to the input size of the generator."""
        path = Path(prompt.rpartition(CLASS_MARK)[0] if self.generator.spec.num_classes else prompt)
        if self._read is None or not path.is_file():
            raise ValueError(f"input {str(path)!r}: is not a file; an image-to-image generator expects --input FOLDER")
        channels, height, width = self.generator.spec.input_shape
        image = self._read(path, height, width)
        return image if channels == len(image) else image.mean(0, keepdim=True).expand(channels, -1, -1)

    @torch.inference_mode()
    def _generate(self, inputs: Tensor, labels: Tensor | None, seeds: Sequence[int]) -> Tensor:
        """Images (B, 3, H, W) in [0, 1]."""
        inputs = inputs.to(self.device)
        if not self._is_stochastic:
            images = self.generator(inputs, labels)
        else:
            rows = [slice(k, k + 1) for k in range(len(inputs))]
            arguments = [(inputs[row], None if labels is None else labels[row]) for row in rows]
            samples = zip(arguments, seeds, strict=True)
            images = torch.cat([_seeded(partial(self.generator, *sample), seed) for sample, seed in samples])
        images = (images.float() / 2 + 0.5).clamp(0, 1)
        return images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)

    @cached_property
    @torch.inference_mode()
    def _is_stochastic(self) -> bool:
        """Whether the network samples random numbers itself, so that images differ for the same inputs."""
        inputs = [part.to(self.device) for part in self.generator.example()]
        first, second = (_seeded(partial(self.generator, *inputs), seed) for seed in (1, 2))
        return not torch.equal(first, second)


def _seeded(generate: Callable[[], Tensor], seed: int) -> Tensor:
    """`generate()` with torch's global generators seeded; their states are restored afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        return generate()
