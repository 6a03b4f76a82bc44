"""Open a `.safetensors` checkpoint in the layout of its release, without access to the hub."""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from gendistill.samplers.families import FAMILIES, family_called, require_supported
from gendistill.samplers.layouts.layout import OriginalLayout
from gendistill.samplers.missing_weights import MissingWeightsError, network_class, open_network, require_all
from gendistill.samplers.spec import FILE_NAME

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
ARCHITECTURES = Path(__file__).parent / "architectures"
OPTIONAL = ("feature_extractor", "image_encoder")  # pipelines sample without them
LABELS = {"unet": "UNet", "vae": "VAE"}
MERGES = Path(__file__).parent / "clip-merges" / "merges.txt.gz"
LORA_WEIGHT = re.compile(r"(^|[._])(lora|hada|lokr|lycoris)([._]|$)")
CLIP_VOCABULARY = 49408
START, END = "<|startoftext|>", "<|endoftext|>"
Shapes = Mapping[str, tuple[int, ...]]


def architecture_of(file: Path, config: str | None = None) -> Path:
    """The folder with the configs of a checkpoint's pipeline; only the checkpoint's header is read.

    Args:
        config: the name of an architecture in `architectures/`, or a folder in diffusers' layout, whose weights are read only
            for components that the checkpoint lacks; by default the architecture is inferred from the names of the weights. A
            folder without CLIP's tokenizer gets it.

    Raises:
        ValueError: the file does not exist, is a pickle or a LoRA or lacks a component, or its architecture cannot be inferred.
    """
    if not file.is_file():
        raise ValueError(f"model {file} does not exist; expects a .safetensors checkpoint, a diffusers folder or a hub id")
    if file.suffix != ".safetensors":
        raise ValueError(f"model {file} is a pickle, which may run code when it is opened; expects a .safetensors checkpoint")
    shapes = _header(file)
    _require_pipeline_weights(file, shapes)
    folder = _config_folder(file, shapes, config)
    index = _index(folder)
    require_supported(file, index["_class_name"])
    layout = _layout(file, index)
    if (reason := layout.unfit(shapes)) is not None:
        raise ValueError(f"model {file} has {reason}; expects a text-to-image model")
    absent = [LABELS.get(name, name) for name in _absent(index, folder, shapes, layout) if name not in layout.optional]
    if absent:
        raise ValueError(
            f"model {file} holds no {', '.join(absent)}; expects a complete checkpoint, or teacher_config: a diffusers folder "
            f"that has {'it' if len(absent) == 1 else 'them'}"
        )
    return folder


def open_single_file(file: Path, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Open the pipeline of a checkpoint. Components that it lacks are those of the folder.

    Args:
        folder: the result of `architecture_of`.

    Raises:
        ValueError: the weights do not fit the architecture, or some are missing.
    """
    index, shapes = _index(folder), _header(file)
    layout, kind = _layout(file, index), getattr(diffusers, index["_class_name"])
    absent = left_out(index, folder)
    if lacking := set(layout.optional) & set(_absent(index, folder, shapes, layout)):
        logger.warning(
            "model %s is opened without %s; teacher_config, a diffusers folder with %s, adds it",
            *(file, layout.optional[0], ", ".join(sorted(lacking))),
        )
        absent |= dict.fromkeys(layout.optional)
    parts = _tokenizers(folder, {name: entry for name, entry in index.items() if name not in absent}) | absent
    for name, network in _networks(index).items():
        if name not in absent and not layout.holds(name, shapes):
            parts[name] = open_network(network, folder / name, folder, name, dtype)
    try:
        networks = layout.networks(file, folder, {name: entry for name, entry in index.items() if name not in parts}, dtype)
        if networks is None:
            pipeline = kind.from_single_file(str(file), config=str(folder), local_files_only=True, torch_dtype=dtype, **parts)
        else:
            pipeline = kind.from_pretrained(str(folder), torch_dtype=dtype, **networks, **parts)
    except MissingWeightsError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # from weights with other shapes or names
        if isinstance(error, NotImplementedError):  # from weights that the file lacks, which stay on the meta device
            _require_weights(file, folder)
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model {file} does not fit the architecture in {folder} ({reason}); expects another one") from error
    pipeline.scheduler = layout.scheduler(pipeline.scheduler, shapes)
    return pipeline


def _require_weights(file: Path, folder: Path) -> None:
    """Raise MissingWeightsError if the UNet or the VAE of a checkpoint lacks weights."""
    converters = {"unet": convert_ldm_unet_checkpoint, "vae": convert_ldm_vae_checkpoint}
    for part, convert in converters.items():
        config = json.loads((folder / part / "config.json").read_text())
        with torch.device("meta"):
            network = getattr(diffusers, config["_class_name"]).from_config(config)
        converted = convert(load_file(file), config=network.config)
        require_all(file, part, network.state_dict().keys() - converted.keys())


def left_out(index: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Arguments that open a pipeline with this model_index.json without its safety checker and the parts that are null in it.

    Args:
        folder: of the pipeline; optional parts that are listed in the index and are not in the folder are left out too.
    """
    absent = [name for name, entry in index.items() if entry == [None, None]]
    absent += [name for name in OPTIONAL if name in index and folder is not None and not (folder / name).is_dir()]
    checker = {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in index else {}
    return {**checker, **dict.fromkeys(absent)}


def _header(file: Path) -> Shapes:
    """The shapes of the weights by name, without loading weights."""
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"model {file} is no safetensors file: {error}") from error


def _require_pipeline_weights(file: Path, shapes: Shapes) -> None:
    """Raise ValueError for a LoRA, or for a component in the folder of a pipeline, with the model that is expected instead."""
    if any(LORA_WEIGHT.search(name) for name in shapes):
        student = (file.parent / FILE_NAME).is_file()
        expected = f"the folder of the student, {file.parent}" if student else "the model that the LoRA was trained on"
        raise ValueError(f"model {file} is a LoRA, which needs its model; expects {expected}")
    if (file.parent.parent / "model_index.json").is_file():
        raise ValueError(f"model {file} is the {file.parent.name} of a pipeline; expects its folder, {file.parent.parent}")


def _index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
    return index


def _layout(file: Path, index: Mapping[str, Any]) -> OriginalLayout:
    layout = family_called(index["_class_name"]).original_layout
    if layout is None:
        raise ValueError(f"model {file}: a {index['_class_name']} in one file is not supported; expects a diffusers folder")
    return layout


def _config_folder(file: Path, shapes: Shapes, config: str | None) -> Path:
    known = sorted(folder.name for folder in ARCHITECTURES.iterdir())
    if config is None:
        layouts = (family.original_layout for family in FAMILIES if family.original_layout is not None)
        try:
            found = next((name for layout in layouts if (name := layout.architecture(shapes)) is not None), None)
        except ValueError as error:
            raise ValueError(f"model {file}: its architecture cannot be inferred ({error})") from error
        if found is None:
            raise ValueError(
                f"model {file}: its architecture cannot be inferred from the names of its weights; expects a checkpoint in the "
                f"layout of its release, or teacher_config: a folder with its configs, or one of {', '.join(known)}"
            )
        return ARCHITECTURES / found
    if config in known:
        return ARCHITECTURES / config
    if not (Path(config) / "model_index.json").is_file():
        raise ValueError(
            f"teacher_config {config} has no model_index.json; expects a diffusers folder, or one of {', '.join(known)}"
        )
    return Path(config)


def _networks(index: Mapping[str, Any]) -> dict[str, Any]:
    """The classes of a pipeline's networks, by component."""
    kinds = {name: network_class(entry) for name, entry in index.items() if name not in (*OPTIONAL, "safety_checker")}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _absent(index: Mapping[str, Any], folder: Path, shapes: Shapes, layout: OriginalLayout) -> Iterator[str]:
    """The components that neither the checkpoint nor the folder has."""
    for name in _networks(index):
        if not layout.holds(name, shapes) and not any((folder / name).glob("*.safetensors")):
            yield name
    yield from (name for name, kind in _lacking_tokenizers(index, folder).items() if not kind.startswith("CLIP"))


def _lacking_tokenizers(index: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The classes of the tokenizers that a folder lacks, by component."""
    entries = {name: entry for name, entry in index.items() if name.startswith("tokenizer") and entry[1] is not None}
    return {name: entry[1] for name, entry in entries.items() if not (folder / name).is_dir()}


def _tokenizers(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """CLIP's tokenizer for each tokenizer that the folder lacks.

    Raises:
        ValueError: the text encoder has another vocabulary than CLIP's.
    """
    tokenizers: dict[str, Any] = {}
    for name in _lacking_tokenizers(index, folder):
        encoder = json.loads((folder / name.replace("tokenizer", "text_encoder") / "config.json").read_text())
        if encoder["vocab_size"] != CLIP_VOCABULARY:
            raise ValueError(
                f"teacher_config {folder} has no {name}, and its text encoder has {encoder['vocab_size']} tokens, not "
                f"CLIP's {CLIP_VOCABULARY}; expects a folder with {name}/vocab.json and {name}/merges.txt"
            )
        tokenizers[name] = clip_tokenizer(pad_token=END if encoder["hidden_act"] == "quick_gelu" else "!")
    return tokenizers


def clip_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """CLIP's tokenizer from the merges in the package, without a download.

    Args:
        pad_token: OpenAI's CLIP pads with the end token; OpenCLIP (Stable Diffusion 2, XL's second encoder) with "!", token 0.
    """
    merges = gzip.decompress(MERGES.read_bytes()).decode()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves; others follow at 256
    characters = [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]
    merged = [line.replace(" ", "") for line in merges.splitlines()[1:]]
    tokens = [*characters, *(f"{character}</w>" for character in characters), *merged, START, END]
    with TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
        (Path(folder) / "merges.txt").write_text(merges, encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, pad_token=pad_token, model_max_length=77)
