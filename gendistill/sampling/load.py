"""Whatever images can be sampled from, opened: a GAN's folder, else a diffusion pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gendistill.assets import asset_path
from gendistill.data.images import as_tensor, decode_image, fitted
from gendistill.gan.gan_folder import is_gan_folder, open_gan
from gendistill.gan.gan_loading import open_teacher
from gendistill.gan.generator_config import GeneratorConfig
from gendistill.gan.generator_sampler import CLASS_MARK, GeneratorSampler
from gendistill.runtime.device import usable_dtype
from gendistill.samplers import FewStepSampler, Sampler
from gendistill.samplers.offload.placed import PlacedSampler, room_on

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

OF_DISCRIMINATORS = ("discriminator", "discriminator_weights", "discriminator_config")


def gan_folder(model: str | Path) -> Path | None:
    """The GAN folder that a path means: itself, or the student that a run left in it; None where it means no GAN."""
    folder = Path(asset_path(model)).expanduser()
    return next((of for of in (folder, folder / "student") if is_gan_folder(of)), None)


@dataclass(frozen=True)
class Opening:
    """How a model is opened to sample from it.

    Attributes:
        device: where it samples.
        dtype: of a diffusion model, by name.
        quantization: of a diffusion model, see `quantize`; as it was trained to, on a CPU without a limit, where None.
        config, revision: of a diffusion model, see `open_pipeline`.
        like: the name of a few-step model of others, where the model's own name and configs do not tell which it is.
        memory: GiB that a text-to-image model may take on the device; what is free on a GPU, and no limit on a CPU, where None.
        share: how many models the memory is for; each gets the same part.
    """

    device: str = "cpu"
    dtype: str | None = None
    quantization: str | None = None
    config: str | None = None
    revision: str | None = None
    like: str | None = None
    memory: float | None = None
    share: int = 1


ON_CPU = Opening()


def open_sampler(model: str | Path, opening: Opening = ON_CPU) -> Sampler:
    """What samples a model's images, all of it on the device; a diffusion model in float32 where no dtype is given.

    Args:
        model: a GAN folder or a run that left one, or anything that `FewStepSampler.from_pretrained` takes.
        opening: without its `like`, `memory` and `share`.

    Raises:
        ValueError: it is none of these, or cannot be opened.
    """
    if (folder := gan_folder(model)) is not None:
        for name, given in {"--quantization": opening.quantization, "--dtype": opening.dtype}.items():
            if given not in (None, "none"):
                raise ValueError(f"{name} {given}: expects a diffusion model; {model} is a GAN")
        return GeneratorSampler.of(open_gan(folder, opening.device), device=opening.device, read=_read)
    return FewStepSampler.from_pretrained(
        model,
        config=opening.config,
        revision=opening.revision,
        dtype=usable_dtype(opening.dtype or "float32"),
        device=opening.device,
        quantization=opening.quantization,
    )


def open_within(model: str, opening: Opening) -> Sampler:
    """What samples a model's images; a text-to-image model kept within memory, where there is a limit.

    Where no dtype is given, a diffusion model is opened in half precision on a GPU and in float32 on a CPU.

    Raises:
        ValueError: it cannot be opened, or `memory` is given for what is no diffusion model from texts.
    """
    device, memory, quantization = opening.device, opening.memory, opening.quantization
    limited = gan_folder(model) is None and (memory is not None or device != "cpu") and quantization != "int8"
    if gan_folder(model) is None:
        if memory is not None and quantization == "int8":
            raise ValueError("quantization int8: computes with all in its place, without --memory; expects int8-weights there")
        opening = replace(opening, dtype=opening.dtype or ("float32" if device == "cpu" else "float16"))
    if limited:
        opening = replace(opening, device="cpu", quantization=quantization or "none")
    sampler = open_sampler(model, opening)
    if memory is not None and not sampler.text_to_image:
        raise ValueError(f"--memory {memory:g}: expects a text-to-image model; this is a {sampler.kind}")
    if isinstance(sampler, FewStepSampler):
        sampler = sampler.recognised(model, opening.like)
        if limited and sampler.texts:
            room = room_on(torch.device(device), sampler.pipeline) if memory is None else memory * 2**30
            return PlacedSampler(sampler.pipeline, sampler.spec, sampler.eta, device=device, memory=room / opening.share)
        sampler.pipeline.to(device)
    return sampler


def open_teacher_of(student: GeneratorSampler, teacher: str | None = None, *, device: str = "cpu") -> GeneratorSampler:
    """The generator that a student was made of, as its folder says how to open it; or another `teacher`.

    Args:
        teacher: whatever `gendistill.gan.gan_loading.open_teacher` takes, or a run that left a GAN.

    Raises:
        ValueError: it cannot be opened.
    """
    told = student.student or {}
    named = str(teacher or told.get("teacher") or "")
    described = told.get("generator") if teacher is None else None
    settings = GeneratorConfig(**(described or {})).model_copy(update=dict.fromkeys(OF_DISCRIMINATORS))
    config = told.get("teacher_config") if teacher is None else None
    gan = open_teacher(str(gan_folder(named) or named), config=config, settings=settings, device=device)
    return GeneratorSampler.of(gan, device=device, read=_read)


def input_prompts(sampler: Sampler, inputs: str | Path, classes: Sequence[str] | None = None) -> list[str]:
    """A prompt for each of some images, as a generator of images from images takes them.

    Args:
        inputs: an image or a folder of them.
        classes: what each image is to become, one after the other; all classes where None and there are any.

    Raises:
        ValueError: there are no images, or the model samples from prompts or noise.
    """
    if not isinstance(sampler, GeneratorSampler) or not sampler.from_images:
        source = "noise" if sampler.own_prompts == [""] else "classes" if sampler.own_prompts else "prompts"
        raise ValueError(f"--input {inputs}: the model samples images from {source}, it expects no images")
    files = sorted(file for file in Path(inputs).rglob("*") if file.suffix.lower() in IMAGES) or [Path(inputs)]
    if not files[0].is_file():
        raise ValueError(f"--input {inputs}: has no images; expects an image or a folder of them")
    of = sampler.class_names if classes is None else list(classes)
    return [f"{file}{CLASS_MARK}{name}" for file in files for name in of] if sampler.class_names else [str(f) for f in files]


def _read(file: Path, height: int, width: int) -> Tensor:
    """The middle of an image at a size: float32 (3, H, W) in [-1, 1]."""
    return as_tensor(fitted(decode_image(file), height, width))
