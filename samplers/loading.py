"""Open a pipeline folder, a hub id, a single-file checkpoint or a student's LoRA, with one-sentence errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from gendistill.assets import asset_path
from gendistill.samplers.families import require_supported
from gendistill.samplers.missing_weights import MissingWeightsError, open_text_encoders, require_loaded
from gendistill.samplers.single_file import SUFFIXES, architecture_of, left_out, open_single_file
from gendistill.samplers.spec import FILE_NAME, StudentSpec

LORA_FILE = "pytorch_lora_weights.safetensors"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")


def open_pipeline(
    source: str | Path, *, config: str | None = None, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> Any:
    """Open a diffusers pipeline of a supported family, all parts in `dtype`.

    Only safetensors weights are read, and no code from the model is run.

    Args:
        source: a pipeline folder, a hub id, or a `.safetensors` checkpoint in Stable Diffusion's original layout.
        config: for a checkpoint only, see `architecture_of`.
        revision: for a hub id only: a branch, a tag or a commit.

    Raises:
        ValueError: the model does not exist, a part of it or some of its weights are missing, or its family is not supported.
    """
    path, folder = Path(asset_path(source)).expanduser(), configs_of(source, config=config, revision=revision)
    if folder is not None and path.suffix in SUFFIXES:
        pipeline = open_single_file(path, folder, dtype)
    else:
        pipeline = _open_folder(source, folder or _download(str(source), revision), dtype)
    require_loaded(source, pipeline.components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def configs_of(source: str | Path, *, config: str | None = None, revision: str | None = None) -> Path | None:
    """The folder with the configs of the pipeline that `open_pipeline` would open; None for a hub id.

    Raises:
        ValueError: as `open_pipeline`, for all errors that need no reading of weights.
    """
    path = Path(asset_path(source)).expanduser()
    is_file = path.suffix in SUFFIXES
    if config is not None and not is_file:
        raise ValueError(f"teacher_config {config}: expects a .safetensors checkpoint as the teacher, not {source}")
    is_local = is_file or path.exists() or not HUB_ID.fullmatch(str(source))
    if revision is not None and is_local:
        raise ValueError(f"teacher_revision {revision}: expects a hub id as the teacher, not {source}")
    if is_file:
        return architecture_of(path, config)
    if not is_local:
        return None
    _require_pipeline(source, path)
    return path


def open_student(
    folder: str | Path, *, config: str | None = None, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Any, StudentSpec | None]:
    """Open a student's pipeline, or its teacher with its LoRA and scheduler, and its spec; None for other models."""
    spec = StudentSpec.load(Path(folder))
    if spec is None or not spec.lora:
        return open_pipeline(folder, config=config, revision=revision, dtype=dtype), spec
    scheduler = spec.scheduler()
    if Path(spec.teacher).is_absolute() and not Path(spec.teacher).exists():
        raise ValueError(
            f"model {folder} is a LoRA of {spec.teacher}, which does not exist; expects the teacher there, or its path as "
            f"`teacher` in {Path(folder) / FILE_NAME}"
        )
    pipeline = open_pipeline(spec.teacher, config=spec.teacher_config, revision=spec.teacher_revision, dtype=dtype)
    try:
        pipeline.load_lora_weights(str(folder), weight_name=LORA_FILE, use_safetensors=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"model {folder} cannot be opened as a LoRA of {spec.teacher}: {_first_line(error)}") from error
    pipeline.scheduler = scheduler
    return pipeline, spec


def commit_of(pipeline: Any) -> str | None:
    """The commit of an opened pipeline from the hub, the name of its snapshot; None for other pipelines."""
    opened_from = Path(pipeline.config.get("_name_or_path") or "")
    return opened_from.name if opened_from.parent.name == "snapshots" else None


def _download(hub_id: str, revision: str | None) -> Path:
    """The local snapshot of a hub repository; only the files of the pipeline are downloaded."""
    try:
        index = DiffusionPipeline.load_config(hub_id, revision=revision)
        require_supported(hub_id, str(index["_class_name"]))
        return Path(DiffusionPipeline.download(hub_id, revision=revision, use_safetensors=True, **left_out(index)))
    except OSError as error:
        raise ValueError(f"model {hub_id} cannot be opened as a diffusers pipeline: {_first_line(error)}") from error


def _open_folder(source: str | Path, folder: Path, dtype: torch.dtype) -> Any:
    index = _require_pipeline(source, folder)
    try:
        parts = {**open_text_encoders(source, folder, index, dtype, use_safetensors=True), **left_out(index)}
        return DiffusionPipeline.from_pretrained(str(folder), torch_dtype=dtype, use_safetensors=True, **parts)
    except MissingWeightsError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, SafetensorError) as error:  # configs that do not fit
        raise ValueError(f"model {source} cannot be opened as a diffusers pipeline: {_first_line(error)}") from error


def _require_pipeline(source: str | Path, folder: Path) -> dict[str, Any]:
    """The model_index.json of a folder; ValueError if its family is not supported, or one of its parts is missing."""
    if not (folder / "model_index.json").is_file():
        state = "has no model_index.json" if folder.is_dir() else "does not exist"
        raise ValueError(
            f"model {source} {state}; expects a diffusers pipeline folder, a .safetensors checkpoint or a hub id (user/name)"
        )
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"model {source} cannot be opened as a diffusers pipeline: {_first_line(error)}") from error
    if not isinstance(index, dict):
        raise ValueError(f"model {source} cannot be opened as a diffusers pipeline: its model_index.json is no JSON object")
    require_supported(source, str(index.get("_class_name")))
    parts = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and entry[1] is not None}
    for name, kind in parts.items():
        if name in NOT_NEEDED:
            continue
        missing = f"model {source} cannot be opened as a diffusers pipeline: it has no"
        if not (folder / name).is_dir():
            raise ValueError(f"{missing} {name}, which its model_index.json lists as a {kind}")
        is_network = (folder / name / "config.json").is_file()
        if is_network and not list((folder / name).glob("*.safetensors")):
            raise ValueError(f"{missing} .safetensors weights in {name}, and others are not read")
    return index


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
