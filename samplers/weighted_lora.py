"""A LoRA file with its weight, as settings and student folders name it."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gendistill.samplers.teacher_path import found_path, relative_path

# in a folder: the names of diffusers and of PEFT
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class WeightedLora:
    """A LoRA that is merged into a model.

    Attributes:
        path: of the file.
        weight: factor of its change of the network's weights.
        sha256: of the file's bytes, 64 hex digits; "" for any content.
        relative: the path relative to the folder of the student that names it.
    """

    path: str
    weight: float = 1.0
    sha256: str = ""
    relative: str | None = None

    @staticmethod
    def parse(text: str) -> WeightedLora:
        """A LoRA as `FILE` or `FILE:WEIGHT`, with the hash of its content.

        Raises:
            ValueError: the file does not exist, or the weight is not finite.
        """
        path, weight = split_weight(text)
        if not math.isfinite(weight):
            raise ValueError(f"lora {text}: the weight {weight} is not finite; expects FILE or FILE:WEIGHT")
        file = lora_file(path)
        return WeightedLora(os.path.abspath(file), weight, _sha256(file))

    def require(self) -> None:
        """Raise ValueError if the file does not exist, or has another content than it had in training."""
        if not Path(self.path).is_file():
            raise ValueError(
                f"lora {self.path}, which is merged into the teacher, does not exist; expects the file there, or its path in "
                "`teacher_loras` of the student's gendistill.json"
            )
        if self.sha256 and _sha256(Path(self.path)) != self.sha256:
            raise ValueError(
                f"lora {self.path}, which is merged into the teacher, has changed since the student was trained; expects the "
                f"file with sha256 {self.sha256[:16]}"
            )

    def describe(self) -> str:
        """Its name, its weight and its hash, for the model card."""
        return f"{Path(self.path).name}, weight {self.weight:g}, sha256 {self.sha256[:16]}"

    def stored(self, folder: Path) -> WeightedLora:
        """The same with its path relative to a student's folder."""
        return replace(self, relative=relative_path(self.path, folder))

    @staticmethod
    def found(stored: dict[str, Any], folder: Path) -> WeightedLora:
        """The LoRA that the file of a student in `folder` names, found if both were moved."""
        lora = WeightedLora(**stored)
        return replace(lora, path=found_path(lora.path, lora.relative, folder))


def split_weight(text: str) -> tuple[str, float]:
    """The path and the weight in `FILE:WEIGHT`; the weight is 1 where there is none."""
    path, colon, number = text.rpartition(":")
    try:
        return (path, float(number)) if colon and path else (text, 1.0)
    except ValueError:
        return text, 1.0


def lora_file(lora: str | Path) -> Path:
    """The LoRA file at a path: the path itself, or the file of `LORA_FILES` in a folder; ValueError without one."""
    path = Path(lora).expanduser()
    file = next((path / name for name in LORA_FILES if (path / name).is_file()), path)
    if file.suffix != ".safetensors" or not file.is_file():
        raise ValueError(f"lora {lora}: expects an existing .safetensors file, or a folder with {LORA_FILES[0]}")
    return file


def _sha256(file: Path) -> str:
    """Of the bytes of a file, 64 hex digits; it fits the memory, as its weights do."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
