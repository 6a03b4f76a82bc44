"""Open a pipeline folder, a hub id, a single-file checkpoint or a student's LoRA, with one-sentence errors."""

from __future__ import annotations

import difflib
import inspect
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import list_repo_files
from peft.utils import get_peft_model_state_dict

from gendistill.assets import asset_names, asset_path
from gendistill.samplers.families import family_of, network_of, require_supported
from gendistill.samplers.layouts.lora_files import lora_source, lora_weights
from gendistill.samplers.loras import merge_loras
from gendistill.samplers.missing_weights import (
    OPENING_ERRORS,
    first_sentence,
    listed,
    network_class,
    open_networks,
    require_finite,
    require_loaded,
    require_pairs,
)
from gendistill.samplers.single_file import SUFFIXES, architecture_of, left_out, open_single_file
from gendistill.samplers.spec import FILE_NAME, StudentSpec
from gendistill.samplers.weighted_lora import WeightedLora
from gendistill.schedulers.noise import require_descending

LORA_FILE = "pytorch_lora_weights.safetensors"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
EXPECTED = "expects a diffusers pipeline folder, a .safetensors checkpoint or a hub id (user/name)"


def open_pipeline(
    source: str | Path,
    *,
    config: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    loras: Sequence[WeightedLora] = (),
) -> Any:
    """Open a diffusers pipeline of a supported family, all parts in `dtype`.

    Only safetensors weights are read, and no code from the model is run.

    Args:
        source: a pipeline folder, a hub id, or a `.safetensors` checkpoint in the layout of its release.
        config: for a checkpoint only, see `architecture_of`.
        revision: for a hub id only: a branch, a tag or a commit.
        loras: are merged into its networks.

    Raises:
        ValueError: the model does not exist, a part of it or some of its weights are missing or are not finite, its family is
            not supported, its noise does not increase with time, or a LoRA does not fit.
    """
    path, folder = Path(asset_path(source)).expanduser(), configs_of(source, config=config, revision=revision)
    if folder is not None and _is_checkpoint(path):
        pipeline = open_single_file(path, folder, dtype)
        require_loaded(source, pipeline.components)
    else:
        pipeline = _open_folder(source, folder or _download(str(source), revision), dtype)
    _require_encoders(source, pipeline)
    if (alphas_cumprod := getattr(pipeline.scheduler, "alphas_cumprod", None)) is not None:
        require_descending(alphas_cumprod, f"model {source}: the scheduler {type(pipeline.scheduler).__name__}")
    pipeline.set_progress_bar_config(disable=True)
    merge_loras(pipeline, loras)
    return pipeline


def configs_of(source: str | Path, *, config: str | None = None, revision: str | None = None) -> Path | None:
    """The folder with the configs of the pipeline that `open_pipeline` would open; None for a hub id.

    Raises:
        ValueError: as `open_pipeline`, for all errors that need no reading of weights.
    """
    path = Path(asset_path(source)).expanduser()
    if (name := os.fsencode(path).decode(errors="backslashreplace")) != str(path):
        raise ValueError(
            f"model {name}: the path is not UTF-8, which safetensors requires; expects another name, or a link to it with one"
        )
    is_file = _is_checkpoint(path)
    if config is not None and not is_file:
        raise ValueError(f"teacher_config {config}: expects a .safetensors checkpoint as the teacher, not {source}")
    is_local = is_file or os.path.lexists(path) or not HUB_ID.fullmatch(str(source))
    if revision is not None and is_local:
        raise ValueError(f"teacher_revision {revision}: expects a hub id as the teacher, not {source}")
    if is_file:
        return architecture_of(path, config)
    if not is_local:
        return None
    _require_pipeline(source, path)
    return path


def open_student(
    folder: str | Path,
    *,
    config: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    loras: Sequence[WeightedLora] = (),
) -> tuple[Any, StudentSpec | None]:
    """Open a student's pipeline, or its teacher with its LoRA and scheduler, and its spec; None for other models.

    Args:
        config, revision, dtype, loras: as for `open_pipeline`; for a LoRA, its folder has those of its teacher.
    """
    spec = StudentSpec.load(Path(folder))
    if spec is None or not spec.lora:
        return open_pipeline(folder, config=config, revision=revision, dtype=dtype, loras=loras), spec
    scheduler = spec.scheduler()
    if Path(spec.teacher).is_absolute() and not Path(spec.teacher).exists():
        raise ValueError(
            f"model {folder} is a LoRA of {spec.teacher}, which does not exist; expects the teacher there, or its path as "
            f"`teacher` in {Path(folder) / FILE_NAME}"
        )
    opening = spec.teacher_opening | ({"loras": ()} if spec.lora_on_original else {})
    pipeline = open_pipeline(spec.teacher, **opening, dtype=dtype)
    try:
        _load_lora(pipeline, Path(folder) / LORA_FILE)
    except OPENING_ERRORS as error:
        raise ValueError(f"model {folder} cannot be opened as a LoRA of {spec.teacher}: {first_sentence(error)}") from error
    pipeline.scheduler = scheduler
    return pipeline, spec


def _load_lora(pipeline: Any, file: Path) -> None:
    """Load a student's LoRA into its teacher, with all of the weights that its adapter has in the network."""
    state = lora_weights(pipeline, file)
    require_pairs(file.name, state)
    require_finite(file.name, state)
    source, settings = lora_source(pipeline, file)
    pipeline.load_lora_weights(source, **settings)
    network, part = network_of(pipeline), family_of(pipeline).network_part
    [adapter] = network.active_adapters()
    expected = {f"{part}.{name}" for name in get_peft_model_state_dict(network, adapter_name=adapter)}
    if missing := expected - state.keys():
        raise ValueError(f"{file.name} lacks {len(missing)} of the weights of its adapter ({listed(missing)})")


def commit_of(pipeline: Any) -> str | None:
    """The commit of an opened pipeline from the hub, the name of its snapshot; None for other pipelines."""
    opened_from = Path(pipeline.config.get("_name_or_path") or "")
    return opened_from.name if opened_from.parent.name == "snapshots" else None


def lists_safety_checker(pipeline: Any) -> bool:
    """Whether the folder from which a pipeline was opened lists a safety checker, which `open_pipeline` leaves out."""
    index = Path(pipeline.config.get("_name_or_path") or "") / "model_index.json"
    return index.is_file() and (json.loads(index.read_text()).get("safety_checker") or [None])[0] is not None


def _is_checkpoint(path: Path) -> bool:
    """Whether a path is that of a file of weights; a folder may have such a name too."""
    return path.suffix in SUFFIXES and not os.path.isdir(path)


def _download(hub_id: str, revision: str | None) -> Path:
    """The local snapshot of a hub repository; only the files of the pipeline are downloaded.

    A repository without plain weights is downloaded in one of its variants.
    """
    try:
        index = DiffusionPipeline.load_config(hub_id, revision=revision)
    except OSError as error:
        raise _not_on_hub(hub_id, error) from error
    require_supported(hub_id, str(index["_class_name"]))
    settings = {"revision": revision, "use_safetensors": True, **left_out(index)}
    try:
        return Path(DiffusionPipeline.download(hub_id, **settings))
    except (OSError, ValueError) as error:
        names = (re.search(r"model[^/]*?\.(\w+)(-\d+-of-\d+)?\.safetensors$", name) for name in _files_of(hub_id, revision))
        variants = sorted({match[1] for match in names if match}, key=lambda name: (name != "fp16", name))
        if not variants:
            raise _not_on_hub(hub_id, error) from error
    try:
        return Path(DiffusionPipeline.download(hub_id, variant=variants[0], **settings))
    except (OSError, ValueError) as error:
        raise _not_on_hub(hub_id, error) from error


def _files_of(hub_id: str, revision: str | None) -> list[str]:
    """The files of a hub repository; empty if the hub does not answer."""
    try:
        return list(list_repo_files(hub_id, revision=revision))
    except (OSError, ValueError):
        return []


def _not_on_hub(hub_id: str, error: Exception) -> ValueError:
    reason = f"cannot be opened as a diffusers pipeline of the hub: {first_sentence(error)}"
    return ValueError(f"model {hub_id} is no local folder{_near(Path(hub_id))}, and {reason}; {EXPECTED}")


def _near(path: Path) -> str:
    """The similar names in the folder of a path, for an error message; empty without any."""
    try:
        siblings = [str(path.parent / entry.name) for entry in path.parent.iterdir()]
    except OSError:
        siblings = []
    assets = [f"assets/{name}" for name in asset_names()]
    near = difflib.get_close_matches(str(path), [*siblings, *assets], n=3, cutoff=0.75)
    return f" (there is {', '.join(dict.fromkeys(near))})" if near else ""


def _open_folder(source: str | Path, folder: Path, dtype: torch.dtype) -> Any:
    index = _require_pipeline(source, folder)
    absent = left_out(index, folder)
    networks = open_networks(source, folder, {name: entry for name, entry in index.items() if name not in absent}, dtype)
    # by its own class, as the base class opens an optional part again that is passed
    kind: Any = getattr(diffusers, index["_class_name"], DiffusionPipeline)
    try:
        pipeline = kind.from_pretrained(str(folder), torch_dtype=dtype, use_safetensors=True, **networks, **absent)
    except OPENING_ERRORS as error:
        raise ValueError(f"model {source} cannot be opened as a diffusers pipeline: {first_sentence(error)}") from error
    # settings of the folder that not every class saves again, such as the labels of classes
    settings = inspect.signature(kind.__init__).parameters.keys() & index.keys() - pipeline.config.keys()
    pipeline.register_to_config(**{name: index[name] for name in settings})
    return pipeline


def _require_encoders(source: str | Path, pipeline: Any) -> None:
    """Raise ValueError if a pipeline lacks a text encoder, or the tokenizer of one."""
    family = family_of(pipeline)
    absent = set(family.optional_encoders) - family.encoders(pipeline).keys()
    encoders = [name for name in family.prompt_encoders if name not in absent]
    required = [*encoders, *(name.replace("text_encoder", "tokenizer") for name in encoders)]
    if missing := [name for name in required if getattr(pipeline, name, None) is None]:
        raise ValueError(
            f"model {source} has no {' and no '.join(missing)}; a {type(pipeline).__name__} expects {', '.join(required)}"
        )


def _require_pipeline(source: str | Path, folder: Path) -> dict[str, Any]:
    """The model_index.json of a folder; ValueError if its family is not supported, or one of its parts is missing."""
    if not os.path.isfile(folder / "model_index.json"):
        if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
            state = "cannot be read: permission denied"
        elif os.path.isdir(folder):
            state = "has no model_index.json"
            if (folder / LORA_FILE).is_file():
                state += f" and no {FILE_NAME} that names the model of its LoRA"
            elif (folder / "student").is_dir():
                state += f" (there is {Path(source) / 'student'})"
        elif folder.is_symlink():
            state = f"is a link to {os.readlink(folder)}, which does not exist"
        else:
            state = "is a file without the suffix .safetensors" if os.path.isfile(folder) else f"does not exist{_near(folder)}"
        raise ValueError(f"model {source} {state}; {EXPECTED}")
    cannot = f"model {source} cannot be opened as a diffusers pipeline"
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{cannot}: {first_sentence(error)}") from error
    if not isinstance(index, dict):
        raise ValueError(f"{cannot}: its model_index.json is no JSON object")
    require_supported(source, str(index.get("_class_name")))
    absent = left_out(index, folder)
    for name, entry in index.items():
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] is None or name in absent:
            continue
        part = folder / name
        if os.path.isdir(part) and not os.access(part, os.R_OK | os.X_OK):
            raise ValueError(f"{cannot}: its {name} cannot be read: permission denied")
        if not part.is_dir():
            raise ValueError(f"{cannot}: it has no {name}, which its model_index.json lists as a {entry[1]}")
        if network_class(entry) is None:
            continue
        if not (part / "config.json").is_file():
            raise ValueError(f"{cannot}: it has no config.json in {name}, which its model_index.json lists as a {entry[1]}")
        if not any(file.suffix == ".safetensors" for file in part.iterdir()):
            raise ValueError(f"{cannot}: it has no .safetensors weights in {name}, and others are not read")
    return index
