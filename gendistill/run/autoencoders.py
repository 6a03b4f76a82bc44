"""Runs of autoencoders: a pipeline in, the same pipeline with a tiny autoencoder out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

import gendistill
from gendistill.data.decoded import DecodedData, prepare_decoded
from gendistill.diffusion.teacher import load_teacher
from gendistill.diffusion.tiny_autoencoder import TinyNetworks, decoded_by
from gendistill.evaluation.decoder_figures import ROUND_TRIPS, DecoderFigures, measure_decoder
from gendistill.export.student_folder import fit_transformers_4_and_5
from gendistill.methods import RunConfig, Stage, recipe_of
from gendistill.methods.decoder import AutoencoderContext
from gendistill.metrics.features.feature_extractor import load_extractor
from gendistill.run.denoisers import DenoiserRun, describe_data, describe_networks
from gendistill.run.validation import save_image_grid, validation_extractor
from gendistill.runtime.files import updated_folder
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import image_grid
from gendistill.samplers.provenance import weights_fingerprint
from gendistill.training.state import Validation
from gendistill.training.trainer import TrainingResult, Validate

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

The pipeline of the teacher, in which an `AutoencoderTiny` with the same latent space replaces the `AutoencoderKL`. Created by
gendistill {version} in {steps} training steps.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("PATH_OF_THIS_FOLDER")
```

{figures}. All figures: `{file}`.

Weights of the teacher's autoencoder: sha256 {hash}. Training data: {data}.
"""


class AutoencoderRun:
    """A run that distills a latent space's autoencoder; see `run.distill.RunOfKind`."""

    def __init__(self, config: RunConfig, processes: PartialState) -> None:
        self.config, self.processes = config, processes
        self.teacher = load_teacher(
            config.teacher,
            config=config.teacher_config,
            revision=config.teacher_revision,
            size=config.data.size,
            dtype=getattr(torch, config.dtype),
            device=processes.device,
        )
        recipe_of(config).check(config, self.teacher)
        self.codec: Any = self.teacher.codec  # a `LatentCodec`: `check` has verified this

    @staticmethod
    def require_teacher(config: RunConfig) -> None:
        DenoiserRun.require_teacher(config)

    @staticmethod
    def describe(config: RunConfig) -> tuple[str, str, str]:
        teacher, _, texts = describe_networks(config)
        width, blocks, start = config.decoder.width, config.decoder.blocks, config.decoder.start
        tiny = (
            f"a tiny autoencoder with {width} channels and {blocks} blocks per resolution"
            if start is None
            else f"the tiny autoencoder of {start}"
        )
        return teacher, f"{tiny}; the teacher's denoiser is not trained", describe_data(config, texts)

    def prepare(self) -> None:
        config, teacher = self.config, self.teacher
        with advancing_bar("encoding and decoding") as progress:
            self.decoded = prepare_decoded(config.data, teacher, config.seed, progress, config.decoder.copies)
        self.held_out = self.decoded
        if config.validation_reference is not None:
            held_out_config = config.data.model_copy(update={"path": config.validation_reference, "prompts": None})
            with advancing_bar("encoding and decoding the validation images") as progress:
                self.held_out = prepare_decoded(held_out_config, teacher, config.seed, progress)

    def stages(self) -> Iterator[Stage]:
        return recipe_of(self.config).stages(AutoencoderContext(self.config, self.codec))

    def data(self, stage: Stage) -> DecodedData:
        return self.decoded

    def validator(self, stage: Stage, samples: Path) -> Validate:
        return DecoderValidator(stage.method.networks, self.held_out, self.config.trainer.num_validation, samples)

    def export(self, stage: Stage, training: TrainingResult, folder: Path) -> tuple[DecoderFigures, str]:
        config, average = self.config, stage.method.networks.average
        name = validation_extractor(config, self.teacher, config.validation_reference or config.data.path)
        extractor = load_extractor(name, str(self.processes.device))
        num = config.trainer.num_validation
        figures = measure_decoder(self.codec, average, self.held_out, num=num, extractor=extractor)
        if self.processes.is_main_process:
            self._write(folder, average, training, figures)
        return figures, figures.describe()

    def _write(self, folder: Path, tiny: torch.nn.Module, training: TrainingResult, figures: DecoderFigures) -> None:
        """Write the pipeline with the tiny autoencoder, atomically."""
        teacher = self.teacher
        tiny.to(memory_format=torch.contiguous_format)  # safetensors stores the memory format otherwise
        pipeline = teacher.family.student_pipeline(teacher.pipeline, {"vae": tiny})
        with updated_folder(folder) as temporary:
            pipeline.save_pretrained(temporary, safe_serialization=True)
            fit_transformers_4_and_5(temporary)
            times = [dataclasses.asdict(time) for time in figures.times]
            measured = {**figures.as_json(), "steps": training.steps, "best_step": training.best_step, "times": times}
            (temporary / FIGURES).write_text(json.dumps(measured, indent=1))
            card = CARD.format(
                teacher=self.config.teacher,
                version=gendistill.__version__,
                steps=training.steps,
                figures=figures.describe(),
                file=FIGURES,
                hash=weights_fingerprint(teacher.codec.networks["vae"]),
                data=self.decoded.cache.provenance.get("described", "unknown"),
            )
            (temporary / "README.md").write_text(card)


class DecoderValidator:
    """Validates the EMA of the tiny autoencoder by its reconstructions of held-out images."""

    def __init__(self, networks: TinyNetworks, data: DecodedData, num: int, samples: Path) -> None:
        self.networks, self.data, self.num, self.samples = networks, data, num, samples

    def __call__(self, step: int) -> Validation:
        """The negative PSNR of the tiny decoder, which is finite for all images; also saves a grid of images, the teacher's
        reconstructions and the student's reconstructions."""
        networks = self.networks
        figures = measure_decoder(
            networks.teacher, networks.average, self.data, num=self.num, measure_encoder=False, batch_sizes=()
        )
        batch = self.data.batch(torch.arange(min(SHOWN, len(self.data))), None)
        reconstructed = decoded_by(networks.average, batch.latents.to(networks.teacher.vae.device)).cpu()
        rows = torch.cat([batch.images, batch.decoded, reconstructed])
        save_image_grid(image_grid(rows / 2 + 0.5, columns=len(reconstructed)), self.samples / f"step-{step:06d}.png")
        values = figures.as_json()
        return Validation(-figures.psnr[ROUND_TRIPS[1]], {name: values[name] for name in ("psnr", "psnr_lost")})
