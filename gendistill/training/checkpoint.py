"""Checkpoints that are there whole or not at all: written aside, hashed, flushed, renamed; verified before they are used.

    checkpoints/step-00000200/   weights.safetensors  optimizers.safetensors  state.json  manifest.json
    checkpoints/best-00000150/   weights.safetensors  state.json  manifest.json

A manifest has the SHA-256 of every file, and names the best that the state speaks of. No file is a pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gendistill.runtime.files import remove_folder, replace_folder
from gendistill.runtime.hashing import file_sha256

WEIGHTS, OPTIMIZERS = "weights.safetensors", "optimizers.safetensors"
STATE, MANIFEST = "state.json", "manifest.json"
KEPT = 2
FORMER_NAMES = {"partner": "peer", "told_apart": "discriminator_accuracy"}  # words: allowed


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from. `passed_over` says what is wrong with newer ones that are damaged, a line each."""

    name: str
    weights: dict[str, Tensor]
    optimizers: dict[str, Tensor]
    state: dict[str, Any]
    passed_over: tuple[str, ...] = ()


class Checkpoints:
    """The `checkpoints/` of a run: the last two by step, and the best averages that they speak of."""

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
        """Everything that a run needs to go on from `step`; what is older than the last two checkpoints is removed.

        Raises:
            OSError: the disk is full, say. Nothing half-written is left, and the earlier checkpoints are as they were.
        """
        needs = [] if best_step is None else [_best(best_step)]
        self._publish(f"step-{step:08d}", {WEIGHTS: weights, OPTIMIZERS: optimizers}, {**state, "step": step}, needs)
        self.tidy(f"step-{step:08d}")

    def save_best(self, step: int, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """The weights that the student is made of if no better ones come; raises as `save` does."""
        self._publish(_best(step), {WEIGHTS: weights}, {**state, "step": step}, [])

    def load_last(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where there is none at all.

        Raises:
            ValueError: there are checkpoints, and each of them is damaged.
        """
        damages: list[str] = []
        for name in reversed(self.steps()):
            if (damage := self.damage(name)) is None:
                folder = self.folder / name
                state = renamed(json.loads((folder / STATE).read_text()))
                weights, optimizers = (renamed(load_file(folder / file)) for file in (WEIGHTS, OPTIMIZERS))
                return Checkpoint(name, weights, optimizers, state, tuple(damages))
            damages.append(damage)
        if damages:
            raise ValueError(
                f"{self.folder} holds no whole checkpoint ({'; '.join(damages)}); expects another out, or this one without "
                "its checkpoints to begin again"
            )
        return None

    def load_best(self, step: int) -> dict[str, Tensor]:
        """The average that was the best at `step`."""
        return renamed(load_file(self.folder / _best(step) / WEIGHTS))

    def steps(self) -> list[str]:
        """Names of the checkpoints, oldest first."""
        return sorted(path.name for path in self.folder.glob("step-*") if path.is_dir())

    def damage(self, name: str) -> str | None:
        """What is wrong with a checkpoint, or with the best that it speaks of; None where all is as it was written."""
        folder = self.folder / name
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            for file, digest in manifest["files"].items():
                if file_sha256(folder / file) != digest:
                    return f"{name}/{file} is not as it was written"
            damages = [self.damage(needed) for needed in manifest["needs"]]
        except OSError as error:
            return f"{name}/{Path(error.filename or MANIFEST).name} cannot be read: {(error.strerror or str(error)).lower()}"
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{name}/{MANIFEST} is not as it was written"
        return next((damage for damage in damages if damage), None)

    def _publish(self, name: str, files: dict[str, dict[str, Tensor]], state: dict[str, Any], needs: list[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self._aside(name)
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
        replace_folder(
            temporary, self.folder / name
        )  # of a life that was given up: damaged, or one that no checkpoint speaks of
        _flush(self.folder)

    def tidy(self, last: str | None) -> None:
        """Keep `last`, the one before it and their bests; the rest is old, half-written, or of a life that was given up."""
        kept = [name for name in self.steps() if last is not None and name <= last][-KEPT:]
        needed = [best for name in kept for best in self._needs(name)]
        for pattern in ("step-*", "best-*"):
            for leftover in self.folder.glob(f".{pattern}"):
                shutil.rmtree(leftover)
            for path in self.folder.glob(pattern):
                if path.name not in kept + needed:
                    remove_folder(path)

    def _needs(self, name: str) -> list[str]:
        try:
            return json.loads((self.folder / name / MANIFEST).read_text())["needs"]
        except (OSError, ValueError, KeyError):
            return []

    def _aside(self, name: str) -> Path:
        temporary = self.folder / f".{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        return temporary


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """The same values with the present names for those that version 0.1 gave to networks and to what it measured."""
    for former, present in FORMER_NAMES.items():
        values = {re.sub(rf"(?<![^._]){former}(?![^._])", present, name): value for name, value in values.items()}
    return {name: renamed(value) if isinstance(value, dict) else value for name, value in values.items()}


def _best(step: int) -> str:
    return f"best-{step:08d}"


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise as_os_error(error, path) or error from error


def as_os_error(error: Exception, path: Path | None = None) -> OSError | None:
    """The OSError that an error is, or that safetensors tells as text; None where it is another."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"os error (\d+)", str(error))
    return None if number is None else OSError(int(number[1]), os.strerror(int(number[1])), path and str(path))


def _flush(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
