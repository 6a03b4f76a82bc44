"""The width of every channel group under a budget of parameters and multiply-accumulates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from gendistill.networks.pruning.channels import ChannelGroup
from gendistill.networks.pruning.layers import LayerSide, count_of, get_module

MAX_STEPS = 200
CLOSE = 0.01  # the error at which the search stops
MAX_PAIRED = 32  # up to this number of groups, steps of two groups at once are tried too


class CostModel:
    """Parameters and multiply-accumulates of a network as a closed-form function of the widths of its channel groups.

    The weight and the multiply-accumulates of a layer are each proportional to (input channels) x (output channels).
    """

    def __init__(self, network: nn.Module, groups: Sequence[ChannelGroup], macs: dict[str, int]) -> None:
        sides: dict[LayerSide, int] = {}
        for group in groups:
            for side in group.members:
                sides.setdefault(side, len(sides))
        self.full = np.array([count_of(get_module(network, side.path), side.side) for side in sides], float)
        self.rows = np.zeros((len(sides), len(groups)))
        for k, group in enumerate(groups):
            for side, indices in group.members.items():
                self.rows[sides[side], k] = indices.shape[1]
        self.sizes = np.array([group.size for group in groups], float)
        terms: list[tuple[int, int, float, float]] = []  # indices of two sides (-1: none), parameters, multiply-accumulates
        for path in dict.fromkeys(side.path for side in sides):
            inputs, outputs, both = (sides.get(LayerSide(path, side), -1) for side in ("in", "out", "both"))
            layer = get_module(network, path)
            if isinstance(layer, nn.Parameter):
                axes = [sides.get(LayerSide(path, str(axis)), -1) for axis in range(layer.ndim)]
                first, second = (*(axis for axis in axes if axis >= 0), -1)[:2]
                terms.append((first, second, layer.numel(), self._macs_of(network, path, macs)))
                continue
            assert isinstance(layer, nn.Module)
            for name, weight in layer.named_parameters(recurse=False):
                first = outputs if name == "bias" and both < 0 else inputs
                second = -1 if name == "bias" else outputs
                terms.append((both, -1, weight.numel(), 0) if both >= 0 else (first, second, weight.numel(), 0))
            count = macs.get(path, 0)
            terms.append((both, -1, 0, count) if both >= 0 else (inputs, outputs, 0, count))
        total = (sum(weight.numel() for weight in network.parameters()), sum(macs.values()))
        self.first, self.second = np.array([term[0] for term in terms]), np.array([term[1] for term in terms])
        self.terms = np.array([term[2:] for term in terms], float).reshape(-1, 2)
        self.fixed = np.array(total, float) - self.terms.sum(0)

    @staticmethod
    def _macs_of(network: nn.Module, path: str, macs: dict[str, int]) -> int:
        """The multiply-accumulates of a bare parameter: those of its module, where it is the largest weight there."""
        parent, _, name = path.rpartition(".")
        weights = dict(get_module(network, parent).named_parameters(recurse=False))
        return macs.get(parent, 0) if max(weights, key=lambda key: weights[key].numel()) == name else 0

    def costs(self, kept: np.ndarray) -> np.ndarray:
        """(parameters, multiply-accumulates) (..., 2) where group k keeps kept[..., k] channels."""
        ratios = 1 - (self.sizes - kept) @ self.rows.T / self.full
        ratios = np.concatenate([ratios, np.ones((*ratios.shape[:-1], 1))], -1)  # index -1: one
        return self.fixed + (ratios[..., self.first] * ratios[..., self.second]) @ self.terms

    def intensity(self) -> np.ndarray:
        """log(multiply-accumulates per parameter) of each group, standardized; large at high resolutions."""
        full = self.costs(self.sizes)
        slopes = [full - self.costs(self.sizes - np.eye(len(self.sizes))[k]) for k in range(len(self.sizes))]
        logs = np.array([math.log((slope[1] + 1) / (slope[0] + 1)) for slope in slopes])
        return (logs - logs.mean()) / max(logs.std(), 1e-9)


def allowed_widths(group: ChannelGroup, multiple: int, min_width: int) -> np.ndarray:
    """The widths that a group may have, ascending: multiples of `multiple` and of its blocks, and its full width.

    `multiple` (a power of two) is halved until the group has at least four widths.
    """
    while multiple > 1 and group.size < 4 * math.lcm(multiple, group.blocks):
        multiple //= 2
    unit = math.lcm(multiple, group.blocks)
    steps = np.arange(unit, group.size, unit)
    return np.append(steps[steps >= min(min_width, group.size)], group.size)


def plan(model: CostModel, allowed: Sequence[np.ndarray], budget: np.ndarray) -> np.ndarray:
    """The width of each group for costs near `budget`, (parameters, multiply-accumulates); nan is an unconstrained cost.

    Group k keeps exp(-(base + tilt * intensity[k])) of its channels: the base sets the total size, the tilt moves channels
    between layers of low and high resolution until both costs are met. The rounded widths are then improved step by step.
    """
    lowest = np.array([widths[0] for widths in allowed], float)
    intensity = model.intensity() if not np.isnan(budget).any() else np.zeros(len(allowed))

    def widths(base: float, tilt: float) -> np.ndarray:
        return np.clip(model.sizes * np.exp(-(base + tilt * intensity)), lowest, model.sizes)

    def error(kept: np.ndarray) -> np.ndarray:
        return np.log(model.costs(kept) / budget)

    def at(tilt: float) -> tuple[float, np.ndarray]:
        """The error and the widths at a tilt; bisection over the base meets the first constrained cost exactly."""
        low, high = -12.0, 12.0
        first = int(np.isnan(budget[0]))
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if error(widths(middle, tilt))[first] > 0 else (low, middle)
        kept = widths((low + high) / 2, tilt)
        return float(np.nanmax(np.abs(error(kept)))), kept

    tilts = np.linspace(-2, 2, 33) if intensity.any() else np.zeros(1)
    best = min(((*at(float(tilt)), abs(float(tilt))) for tilt in tilts), key=lambda result: (round(result[0], 2), result[2]))
    return _rounded(best[1], allowed, lambda kept: np.nanmax(np.abs(error(kept)), -1))


def _rounded(kept: np.ndarray, allowed: Sequence[np.ndarray], error: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Allowed widths near `kept`, improved greedily: one step of one group, or of two groups at once, while the error falls."""
    count = len(allowed)
    table = np.full((count, max(map(len, allowed))), np.nan)
    for k, widths in enumerate(allowed):
        table[k, : len(widths)] = widths
    indices = np.array([int(np.abs(widths - width).argmin()) for widths, width in zip(allowed, kept, strict=True)])
    single = [step * np.eye(count, dtype=int)[k] for k in range(count) for step in (-1, 1)]
    double = [a + b for a, b in itertools.combinations(single, 2) if (a + b).any() and abs(a + b).max() < 2]
    moves = np.array(single + double if count <= MAX_PAIRED else single)

    def widths_at(indices: np.ndarray) -> np.ndarray:
        return np.take_along_axis(table, np.atleast_2d(indices).T, 1).T

    lowest = float(error(widths_at(indices))[0])
    for _ in range(MAX_STEPS):
        neighbours = indices + moves
        neighbours = neighbours[((neighbours >= 0) & (neighbours < [len(widths) for widths in allowed])).all(1)]
        if lowest < CLOSE or not len(neighbours):
            break
        errors = error(widths_at(neighbours))
        deviation = np.abs(np.log(widths_at(neighbours) / kept)).sum(1) * (neighbours != indices).any(1)
        best = int(np.argmin(np.where(errors < lowest, errors + 0.02 * deviation, np.inf)))
        if errors[best] >= lowest:
            break
        lowest, indices = float(errors[best]), neighbours[best]
    return widths_at(indices)[0].astype(int)
