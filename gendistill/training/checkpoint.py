"""Atomic checkpoints: written to a temporary folder, hashed, flushed and renamed; verified before they are loaded.

    checkpoints/step-00000200/   weights.safetensors  optimizers.safetensors  state.json  manifest.json
    checkpoints/best-00000150/   weights.safetensors  state.json  manifest.json

A manifest holds the SHA-256 of every file, and the name of the best checkpoint that the state refers to. No file is a pickle.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gendistill.runtime.files import as_os_error, remove_folder, replace_folder
from gendistill.runtime.hashing import file_sha256
from gendistill.training.former_names import with_current_names

WEIGHTS, OPTIMIZERS = "weights.safetensors", "optimizers.safetensors"
STATE, MANIFEST = "state.json", "manifest.json"
EIGHT_DIGITS = "[0-9]" * 8
KEPT = 2  # checkpoints by step


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to resume from. `skipped` has one line for each newer checkpoint that is damaged, with the reason."""

    name: str
    weights: dict[str, Tensor]
    optimizers: dict[str, Tensor]
    state: dict[str, Any]
    skipped: tuple[str, ...] = ()


class Checkpoints:
    """The folder `checkpoints/` of a run: the last two checkpoints, and the best EMA weights that they refer to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(
        self,
        step: int,
        weights: dict[str, Tensor],
        optimizers: dict[str, Tensor],
        state: dict[str, Any],
        best_step: int | None = None,
    ) -> None:
        """Save everything that a run needs to resume from `step`, and remove all but the last two checkpoints.

        Raises:
            OSError: the disk is full, for example. No partial checkpoint is left, and the earlier checkpoints are unchanged.
        """
        needs = [] if best_step is None else [_best(best_step)]
        self._publish(f"step-{step:08d}", {WEIGHTS: weights, OPTIMIZERS: optimizers}, {**state, "step": step}, needs)
        self.tidy(f"step-{step:08d}")

    def save_best(self, step: int, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Save the EMA weights with the best validation so far; raises as `save` does."""
        self._publish(_best(step), {WEIGHTS: weights}, {**state, "step": step}, [])

    def load_last(self) -> Checkpoint | None:
        """The newest intact checkpoint, or None where there is no checkpoint at all.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        damages: list[str] = []
        for name in reversed(self.steps()):
            if (damage := self.damage(name)) is None:
                folder = self.folder / name
                state = with_current_names(json.loads((folder / STATE).read_text()))
                weights, optimizers = (with_current_names(load_file(folder / file)) for file in (WEIGHTS, OPTIMIZERS))
                return Checkpoint(name, weights, optimizers, state, tuple(damages))
            damages.append(damage)
        if damages:
            raise ValueError(
                f"{self.folder} holds no intact checkpoint ({'; '.join(damages)}); expects another out, or this one without "
                "its checkpoints to start again"
            )
        return None

    def load_best(self, step: int) -> dict[str, Tensor]:
        """The EMA weights whose validation at `step` was the best."""
        return load_file(self.folder / _best(step) / WEIGHTS)

    def steps(self) -> list[str]:
        """Names of the checkpoints, oldest first."""
        return sorted(path.name for path in self.folder.glob(f"step-{EIGHT_DIGITS}") if path.is_dir())

    def damage(self, name: str) -> str | None:
        """The damage of a checkpoint, or of the best checkpoint that it refers to; None where both are intact."""
        folder = self.folder / name
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            for file, digest in manifest["files"].items():
                if file_sha256(folder / file) != digest:
                    return f"{name}/{file} is corrupted"
            damages = [self.damage(needed) for needed in manifest["needs"]]
        except OSError as error:
            return f"{name}/{Path(error.filename or MANIFEST).name} cannot be read: {(error.strerror or str(error)).lower()}"
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{name}/{MANIFEST} is corrupted"
        return next((damage for damage in damages if damage), None)

    def _publish(self, name: str, files: dict[str, dict[str, Tensor]], state: dict[str, Any], needs: list[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self._temporary_folder(name)
        try:
            for file, tensors in files.items():
                _write_tensors(tensors, temporary / file)
            (temporary / STATE).write_text(json.dumps(state, indent=2))
            hashes = {path.name: file_sha256(path) for path in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps({"files": hashes, "needs": needs}, indent=2))
            _flush(*temporary.iterdir(), temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        # a folder of that name is damaged, or was written after the checkpoint that the run has resumed from
        replace_folder(temporary, self.folder / name)
        _flush(self.folder)

    def tidy(self, last: str | None) -> None:
        """Keep the checkpoint `last`, the one before it and their best ones; remove old, partial and abandoned checkpoints."""
        kept = [name for name in self.steps() if last is not None and name <= last][-KEPT:]
        kept += [best for name in kept for best in self._needs(name)]
        for pattern in (f"step-{EIGHT_DIGITS}", f"best-{EIGHT_DIGITS}"):  # nothing of other programs
            for leftover in (*self.folder.glob(f".{pattern}"), *self.folder.glob(f".{pattern}.replaced")):
                shutil.rmtree(leftover)
            for path in self.folder.glob(pattern):
                if path.name not in kept:
                    remove_folder(path)

    def _needs(self, name: str) -> list[str]:
        try:
            return json.loads((self.folder / name / MANIFEST).read_text())["needs"]
        except (OSError, ValueError, KeyError):
            return []

    def _temporary_folder(self, name: str) -> Path:
        temporary = self.folder / f".{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        return temporary


def _best(step: int) -> str:
    return f"best-{step:08d}"


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise as_os_error(error, path) or error from error


def _flush(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
