"""Open a `.safetensors` checkpoint in Stable Diffusion's original layout, without access to the hub."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from gendistill.samplers.families import require_supported
from gendistill.samplers.missing_weights import require_all

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
ARCHITECTURES = Path(__file__).parent / "architectures"
PARTS = {
    "UNet": ("model.diffusion_model.",),
    "VAE": ("first_stage_model.",),
    "text encoder": ("cond_stage_model.", "conditioner."),
}
OPTIONAL = ("feature_extractor", "image_encoder")  # pipelines sample without them
MERGES = Path(__file__).parent / "clip-merges" / "merges.txt.gz"
CLIP_VOCABULARY = 49408
START, END = "<|startoftext|>", "<|endoftext|>"


def architecture_of(file: Path, config: str | None = None) -> Path:
    """The folder with the configs of a checkpoint's pipeline; only the checkpoint's header is read.

    Args:
        config: the name of an architecture in `architectures/`, or a folder in diffusers' layout, which needs no weights; by
            default the architecture is inferred from the names of the weights. A folder without a tokenizer gets CLIP's.

    Raises:
        ValueError: the file does not exist, is a pickle or lacks a part, or its architecture cannot be inferred.
    """
    if not file.is_file():
        raise ValueError(f"model {file} does not exist; expects a .safetensors checkpoint, a diffusers folder or a hub id")
    if file.suffix != ".safetensors":
        raise ValueError(f"model {file} is a pickle, which may run code when it is opened; expects a .safetensors checkpoint")
    names, channels = _header(file)
    for part, prefix in PARTS.items():
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(
                f"model {file} holds no {part}; expects a complete checkpoint: UNet, VAE and text encoder in one file"
            )
    if channels not in (None, 4):
        raise ValueError(
            f"model {file} has {channels} input channels, for inpainting or editing; expects a text-to-image model"
        )
    folder = _config_folder(file, names, config)
    require_supported(file, json.loads((folder / "model_index.json").read_text())["_class_name"])
    return folder


def open_single_file(file: Path, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Open the pipeline of a checkpoint by diffusers' conversion.

    Args:
        folder: the result of `architecture_of`.

    Raises:
        ValueError: the weights do not fit the architecture, or some are missing.
    """
    index = json.loads((folder / "model_index.json").read_text())
    parts = {**_tokenizers(folder, index), **left_out(index, folder)}
    try:
        pipeline = getattr(diffusers, index["_class_name"]).from_single_file(
            str(file),
            config=str(folder),
            local_files_only=True,
            torch_dtype=dtype,
            **parts,
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # from weights with other shapes or names
        if isinstance(error, NotImplementedError):  # from weights that the file lacks, which stay on the meta device
            _require_weights(file, folder)
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model {file} does not fit the architecture in {folder} ({reason}); expects another one") from error
    names, _ = _header(file)
    if "v_pred" in names or "ztsnr" in names:
        pipeline.scheduler = _marked_scheduler(pipeline.scheduler, names)
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


def _header(file: Path) -> tuple[set[str], int | None]:
    """The names of the weights and the number of input channels of the UNet, without loading weights."""
    first = "model.diffusion_model.input_blocks.0.0.weight"
    try:
        with safe_open(file, framework="pt") as weights:
            names = set(weights.keys())
            return names, weights.get_slice(first).get_shape()[1] if first in names else None
    except SafetensorError as error:
        raise ValueError(f"model {file} is no safetensors file: {error}") from error


def _config_folder(file: Path, names: set[str], config: str | None) -> Path:
    known = sorted(folder.name for folder in ARCHITECTURES.iterdir())
    if config is None:
        if any(name.startswith("conditioner.embedders.1.") for name in names):
            return ARCHITECTURES / "sdxl"
        if any(name.startswith("cond_stage_model.transformer.") for name in names):
            return ARCHITECTURES / "sd1"
        raise ValueError(
            f"model {file}: its architecture cannot be inferred (a Stable Diffusion 2 file does not name its prediction type); "
            f"expects teacher_config: sd2-base (epsilon, 512 pixels), sd2-v (v, 768 pixels), or a folder with its configs"
        )
    if config in known:
        return ARCHITECTURES / config
    if not (Path(config) / "model_index.json").is_file():
        raise ValueError(
            f"teacher_config {config} has no model_index.json; expects a diffusers folder, or one of {', '.join(known)}"
        )
    return Path(config)


def _tokenizers(folder: Path, index: dict[str, Any]) -> dict[str, CLIPTokenizer]:
    """CLIP's tokenizer for each tokenizer that the folder lacks.

    Raises:
        ValueError: the text encoder has another vocabulary than CLIP's.
    """
    tokenizers: dict[str, CLIPTokenizer] = {}
    for name in [name for name in ("tokenizer", "tokenizer_2") if name in index and not (folder / name).is_dir()]:
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


def _marked_scheduler(scheduler: Any, names: set[str]) -> Any:
    """The scheduler of a fine-tune that marks v-prediction and zero terminal SNR by empty tensors, `v_pred` and `ztsnr`."""
    changes: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in names else {}
    if "ztsnr" in names:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return diffusers.DDIMScheduler.from_config(scheduler.config, **changes, clip_sample=False, set_alpha_to_one=False)
