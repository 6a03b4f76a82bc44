"""Load a LoRA or a ControlNet into a pipeline with diffusers; a failure is reported in one sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from gendistill.samplers.families import family_of, network_of
from gendistill.samplers.layouts.lora_files import lora_source, lora_weights
from gendistill.samplers.loras import fitting_modules, quiet_diffusers
from gendistill.samplers.missing_weights import open_network, require_finite, require_pairs

ADAPTER = "does-it-fit"


class DoesNotLoadError(Exception):
    """An add-on cannot be loaded into a model or run with it: a sentence with the reason, and the modules that do not fit."""

    def __init__(self, sentence: str, unfit: Sequence[str] = ()) -> None:
        super().__init__(sentence)
        self.unfit = list(unfit)


def require_control(control: str | Path, image: Tensor, size: tuple[int, int]) -> None:
    """Raise ValueError if a folder has no ControlNet, or its image is not (3, *size)."""
    if not (Path(control) / "config.json").is_file():
        raise ValueError(f"control {control}: expects an existing folder of a ControlNet, with its config.json")
    if tuple(image.shape) != (3, *size):
        raise ValueError(f"control image: got {tuple(image.shape)}, expects {(3, *size)}, the size of the sampled images")


def tried(action: Callable[[], Any], failure: str) -> Any:
    """The result of an action; an exception of diffusers or PEFT becomes a DoesNotLoadError that begins with `failure`."""
    try:
        return action()
    except torch.OutOfMemoryError:
        raise  # not an error of the file
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DoesNotLoadError(f"{failure} ({' '.join(' '.join(lines[:2]).split()).rstrip('.')})") from error


def with_lora(pipeline: Any, file: Path) -> tuple[Any, list[str], str]:
    """A copy of a pipeline with a LoRA loaded, the modules of the network that the LoRA does not fit, and a sentence on them.

    The original pipeline does not change, neither on success nor on failure.

    Raises:
        DoesNotLoadError: the LoRA cannot be loaded; with the modules that it does not fit.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        raise DoesNotLoadError(f"a {type(pipeline).__name__} does not support LoRA")
    network, failed = network_of(pipeline), f"{file.name} does not load"
    state = tried(lambda: lora_weights(pipeline, file), failed)
    tried(lambda: require_pairs(file.name, state), failed)
    tried(lambda: require_finite(file.name, state), failed)
    modules, absent, other_widths = fitting_modules(state, network, family_of(pipeline).network_part)
    unfit = [*other_widths, *absent]
    if other_widths:  # diffusers then loads nothing, and logs all modules
        name, reason = next(iter(other_widths.items()))
        summary = f"{len(unfit)} of {len(modules)} modules do not fit, such as {name}"
        raise DoesNotLoadError(f"{failed}: {summary}, which {reason}", unfit)
    if modules and len(absent) == len(modules):
        raise DoesNotLoadError(f"{failed}: the network has none of its {len(modules)} modules, such as {absent[0]}", unfit)
    copied = copy.copy(pipeline)
    components = [name for name in pipeline._lora_loadable_modules if isinstance(getattr(pipeline, name, None), nn.Module)]
    for name in components:
        setattr(copied, name, copy.deepcopy(getattr(pipeline, name)))
    active: list[str] = []
    for component in (getattr(copied, name) for name in components):
        active += component.active_adapters() if getattr(component, "_hf_peft_config_loaded", False) else []
    with quiet_diffusers():
        source, settings = lora_source(pipeline, file)
        tried(lambda: copied.load_lora_weights(source, adapter_name=ADAPTER, **settings), failed)
    if not any(ADAPTER in adapters for adapters in copied.get_list_adapters().values()):
        raise DoesNotLoadError(f"no module of {file.name} was loaded", unfit)
    copied.set_adapters([*dict.fromkeys(active), ADAPTER])
    note = f"{len(absent)} of {len(modules)} modules of {file.name} were skipped, which the network does not have: "
    note += ", ".join(absent[:2]) + (f" and {len(absent) - 2} more" if absent[2:] else "")
    return copied, unfit, note if absent else ""


def control_network(pipeline: Any, control: Path) -> Any:
    """A ControlNet in the dtype of a pipeline, on its device.

    Raises:
        ValueError: the folder has no ControlNet, or one for another network, or it cannot be opened.
    """
    name = str(json.loads((control / "config.json").read_text()).get("_class_name"))
    network, expected = network_of(pipeline), f"{type(network_of(pipeline)).__name__.removesuffix('Transformer2DModel')}"
    expected = "ControlNetModel" if expected.startswith("UNet") else f"{expected}ControlNetModel"
    if name != expected or not hasattr(diffusers, expected):
        raise ValueError(f"control {control}: is a {name}; a {type(pipeline).__name__} expects a {expected}")
    opened = open_network(getattr(diffusers, name), control, control, "controlnet", network.dtype)
    return opened.to(family_of(pipeline).device(pipeline)).eval()


def open_control(pipeline: Any, control: Path) -> tuple[Any, str]:
    """A ControlNet for a pipeline, and a sentence if its numbers of skip connections differ.

    Raises:
        DoesNotLoadError: there is no ControlNet pipeline for this family, or the folder cannot be opened.
    """
    if not family_of(pipeline).texts:
        raise DoesNotLoadError(f"a {type(pipeline).__name__} does not support ControlNets")
    network = network_of(pipeline)
    opened = tried(lambda: control_network(pipeline, control), f"{control.name} does not load")
    if not hasattr(opened, "controlnet_down_blocks"):
        return opened, ""
    # diffusers adds the residuals pairwise up to the shorter list, without a warning
    skips = 1 + sum(len(block.resnets) + len(block.downsamplers or ()) for block in network.down_blocks)
    residuals = len(opened.controlnet_down_blocks)
    note = f"{control.name} adds to {residuals} skip connections and the network has {skips}, so that they do not correspond"
    return opened, note if residuals != skips else ""
