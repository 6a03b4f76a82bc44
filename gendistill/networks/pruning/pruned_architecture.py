"""Pruned networks as data: what shapes they have, beside their class, so that no pickle is needed to open them.

A pruned network cannot be built from its class and arguments alone. `record` writes down the shapes of its layers as JSON;
`apply` gives a freshly built network these shapes, after which the weights (safetensors) load strictly.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from gendistill.networks.pruning.layers import channel_axis, count_of, counts_of, sides
from gendistill.networks.pruning.separable import SeparableConv2d

VERSION = 1
PARTS = ("separable", "layers", "parameters", "attributes")


def duplicate(network: nn.Module) -> Any:
    """A deep copy, also of a network that has just run: old-style weight norm leaves results in it, which torch won't copy."""
    held = [value for module in network.modules() for value in vars(module).values()]
    return copy.deepcopy(network, {id(x): x.detach().clone() for x in held if isinstance(x, Tensor) and not x.is_leaf})


def integers(module: nn.Module) -> dict[str, int]:
    """Public whole numbers that a module of the user's own holds; none of torch's own layers."""
    if type(module).__module__.startswith("torch.nn"):
        return {}
    own = vars(module).items()
    return {name: value for name, value in own if type(value) is int and not name.startswith("_") and name != "training"}


def fold(network: nn.Module) -> None:
    """Make the weights of parametrised layers (spectral norm, weight norm, of the user's own) plain, as they are now."""
    training = [layer for layer in network.modules() if layer.training]
    network.eval()  # a spectral norm in training would take another step
    with torch.no_grad():
        for layer in network.modules():
            _fold_layer(layer)
    for layer in training:
        layer.training = True


def _fold_layer(layer: nn.Module) -> None:
    if parametrize.is_parametrized(layer):
        shared, names = type(layer), list(layer.parametrizations)  # type: ignore[arg-type]
        computed = {name: vars(shared)[name] for name in names}  # torch takes these from the class, which deep copies share
        for name in names:
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
        for name in names:
            setattr(shared, name, computed[name])
    for hook in list(layer._forward_pre_hooks.values()):
        if isinstance(hook, SpectralNorm):
            remove_spectral_norm(layer, hook.name)
            _forget_spectral_norm(layer)
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(layer, hook.name)


def _forget_spectral_norm(layer: nn.Module) -> None:
    """torch leaves behind the hook that makes a state dict's plain weight into one under spectral norm."""
    for key, hook in list(layer._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del layer._load_state_dict_pre_hooks[key]


def _is_plain(layer: nn.Module) -> bool:
    old = any(isinstance(hook, (SpectralNorm, WeightNorm)) for hook in layer._forward_pre_hooks.values())
    return not (old or parametrize.is_parametrized(layer))


def record(network: nn.Module) -> dict[str, Any]:
    """The shapes of a network's layers, as JSON.

    Returns:
        `separable`: convolutions that became depthwise-separable, `layers`: the counts of each layer by its path and
        whether its weight is plain, `parameters`: shapes of those that belong to no layer, `attributes`: whole numbers
        that other modules hold, which their forward may read.
    """
    layers: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    for path, module in network.named_modules():
        if (names := counts_of(module)) is not None:
            layers[path] = {name: _plain_number(getattr(module, name)) for name in names} | {"plain": _is_plain(module)}
        elif held := integers(module):
            attributes[path] = held
    found = {path: layer for path, layer in network.named_modules() if isinstance(layer, SeparableConv2d)}
    separable = {path: {"bias": layer.pointwise.bias is not None} for path, layer in found.items()}
    shapes = {path: list(weight.shape) for path, weight in _bare(network)}
    return {"version": VERSION, "separable": separable, "layers": layers, "parameters": shapes, "attributes": attributes}


def apply(network: nn.Module, shapes: Mapping[str, Any]) -> nn.Module:
    """Give a freshly built network the recorded shapes, in place; new weights are empty until a state dict is loaded.

    Works on the meta device. A network of the recorded shapes already stays as it is.

    Raises:
        ValueError: the record is of another network or no record.
    """
    if not isinstance(shapes, Mapping) or shapes.get("version") != VERSION:
        raise ValueError(f"slim record: expects version {VERSION}; got {_version(shapes)}.")
    for part in PARTS:
        if not isinstance(shapes.get(part), Mapping):
            raise ValueError(f"slim record {part}: expects an object by paths; got {type(shapes.get(part)).__name__}.")
    for path, settings in shapes["separable"].items():
        convolution = _find(network, path, "separable")
        if not isinstance(convolution, (nn.Conv2d, SeparableConv2d)):
            raise ValueError(f"slim record {path}: separable takes a Conv2d; the network has a {type(convolution).__name__}.")
        if isinstance(convolution, nn.Conv2d):
            parent, _, name = path.rpartition(".")
            if settings != (expected := {"bias": convolution.bias is not None}):
                bias = str(expected["bias"]).lower()
                raise ValueError(f"slim record separable: expects bias {bias}; got {str(settings)[:60]}.")
            setattr(_find(network, parent, "separable"), name, SeparableConv2d(convolution))
    for path, counts in shapes["layers"].items():
        _apply_layer(path, _find(network, path, "layers"), counts)
    bare = dict(_bare(network))
    for path, shape in shapes["parameters"].items():
        if path not in bare:
            raise ValueError(f"slim record parameters: the network has no {path}{_nearest(path, bare)}.")
        _resize(network, path, _shape(path, shape, bare[path]))
    for path, numbers in shapes["attributes"].items():
        _apply_attributes(path, _find(network, path, "attributes"), numbers)
    return network


def _bare(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that belong to no layer of known counts."""
    for path, module in network.named_modules():
        if counts_of(module) is None:
            for name, weight in module.named_parameters(recurse=False):
                yield f"{path}.{name}".lstrip("."), weight


def _apply_layer(path: str, layer: nn.Module, counts: Any) -> None:
    names = counts_of(layer)
    if names is None or not isinstance(counts, Mapping) or set(counts) != {*names, "plain"}:
        takes = "none" if names is None else ", ".join((*names, "plain"))
        raise ValueError(f"slim record {path}: the counts of a {type(layer).__name__} are {takes}; got {_keys(counts)}.")
    if counts["plain"] is True:
        _fold_layer(layer)
    elif counts["plain"] is not False:
        raise ValueError(f"slim record {path}: plain takes true or false; got {counts['plain']!r}.")
    for name in names:
        whole = _plain_number(getattr(layer, name))
        number = _number(f"{path} {name}", counts[name], whole)
        if number != whole:
            setattr(layer, name, (number,) if name == "normalized_shape" else number)
    for whole_name, part_name in (("in_channels", "groups"), ("out_channels", "groups"), ("num_channels", "num_groups")):
        if whole_name in names and getattr(layer, whole_name) % getattr(layer, part_name):
            whole, part = getattr(layer, whole_name), getattr(layer, part_name)
            raise ValueError(f"slim record {path}: {whole_name} {whole} does not divide into {part} {part_name}.")
    for name, shape in _shapes(layer).items():
        old = getattr(layer, name, None)
        if isinstance(old, Tensor) and tuple(old.shape) != shape:
            if counts["plain"] is False:
                raise ValueError(f"slim record {path}: a parametrised layer keeps its shape {tuple(old.shape)}; got {shape}.")
            _resize(layer, name, shape)


def _shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """What a layer's tensors must be by its counts."""
    if isinstance(layer, nn.LayerNorm):
        return dict.fromkeys(("weight", "bias"), tuple(layer.normalized_shape))
    into, out = sides(layer)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("bias", "running_mean", "running_var"), (count_of(layer, out),))
    if isinstance(weight := getattr(layer, "weight", None), Tensor):
        sizes = list(weight.shape)
        for axis, side in ((channel_axis(layer, side), side) for side in (into, out)):
            sizes[axis] = count_of(layer, side) // (getattr(layer, "groups", 1) if axis == 1 else 1)
        shapes["weight"] = tuple(sizes)
    return shapes


def _apply_attributes(path: str, module: nn.Module, numbers: Any) -> None:
    held = integers(module)
    if not isinstance(numbers, Mapping):
        raise ValueError(
            f"slim record attributes {path or 'of the network'}: expects an object of numbers; got {type(numbers).__name__}."
        )
    for name, number in numbers.items():
        if name not in held:
            raise ValueError(
                f"slim record attributes {path or 'of the network'}: the network has no number {name}{_nearest(name, held)}."
            )
        if number != held[name]:
            setattr(module, name, _number(f"attributes {path or 'of the network'} {name}", number, held[name]))


def _number(what: str, number: Any, whole: Any) -> Any:
    if number == whole and type(number) is type(whole):
        return number
    if type(number) is not int or type(whole) is not int or not 1 <= number <= whole:
        raise ValueError(f"slim record {what}: expects a whole number from 1 to {whole}; got {str(number)[:40]}.")
    return number


def _shape(path: str, shape: Any, old: Tensor) -> tuple[int, ...]:
    fits = isinstance(shape, list) and len(shape) == old.ndim
    if not fits or not all(type(n) is int and min(1, most) <= n <= most for n, most in zip(shape, old.shape, strict=True)):
        raise ValueError(f"slim record {path}: expects a shape up to {list(old.shape)}; got {str(shape)[:60]}.")
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
    """A count as JSON: one number where the shape of a layer norm has one dimension."""
    if isinstance(value, tuple):
        return value[0] if len(value) == 1 else list(value)
    return value


def _find(network: nn.Module, path: Any, part: str) -> nn.Module:
    modules = dict(network.named_modules())
    if not isinstance(path, str) or path not in modules:
        raise ValueError(f"slim record {part}: the network has no module {path}{_nearest(str(path), modules)}.")
    return modules[path]


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (the nearest is {close[0]})" if close else ""


def _keys(value: Any) -> str:
    return ", ".join(map(str, value))[:80] or "none" if isinstance(value, Mapping) else type(value).__name__


def _version(shapes: Any) -> str:
    return f"version {shapes.get('version')!r}"[:60] if isinstance(shapes, Mapping) else f"a {type(shapes).__name__}"
