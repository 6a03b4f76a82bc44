"""Checkpoints that are there whole or not at all: written aside, flushed, renamed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE, WEIGHTS, OPTIMIZERS, BEST = "state.json", "weights.safetensors", "optimizers.pt", "best"
KEPT = 2


class Checkpoints:
    """The `checkpoints/` of a run: the last two by step, and the best average weights by validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, weights: dict[str, Tensor], optimizers: dict[str, Any], state: dict[str, Any]) -> None:
        """Everything that a run needs to go on from `step`; older checkpoints than the last two are removed."""
        aside = self._aside(f"step-{step:08d}")
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, aside / WEIGHTS)
        torch.save(optimizers, aside / OPTIMIZERS)
        (aside / STATE).write_text(json.dumps({**state, "step": step}, indent=2))
        self._publish(aside, f"step-{step:08d}")
        for old in self.steps()[:-KEPT]:
            shutil.rmtree(self.folder / old)

    def load_last(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]] | None:
        """weights, optimizers, state of the newest checkpoint, or None where there is none."""
        if not (steps := self.steps()):
            return None
        last = self.folder / steps[-1]
        optimizers = torch.load(last / OPTIMIZERS, weights_only=True, map_location="cpu")
        return load_file(last / WEIGHTS), optimizers, json.loads((last / STATE).read_text())

    def save_best(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """The weights that the student is made of, replacing the best so far."""
        aside = self._aside(BEST)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, aside / WEIGHTS)
        (aside / STATE).write_text(json.dumps(state, indent=2))
        self._publish(aside, BEST)

    def load_best(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        best = self.folder / BEST
        if not best.is_dir():
            return None
        return load_file(best / WEIGHTS), json.loads((best / STATE).read_text())

    def steps(self) -> list[str]:
        """Names of the complete checkpoints, oldest first."""
        return sorted(path.name for path in self.folder.glob("step-*") if path.is_dir())

    def _aside(self, name: str) -> Path:
        aside = self.folder / f".{name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        return aside

    def _publish(self, aside: Path, name: str) -> None:
        """Flush every file and the folder, then rename; a folder that stood there is moved away first."""
        for path in [*aside.iterdir(), aside]:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        final = self.folder / name
        if final.exists():
            replaced = self._aside(f"{name}.replaced")
            os.replace(final, replaced)
            os.replace(aside, final)
            shutil.rmtree(replaced)
        else:
            os.replace(aside, final)
