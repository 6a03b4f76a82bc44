"""Open a diffusers pipeline folder, a hub id or a student's LoRA, with one clear sentence where that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from .spec import StudentSpec

LORA_FILE = "pytorch_lora_weights.safetensors"


def open_pipeline(source: str | Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """A diffusers pipeline from a folder or a hub id, all parts in `dtype`.

    Only safetensors weights are read, and no code from the folder is run.

    Raises:
        ValueError: nothing is there, or it is not a pipeline.
    """
    folder = Path(source)
    looks_local = folder.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1
    if looks_local and not (folder / "model_index.json").is_file():
        state = "has no model_index.json" if folder.is_dir() else "does not exist"
        raise ValueError(f"model {source} {state}; takes a diffusers pipeline folder or a hub id such as user/name")
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            str(source), torch_dtype=dtype, use_safetensors=True, safety_checker=None, requires_safety_checker=False
        )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model {source} cannot be opened as a diffusers pipeline: {reason}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def open_student(folder: Path, *, dtype: torch.dtype = torch.float32) -> tuple[Any, StudentSpec | None]:
    """A student's pipeline and spec: its own folder, or its teacher with its LoRA and scheduler. No spec: not ours."""
    spec = StudentSpec.load(folder)
    if spec is None or not spec.lora:
        return open_pipeline(folder, dtype=dtype), spec
    pipeline = open_pipeline(spec.teacher, dtype=dtype)
    pipeline.load_lora_weights(str(folder), weight_name=LORA_FILE)
    pipeline.scheduler = spec.scheduler()
    return pipeline, spec
