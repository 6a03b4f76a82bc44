"""A pipeline in, the same pipeline with a tiny autoencoder out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torchvision.utils import make_grid

import gendistill
from gendistill.data.decoded import DecodedData, prepare_decoded
from gendistill.data.encode import weights_fingerprint
from gendistill.diffusion.teacher import Teacher, load_teacher
from gendistill.diffusion.tiny_autoencoder import (
    TinyNetworks,
    decoded_by,
    started_autoencoder,
    tiny_autoencoder,
    tiny_networks,
)
from gendistill.evaluation.decoder_figures import ROUND_TRIPS, DecoderFigures, measure_decoder
from gendistill.export.student_folder import open_in_float32
from gendistill.methods.decoder import DecoderDistillation
from gendistill.metrics.features.feature_extractor import load_extractor
from gendistill.run.config import DistillConfig, save_config
from gendistill.run.validation import save_picture
from gendistill.runtime.device import make_folder
from gendistill.runtime.files import replace_folder
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers.codec import LatentCodec
from gendistill.settings.schedule import in_steps
from gendistill.training.trainer import Trainer, TrainingResult, Validation

FIGURES = "decoder.json"
SHOWN = 16
CARD = """\
---
library_name: diffusers
base_model: {teacher}
license: other
tags: [gendistill, distillation, autoencoder]
---

# {teacher} with a tiny autoencoder

The pipeline as it was, with an `AutoencoderTiny` that shares its latent space in the place of its `AutoencoderKL`. Made by
gendistill {version}; {steps} steps.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("PATH_OF_THIS_FOLDER")
```

{figures}. All of them: `{file}`.

Weights of the autoencoder that it learned from: sha256 {hash}. Learned on: {data}.
"""


@dataclass(frozen=True)
class DecoderResult:
    """A pipeline with a tiny autoencoder, and what that is worth."""

    student_folder: Path
    training: TrainingResult
    figures: DecoderFigures
    is_main_process: bool = True

    def describe(self) -> str:
        return f"{self.student_folder}: {self.figures.describe()}"


def distill_decoder(config: DistillConfig, run: Path, processes: PartialState, resume: bool) -> DecoderResult:
    """Distill the autoencoder of `config.teacher` and write `run`/student; see `gendistill.run.distill.distill`.

    Raises:
        ValueError: the teacher paints pixels, or a LoRA is asked for.
    """
    if config.lora.enabled:
        raise ValueError("lora.enabled: a tiny autoencoder has weights of its own; takes false")
    teacher = load_teacher(
        config.teacher,
        config=config.teacher_config,
        revision=config.teacher_revision,
        resolution=config.data.resolution if config.data.path else None,
        dtype=getattr(torch, config.dtype),
        device=processes.device,
    )
    codec = teacher.codec
    if not isinstance(codec, LatentCodec):
        raise ValueError(f"teacher {config.teacher}: paints pixels, it has no decoder to distill")
    with advancing_bar("encoding and decoding") as progress:
        data = prepare_decoded(config.data, teacher, config.seed, progress, config.decoder.copies)
    held_out = data
    if config.validation_reference is not None:
        others = config.data.model_copy(update={"path": config.validation_reference, "prompts": None})
        with advancing_bar("encoding and decoding what is held out") as progress:
            held_out = prepare_decoded(others, teacher, config.seed, progress)
    torch.manual_seed(config.seed)
    networks = tiny_networks(codec, _first(config, codec))
    method = DecoderDistillation(networks, in_steps(config.decoder, config.trainer.max_steps))
    if processes.is_main_process:
        save_config(config, run / "config.yaml")
    validator = DecoderValidator(networks, held_out, config.trainer.num_validation, make_folder(run / "samples"))
    cpu = processes.device.type == "cpu"
    training = Trainer(method, data, config.trainer, run, seed=config.seed, validate=validator, cpu=cpu).train(resume=resume)
    extractor = load_extractor(config.validation_extractor or "emoji", str(processes.device))
    figures = measure_decoder(codec, networks.average, held_out, num=config.trainer.num_validation, extractor=extractor)
    if processes.is_main_process:
        _export(run / "student", config, teacher, networks.average, data, training, figures)
    return DecoderResult(run / "student", training, figures, processes.is_main_process)


def _first(config: DistillConfig, codec: LatentCodec) -> Any:
    """The tiny autoencoder that is to learn."""
    if config.decoder.start is not None:
        return started_autoencoder(config.decoder.start, codec.vae)
    return tiny_autoencoder(codec.vae, config.decoder.width, config.decoder.blocks)


class DecoderValidator:
    """Judges the average by the pictures that its decoder makes of the latents of pictures held out."""

    def __init__(self, networks: TinyNetworks, data: DecodedData, num: int, samples: Path) -> None:
        self.networks, self.data, self.num, self.samples = networks, data, num, samples

    def __call__(self, step: int) -> Validation:
        """By the PSNR of the tiny decoder, which is finite whatever the pictures are; and a grid: pictures, what the teacher
        makes of their latents, what the student does."""
        networks = self.networks
        figures = measure_decoder(networks.teacher, networks.average, self.data, num=self.num, of_encoder=False, batch_sizes=())
        batch = self.data.batch(torch.arange(min(SHOWN, len(self.data))), None)
        made = decoded_by(networks.average, batch.latents.to(networks.teacher.vae.device)).cpu()
        rows = torch.cat([batch.pictures, batch.decoded, made])
        save_picture(make_grid(rows / 2 + 0.5, nrow=len(made)), self.samples / f"step-{step:06d}.png")
        told = figures.as_json()
        return Validation(-figures.psnr[ROUND_TRIPS[1]], {name: told[name] for name in ("psnr", "psnr_lost")})


def _export(
    folder: Path,
    config: DistillConfig,
    teacher: Teacher,
    tiny: Any,
    data: DecodedData,
    training: TrainingResult,
    figures: DecoderFigures,
) -> None:
    """The pipeline with the tiny autoencoder, whole or not at all."""
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    tiny.to(memory_format=torch.contiguous_format)  # which safetensors keeps
    pipeline = teacher.family.student_pipeline(teacher.pipeline, {"vae": tiny})
    pipeline.save_pretrained(aside, safe_serialization=True)
    open_in_float32(aside)
    lineage = {"steps": training.steps, "best_step": training.best_step, "times": list(map(dataclasses.asdict, figures.times))}
    (aside / FIGURES).write_text(json.dumps({**figures.as_json(), **lineage}, indent=1))
    card = CARD.format(
        teacher=config.teacher,
        version=gendistill.__version__,
        steps=training.steps,
        figures=figures.describe(),
        file=FIGURES,
        hash=weights_fingerprint(teacher.codec.networks["vae"]),
        data=data.cache.provenance.get("described", "unknown"),
    )
    (aside / "README.md").write_text(card)
    replace_folder(aside, folder)
