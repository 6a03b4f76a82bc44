"""Save and restore the layer shapes of a pruned network as JSON, so that no pickle is needed.

The class and the constructor arguments of a pruned network do not determine its shapes. `record` returns the shapes of its
layers as JSON; `apply` gives a newly built network these shapes, after which the weights (safetensors) load strictly.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from gendistill.networks.pruning.layers import channel_axis, count_of, counts_of, sides
from gendistill.networks.pruning.separable import SeparableConv2d

VERSION, REMOVING_VERSION = 1, 2  # without and with removed blocks
PARTS = ("separable", "layers", "parameters", "attributes")


class RemovedBlock(nn.Module):
    """Stands where a residual block has been removed: outputs its first argument times `scale`."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        return x if self.scale == 1 else x * self.scale


def remove_blocks(network: nn.Module, removed: Mapping[str, float]) -> None:
    """Replace the modules at some paths by `RemovedBlock`s with the given scales, in place."""
    for path, scale in removed.items():
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, RemovedBlock(scale))


def duplicate(network: nn.Module) -> Any:
    """A deep copy, also of a network with old-style weight norm, whose non-leaf weights torch cannot copy after a forward."""
    values = [value for module in network.modules() for value in vars(module).values()]
    return copy.deepcopy(network, {id(x): x.detach().clone() for x in values if isinstance(x, Tensor) and not x.is_leaf})


def integers(module: nn.Module) -> dict[str, int]:
    """The public integer attributes of a user-defined module, and those in its tuples and lists (`shape.0`), by name.

    Empty for torch's own layers, except for the shape of an `Unflatten`.
    """
    attributes = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    if type(module).__module__.startswith("torch.nn"):
        attributes = {"unflattened_size": module.unflattened_size} if isinstance(module, nn.Unflatten) else {}
    single = {name: value for name, value in attributes.items() if type(value) is int}
    rows = {name: value for name, value in attributes.items() if isinstance(value, tuple | list)}
    return single | {f"{name}.{k}": n for name, row in rows.items() for k, n in enumerate(row) if type(n) is int and n > 0}


def set_integer(module: nn.Module, name: str, value: int) -> None:
    """Set an integer that `integers` lists."""
    name, _, position = name.partition(".")
    if position:
        row = getattr(module, name)
        changed = [value if k == int(position) else n for k, n in enumerate(row)]
        setattr(module, name, changed if isinstance(row, list) else tuple(changed))
    else:
        setattr(module, name, value)


def fold(network: nn.Module) -> None:
    """Replace parametrizations (spectral norm, weight norm, user-defined ones) by plain weights with their current values."""
    training = [layer for layer in network.modules() if layer.training]
    network.eval()  # in train mode, spectral norm runs a power iteration
    with torch.no_grad():
        for layer in network.modules():
            _fold_layer(layer)
    for layer in training:
        layer.training = True


def _fold_layer(layer: nn.Module) -> None:
    if parametrize.is_parametrized(layer):
        parametrizations: Any = layer.parametrizations
        shared, names = type(layer), list(parametrizations)
        computed = {name: vars(shared)[name] for name in names}  # torch deletes these from the class, which deep copies share
        for name in names:
            trained = any(weight.requires_grad for weight in parametrizations[name].parameters())
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
            weight = getattr(layer, name)
            if not isinstance(weight, nn.Parameter):  # computed from several tensors (weight norm), torch leaves a plain tensor
                delattr(layer, name)
                layer.register_parameter(name, nn.Parameter(weight.detach(), trained))
        for name in names:
            setattr(shared, name, computed[name])
    for hook in list(layer._forward_pre_hooks.values()):
        if isinstance(hook, SpectralNorm):
            remove_spectral_norm(layer, hook.name)
            _remove_spectral_norm_hook(layer)
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(layer, hook.name)
    for key, hook in list(layer._forward_pre_hooks.items()):
        name = str(getattr(hook, "name", ""))  # a hook of the user that computes the weight from `weight_orig`, as PGGAN's
        original = layer._parameters.get(f"{name}_orig")
        if original is not None and counts_of(layer) is not None and name not in layer._parameters:
            hook(layer, ())
            weight = layer.__dict__.pop(name).detach()
            del layer._forward_pre_hooks[key], layer._parameters[f"{name}_orig"]
            layer.register_parameter(name, nn.Parameter(weight, original.requires_grad))


def _remove_spectral_norm_hook(layer: nn.Module) -> None:
    """Remove the state dict hook of spectral norm, which torch's `remove_spectral_norm` does not."""
    for key, hook in list(layer._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del layer._load_state_dict_pre_hooks[key]


def _is_plain(layer: nn.Module) -> bool:
    old = any(isinstance(hook, (SpectralNorm, WeightNorm)) for hook in layer._forward_pre_hooks.values())
    return not (old or parametrize.is_parametrized(layer))


def record(network: nn.Module) -> dict[str, Any]:
    """The shapes of a network's layers, as JSON.

    Returns:
        `removed`: the scales of removed blocks by path, if there are any; `separable`: convolutions that became
        depthwise-separable; `layers`: the channel counts of each layer by path, and whether its weight is plain (without
        parametrization); `parameters`: shapes of bare parameters; `attributes`: integers that other modules store, as their
        forward may depend on them.
    """
    layers: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    for path, module in network.named_modules():
        if (names := counts_of(module)) is not None:
            layers[path] = {name: _plain_number(getattr(module, name)) for name in names} | {"plain": _is_plain(module)}
        elif numbers := integers(module):
            attributes[path] = numbers
    convolutions = {path: layer for path, layer in network.named_modules() if isinstance(layer, SeparableConv2d)}
    separable = {path: {"bias": layer.pointwise.bias is not None} for path, layer in convolutions.items()}
    shapes = {path: list(weight.shape) for path, weight in _bare(network)}
    blocks = {path: block.scale for path, block in network.named_modules() if isinstance(block, RemovedBlock)}
    removed: dict[str, Any] = {"version": REMOVING_VERSION, "removed": blocks} if blocks else {"version": VERSION}
    return {**removed, "separable": separable, "layers": layers, "parameters": shapes, "attributes": attributes}


def apply(network: nn.Module, shapes: Mapping[str, Any]) -> nn.Module:
    """Give a newly built network the recorded shapes, in place; resized weights are uninitialized until a state dict is loaded.

    Works on the meta device. A network that already has the recorded shapes is unchanged.

    Raises:
        ValueError: the record is malformed or belongs to another network.
    """
    if not isinstance(shapes, Mapping) or shapes.get("version") not in (VERSION, REMOVING_VERSION):
        raise ValueError(f"pruned architecture: expects version {VERSION} or {REMOVING_VERSION}; got {_version(shapes)}.")
    _apply_removed(network, shapes.get("removed", {}))
    for part in PARTS:
        if not isinstance(shapes.get(part), Mapping):
            raise ValueError(f"pruned architecture {part}: expects an object by paths; got {type(shapes.get(part)).__name__}.")
    for path, settings in shapes["separable"].items():
        convolution = _find(network, path, "separable")
        if not isinstance(convolution, (nn.Conv2d, SeparableConv2d)):
            raise ValueError(
                f"pruned architecture {path}: separable expects a Conv2d; the network has a {type(convolution).__name__}."
            )
        if isinstance(convolution, nn.Conv2d):
            parent, _, name = path.rpartition(".")
            if settings != (expected := {"bias": convolution.bias is not None}):
                bias = str(expected["bias"]).lower()
                raise ValueError(f"pruned architecture separable: expects bias {bias}; got {str(settings)[:60]}.")
            setattr(_find(network, parent, "separable"), name, SeparableConv2d(convolution))
    for path, counts in shapes["layers"].items():
        _apply_layer(path, _find(network, path, "layers"), counts)
    bare = dict(_bare(network))
    for path, shape in shapes["parameters"].items():
        if path not in bare:
            raise ValueError(f"pruned architecture parameters: the network has no {path}{_nearest(path, bare)}.")
        _resize(network, path, _shape(path, shape, bare[path]))
    for path, numbers in shapes["attributes"].items():
        _apply_attributes(path, _find(network, path, "attributes"), numbers)
    return network


def _apply_removed(network: nn.Module, removed: Any) -> None:
    if not isinstance(removed, Mapping):
        raise ValueError(f"pruned architecture removed: expects an object by paths; got {type(removed).__name__}.")
    for path, scale in removed.items():
        _find(network, path, "removed")
        if type(scale) not in (int, float) or not math.isfinite(scale):
            raise ValueError(f"pruned architecture removed {path}: expects a number; got {str(scale)[:40]}.")
        remove_blocks(network, {path: float(scale)})


def _bare(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Bare parameters: those outside of the layers with known channel counts."""
    for path, module in network.named_modules():
        if counts_of(module) is None:
            for name, weight in module.named_parameters(recurse=False):
                yield f"{path}.{name}".lstrip("."), weight


def _apply_layer(path: str, layer: nn.Module, counts: Any) -> None:
    names = counts_of(layer)
    if names is None or not isinstance(counts, Mapping) or set(counts) != {*names, "plain"}:
        expected = "none" if names is None else ", ".join((*names, "plain"))
        raise ValueError(
            f"pruned architecture {path}: the counts of a {type(layer).__name__} are {expected}; got {_keys(counts)}."
        )
    if counts["plain"] is True:
        _fold_layer(layer)
    elif counts["plain"] is not False:
        raise ValueError(f"pruned architecture {path}: plain expects true or false; got {counts['plain']!r}.")
    for name in names:
        full = _plain_number(getattr(layer, name))
        number = _number(f"{path} {name}", counts[name], full)
        if number != full:
            setattr(layer, name, (number,) if name == "normalized_shape" else number)
    for channels_name, groups_name in (("in_channels", "groups"), ("out_channels", "groups"), ("num_channels", "num_groups")):
        if channels_name in names and getattr(layer, channels_name) % getattr(layer, groups_name):
            channels, groups = getattr(layer, channels_name), getattr(layer, groups_name)
            raise ValueError(
                f"pruned architecture {path}: {channels_name} {channels} cannot be divided by {groups} {groups_name}."
            )
    for name, shape in _shapes(layer).items():
        old = getattr(layer, name, None)
        if isinstance(old, Tensor) and tuple(old.shape) != shape:
            if counts["plain"] is False:
                raise ValueError(
                    f"pruned architecture {path}: a parametrized layer has the fixed shape {tuple(old.shape)}; got {shape}."
                )
            _resize(layer, name, shape)


def _shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's tensors that follow from its channel counts."""
    if isinstance(layer, nn.LayerNorm):
        return dict.fromkeys(("weight", "bias"), tuple(layer.normalized_shape))
    inputs, outputs = sides(layer)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("bias", "running_mean", "running_var"), (count_of(layer, outputs),))
    if isinstance(weight := getattr(layer, "weight", None), Tensor):
        sizes = list(weight.shape)
        for axis, side in ((channel_axis(layer, side), side) for side in (inputs, outputs)):
            sizes[axis] = count_of(layer, side) // (getattr(layer, "groups", 1) if axis == 1 else 1)
        shapes["weight"] = tuple(sizes)
    return shapes


def _apply_attributes(path: str, module: nn.Module, numbers: Any) -> None:
    known, field = integers(module), f"attributes {path or 'of the network'}"
    if not isinstance(numbers, Mapping):
        raise ValueError(f"pruned architecture {field}: expects an object of numbers; got {type(numbers).__name__}.")
    for name, number in numbers.items():
        if name not in known:
            raise ValueError(f"pruned architecture {field}: the network has no number {name}{_nearest(name, known)}.")
        if number != known[name]:
            set_integer(module, name, _number(f"{field} {name}", number, known[name]))


def _number(field: str, number: Any, full: Any) -> Any:
    if number == full and type(number) is type(full):
        return number
    if type(number) is not int or type(full) is not int or not 1 <= number <= full:
        raise ValueError(f"pruned architecture {field}: expects an integer from 1 to {full}; got {str(number)[:40]}.")
    return number


def _shape(path: str, shape: Any, old: Tensor) -> tuple[int, ...]:
    fits = isinstance(shape, list) and len(shape) == old.ndim
    if not fits or not all(type(n) is int and min(1, full) <= n <= full for n, full in zip(shape, old.shape, strict=True)):
        raise ValueError(f"pruned architecture {path}: expects a shape up to {list(old.shape)}; got {str(shape)[:60]}.")
    return tuple(shape)


def _resize(network: nn.Module, path: str, shape: tuple[int, ...]) -> None:
    parent, _, name = path.rpartition(".")
    owner = network.get_submodule(parent)
    old = getattr(owner, name)
    if tuple(old.shape) == shape:
        return
    empty = torch.empty(shape, dtype=old.dtype, device=old.device)
    setattr(owner, name, nn.Parameter(empty, old.requires_grad) if isinstance(old, nn.Parameter) else empty)


def _plain_number(value: Any) -> Any:
    """A count as JSON: a single number for a layer norm over one dimension."""
    if isinstance(value, tuple):
        return value[0] if len(value) == 1 else list(value)
    return value


def _find(network: nn.Module, path: Any, part: str) -> nn.Module:
    modules = dict(network.named_modules())
    if not isinstance(path, str) or path not in modules:
        raise ValueError(f"pruned architecture {part}: the network has no module {path}{_nearest(str(path), modules)}.")
    return modules[path]


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (the nearest is {close[0]})" if close else ""


def _keys(value: Any) -> str:
    return ", ".join(map(str, value))[:80] or "none" if isinstance(value, Mapping) else type(value).__name__


def _version(shapes: Any) -> str:
    return f"version {shapes.get('version')!r}"[:60] if isinstance(shapes, Mapping) else f"a {type(shapes).__name__}"
