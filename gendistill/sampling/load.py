"""Open models for sampling: GAN folders and diffusion pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gendistill.assets import asset_path
from gendistill.data.images import FORMAT_NAMES, as_tensor, decode_image, fitted
from gendistill.data.sources.folder import files_below, is_image_name
from gendistill.data.texts import printable
from gendistill.gan.gan_folder import is_gan_folder, open_gan
from gendistill.gan.gan_loading import open_teacher
from gendistill.gan.generator_config import GeneratorConfig
from gendistill.gan.generator_sampler import CLASS_MARK, GeneratorSampler
from gendistill.runtime.device import usable_dtype
from gendistill.samplers import FewStepSampler, Sampler
from gendistill.samplers.offload.placed import PlacedSampler, room_on
from gendistill.samplers.weighted_lora import WeightedLora

DISCRIMINATOR_SETTINGS = ("discriminator", "discriminator_weights", "discriminator_config")


def gan_folder(model: str | Path) -> Path | None:
    """The GAN folder at a path: the path itself, or the student of a run folder; None if there is no GAN."""
    folder = Path(asset_path(model)).expanduser()
    return next((path for path in (folder, folder / "student") if is_gan_folder(path)), None)


@dataclass(frozen=True)
class Opening:
    """Options for opening a model for sampling.

    Attributes:
        device: device of the sampling.
        dtype: name of the dtype of a diffusion model.
        quantization: quantization of a diffusion model, see `quantize`; None for the quantization that the student was trained
            for, on a CPU without a memory limit.
        config, revision, loras: of a diffusion model, see `open_pipeline`.
        like: name of a known few-step model, if the model's name and configs do not identify it.
        memory: memory limit in GiB for a text-to-image model on the device; None for the free memory of a GPU, or for no limit
            on a CPU.
        num_models: number of models that divide the memory equally.
    """

    device: str = "cpu"
    dtype: str | None = None
    quantization: str | None = None
    config: str | None = None
    revision: str | None = None
    loras: tuple[WeightedLora, ...] = ()
    like: str | None = None
    memory: float | None = None
    num_models: int = 1


ON_CPU = Opening()


def open_sampler(model: str | Path, opening: Opening = ON_CPU) -> Sampler:
    """The sampler of a model, fully on the device; a diffusion model without a dtype is opened in float32.

    Args:
        model: a GAN folder, a run folder with a GAN, or a model for `FewStepSampler.from_pretrained`.
        opening: options; `like`, `memory` and `num_models` are ignored.

    Raises:
        ValueError: the model does not exist or cannot be opened.
    """
    if (folder := gan_folder(model)) is not None:
        for name, value in {"--quantization": opening.quantization, "--dtype": opening.dtype}.items():
            if value not in (None, "none"):
                raise ValueError(f"{name} {value}: expects a diffusion model; {model} is a GAN")
        return GeneratorSampler.from_gan(open_gan(folder, opening.device), device=opening.device, read=_read)
    return FewStepSampler.from_pretrained(
        model,
        config=opening.config,
        revision=opening.revision,
        dtype=usable_dtype(opening.dtype or "float32"),
        device=opening.device,
        quantization=opening.quantization,
        loras=opening.loras,
    )


def open_within(model: str, opening: Opening) -> Sampler:
    """The sampler of a model; a text-to-image model is placed within the memory limit, if there is one.

    A diffusion model without a dtype is opened in half precision on a GPU and in float32 on a CPU.

    Raises:
        ValueError: the model cannot be opened, or `memory` is set for a model other than a text-to-image model.
    """
    device, memory, quantization = opening.device, opening.memory, opening.quantization
    limited = gan_folder(model) is None and (memory is not None or device != "cpu") and quantization != "int8"
    if gan_folder(model) is None:
        if memory is not None and quantization == "int8":
            raise ValueError("quantization int8: not supported with --memory; expects int8-weights")
        opening = replace(opening, dtype=opening.dtype or ("float32" if device == "cpu" else "float16"))
    if limited:
        opening = replace(opening, device="cpu", quantization=quantization or "none")
    sampler = open_sampler(model, opening)
    if memory is not None and not sampler.text_to_image:
        raise ValueError(f"--memory {memory:g}: expects a text-to-image model; this is a {sampler.kind}")
    if isinstance(sampler, FewStepSampler):
        sampler = sampler.recognised(model, opening.like)
        if limited and sampler.texts:
            available = room_on(torch.device(device), sampler.pipeline) if memory is None else memory * 2**30
            return PlacedSampler(
                sampler.pipeline, sampler.spec, sampler.eta, device=device, memory=available / opening.num_models
            )
        sampler.pipeline.to(device)
    return sampler


def open_teacher_of(student: GeneratorSampler, teacher: str | None = None, *, device: str = "cpu") -> GeneratorSampler:
    """The teacher that is named in the folder of a GAN student, or another `teacher`.

    Args:
        teacher: a teacher for `gendistill.gan.gan_loading.open_teacher`, or a run folder with a GAN.

    Raises:
        ValueError: the teacher cannot be opened.
    """
    provenance = student.student or {}
    name = str(teacher or provenance.get("teacher") or "")
    generator_settings = provenance.get("generator") if teacher is None else None
    settings = GeneratorConfig(**(generator_settings or {})).model_copy(update=dict.fromkeys(DISCRIMINATOR_SETTINGS))
    config = provenance.get("teacher_config") if teacher is None else None
    gan = open_teacher(str(gan_folder(name) or name), config=config, settings=settings, device=device)
    return GeneratorSampler.from_gan(gan, device=device, read=_read)


def input_prompts(sampler: Sampler, inputs: str | Path, classes: Sequence[str] | None = None) -> list[str]:
    """Prompts for the input images of an image-to-image generator.

    Args:
        inputs: an image or a folder of images.
        classes: target classes for each image; None for all classes of a class-conditional generator.

    Raises:
        ValueError: there are no images, or the model samples from prompts or noise.
    """
    if not isinstance(sampler, GeneratorSampler) or not sampler.from_images:
        source = "noise" if sampler.own_prompts == [""] else "classes" if sampler.own_prompts else "prompts"
        raise ValueError(f"--input {inputs}: the model samples images from {source}; expects no --input")
    folder = Path(inputs)
    names = sorted(filter(is_image_name, files_below(folder))) if folder.is_dir() else [""]
    files = [folder / name for name in names]
    if not files or not files[0].is_file():
        raise ValueError(f"--input {inputs}: has no images; expects an image or a folder of images ({FORMAT_NAMES})")
    wanted = sampler.class_names if classes is None else list(classes)
    if not sampler.class_names:
        return [str(file) for file in files]
    return [f"{file}{CLASS_MARK}{name}" for file in files for name in wanted]


def _read(file: Path, height: int, width: int) -> Tensor:
    """The centre crop of an image, resized: float32 (3, H, W) in [-1, 1]; raises ValueError, with its name, if damaged."""
    try:
        return as_tensor(fitted(decode_image(file), height, width))
    except ValueError as error:
        raise ValueError(f"--input {printable(file)}: {error}") from error
