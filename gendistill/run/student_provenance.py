"""The provenance of a student for its model card, the same for all kinds of students."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

import gendistill
from gendistill.methods import RunConfig, Stage
from gendistill.training.trainer import TrainingResult


def provenance_of(config: RunConfig, stage: Stage, training: TrainingResult) -> dict[str, Any]:
    """Steps, training time, seed and versions by their names on the card."""
    return {
        "steps trained": f"{training.steps} at batch {stage.trainer.batch_size}, best at {training.best_step}",
        **({"validated by": training.best.figures["network"]} if training.best and "network" in training.best.figures else {}),
        "minutes": f"{training.seconds / 60:.1f}",
        "seed": config.seed,
        "versions": f"gendistill {gendistill.__version__}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"transformers {transformers.__version__}",
        **({"ended": training.ended} if training.ended else {}),
    }
