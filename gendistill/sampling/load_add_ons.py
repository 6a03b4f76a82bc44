"""A LoRA or a ControlNet that someone made, put onto a pipeline by diffusers; why not in a sentence, where that fails."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.utils import convert_unet_state_dict_to_peft, logging
from torch import Tensor, nn

from gendistill.samplers.families import family_of, network_of
from gendistill.samplers.missing_weights import require_loaded

LORA_FILE = "pytorch_lora_weights.safetensors"
ADAPTER = "does-it-fit"


class DoesNotLoadError(Exception):
    """An add-on does not load into a model, or does not run in it: why, in a sentence, and the modules that it does not fit."""

    def __init__(self, sentence: str, unfit: Sequence[str] = ()) -> None:
        super().__init__(sentence)
        self.unfit = list(unfit)


def lora_file(lora: str | Path) -> Path:
    """The file that is meant: itself, or `pytorch_lora_weights.safetensors` in a folder; ValueError where there is none."""
    file = Path(lora) / LORA_FILE if Path(lora).is_dir() else Path(lora)
    if file.suffix != ".safetensors" or not file.is_file():
        raise ValueError(f"lora {lora}: expects a .safetensors file that is there, or a folder with {LORA_FILE}")
    return file


def require_control(control: str | Path, image: Tensor, size: tuple[int, int]) -> None:
    """Raise ValueError where there is no ControlNet in a folder, or its image is not (3, *size)."""
    if not (Path(control) / "config.json").is_file():
        raise ValueError(f"control {control}: expects the folder of a ControlNet that is there, with its config.json")
    if tuple(image.shape) != (3, *size):
        raise ValueError(f"control image: got {tuple(image.shape)}, expects {(3, *size)}, as large as what is sampled")


def tried(action: Callable[[], Any], what: str) -> Any:
    """What an action gives; whatever a stranger's file makes diffusers and PEFT raise, as one sentence."""
    try:
        return action()
    except torch.OutOfMemoryError:
        raise  # the machine's fault, not the file's
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DoesNotLoadError(f"{what} ({' '.join(' '.join(lines[:2]).split()).rstrip('.')})") from error


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Without what diffusers and PEFT tell of files that do not fit, which is said in a sentence of ours."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def with_lora(pipeline: Any, file: Path) -> tuple[Any, list[str], str]:
    """A copy of a pipeline with a LoRA on, the modules of its network that it does not fit, and a sentence on them.

    A copy, so that a load that fails half-way leaves nothing behind, and neither does one that succeeds.

    Raises:
        DoesNotLoadError: with the modules that it does not fit.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        raise DoesNotLoadError(f"a {type(pipeline).__name__} expects no LoRA")
    source: dict[str, Any] = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    network, failed = network_of(pipeline), f"{file.name} does not load"
    state = tried(lambda: pipeline.lora_state_dict(str(file.parent), unet_config=network.config, **source)[0], failed)
    modules, absent, other_widths = _fitting(state, network)
    unfit = [*other_widths, *absent]
    if other_widths:  # which diffusers loads nothing of, and logs all
        name, why = next(iter(other_widths.items()))
        some = f"{len(unfit)} of {len(modules)} modules do not fit, such as {name}"
        raise DoesNotLoadError(f"{failed}: {some}, which {why}", unfit)
    if modules and len(absent) == len(modules):
        raise DoesNotLoadError(f"{failed}: the network has none of its {len(modules)} modules, such as {absent[0]}", unfit)
    copied = copy.copy(pipeline)
    parts = [name for name in pipeline._lora_loadable_modules if isinstance(getattr(pipeline, name, None), nn.Module)]
    for name in parts:
        setattr(copied, name, copy.deepcopy(getattr(pipeline, name)))
    before: list[str] = []
    for part in (getattr(copied, name) for name in parts):
        before += part.active_adapters() if getattr(part, "_hf_peft_config_loaded", False) else []
    with _quiet_diffusers():
        tried(lambda: copied.load_lora_weights(str(file.parent), adapter_name=ADAPTER, **source), failed)
    if not any(ADAPTER in adapters for adapters in copied.get_list_adapters().values()):
        raise DoesNotLoadError(f"nothing of {file.name} found a place", unfit)
    copied.set_adapters([*dict.fromkeys(before), ADAPTER])
    some = f"{len(absent)} of {len(modules)} modules of {file.name} were left out, as the network has none called so: "
    some += ", ".join(absent[:2]) + (f" and {len(absent) - 2} more" if absent[2:] else "")
    return copied, unfit, some if absent else ""


def _fitting(state: dict[str, Tensor], network: nn.Module) -> tuple[set[str], list[str], dict[str, str]]:
    """The modules of a network that a LoRA has weights for; those that are not there; and those of another width, and why."""
    prefix = "unet."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix) and "lora" in key}
    if own and not any("lora_A" in key for key in own):
        own = convert_unet_state_dict_to_peft(own)
    there = dict(network.named_modules())
    modules, other_widths = set(), {}
    for key, value in sorted(own.items()):
        name, _, matrix = key.partition(".lora_")
        modules.add(name)
        weight = getattr(there.get(name), "weight", None)
        if weight is not None and matrix.startswith("A") and value.shape[1] != weight.shape[1]:
            other_widths[name] = f"takes {weight.shape[1]} inputs, and {value.shape[1]} in the LoRA"
        elif weight is not None and matrix.startswith("B") and value.shape[0] != weight.shape[0]:
            other_widths.setdefault(name, f"gives {weight.shape[0]} outputs, and {value.shape[0]} in the LoRA")
    return modules, sorted(name for name in modules if getattr(there.get(name), "weight", None) is None), other_widths


def open_control(pipeline: Any, control: Path) -> tuple[ControlNetModel, str]:
    """A ControlNet beside a pipeline's network, and a sentence where not all that it adds to is there.

    Raises:
        DoesNotLoadError: there is no ControlNet pipeline for this family, or the folder cannot be opened.
    """
    if not family_of(pipeline).texts:
        raise DoesNotLoadError(f"a {type(pipeline).__name__} expects no ControlNet")
    network, failed = network_of(pipeline), f"{control.name} does not load"
    settings: dict[str, Any] = {"use_safetensors": True, "torch_dtype": network.dtype}
    opened = tried(lambda: ControlNetModel.from_pretrained(str(control), **settings), failed)
    tried(lambda: require_loaded(control, {"controlnet": opened}), failed)
    # diffusers adds one to the other as far as both go, without a word where one is longer
    skips = 1 + sum(len(block.resnets) + len(block.downsamplers or ()) for block in network.down_blocks)
    added = len(opened.controlnet_down_blocks)
    note = f"{control.name} adds to {added} skip connections and the network has {skips}, so that they are not paired as made"
    return opened.to(pipeline.device).eval(), note if added != skips else ""
