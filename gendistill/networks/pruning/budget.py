"""How many channels every group keeps, so that a network has the parameters and multiply-accumulates that were asked for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from gendistill.networks.pruning.channels import ChannelGroup
from gendistill.networks.pruning.layers import LayerSide, count_of, get_module

MAX_STEPS = 200
CLOSE = 0.01  # an error that is not worth another step
MAX_PAIRED = 32  # groups of which steps of two at once are tried


class CostModel:
    """Parameters and multiply-accumulates of a network in closed form, for any widths of its groups.

    A layer's weight and its multiply-accumulates are each in proportion to (channels in) x (channels out).
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
        terms: list[tuple[int, int, float, float]] = []  # two sides (or -1), parameters, multiply-accumulates
        for path in dict.fromkeys(side.path for side in sides):
            into, out, both = (sides.get(LayerSide(path, side), -1) for side in ("in", "out", "both"))
            layer = get_module(network, path)
            if isinstance(layer, nn.Parameter):
                terms.append((both if both >= 0 else out, -1, layer.numel(), 0))
                continue
            assert isinstance(layer, nn.Module)
            for name, weight in layer.named_parameters(recurse=False):
                first = out if name == "bias" and both < 0 else into
                second = -1 if name == "bias" else out
                terms.append((both, -1, weight.numel(), 0) if both >= 0 else (first, second, weight.numel(), 0))
            count = macs.get(path, 0)
            terms.append((both, -1, 0, count) if both >= 0 else (into, out, 0, count))
        total = (sum(weight.numel() for weight in network.parameters()), sum(macs.values()))
        self.first, self.second = np.array([t[0] for t in terms]), np.array([t[1] for t in terms])
        self.terms = np.array([t[2:] for t in terms], float).reshape(-1, 2)
        self.fixed = np.array(total, float) - self.terms.sum(0)

    def costs(self, kept: np.ndarray) -> np.ndarray:
        """(parameters, multiply-accumulates) (..., 2) where group k keeps kept[..., k] channels."""
        shares = 1 - (self.sizes - kept) @ self.rows.T / self.full
        shares = np.concatenate([shares, np.ones((*shares.shape[:-1], 1))], -1)
        return self.fixed + (shares[..., self.first] * shares[..., self.second]) @ self.terms

    def intensity(self) -> np.ndarray:
        """log(multiply-accumulates per parameter) of each group: high where the resolution is; mean 0, deviation 1."""
        full = self.costs(self.sizes)
        slopes = [full - self.costs(self.sizes - np.eye(len(self.sizes))[k]) for k in range(len(self.sizes))]
        logs = np.array([math.log((slope[1] + 1) / (slope[0] + 1)) for slope in slopes])
        return (logs - logs.mean()) / max(logs.std(), 1e-9)


def allowed_widths(group: ChannelGroup, multiple: int, least: int) -> np.ndarray:
    """Numbers of channels that a group may keep, ascending: multiples that its layers take, and all of them.

    Of `multiple` (a power of two) as much as leaves at least four steps.
    """
    while multiple > 1 and group.size < 4 * math.lcm(multiple, group.blocks):
        multiple //= 2
    unit = math.lcm(multiple, group.blocks)
    steps = np.arange(unit, group.size, unit)
    return np.append(steps[steps >= min(least, group.size)], group.size)


def plan(model: CostModel, allowed: Sequence[np.ndarray], asked: np.ndarray) -> np.ndarray:
    """How many channels each group keeps, for (parameters, multiply-accumulates) near `asked`; nan there is a free cost.

    Group k keeps exp(-(base + tilt * intensity[k])) of its channels: the base sets the size, the tilt moves channels between
    layers of low and high resolution until both costs are met. Rounded widths are then moved one step at a time.
    """
    least, most = np.array([w[0] for w in allowed], float), model.sizes
    intensity = model.intensity() if not np.isnan(asked).any() else np.zeros(len(allowed))

    def widths(base: float, tilt: float) -> np.ndarray:
        return np.clip(model.sizes * np.exp(-(base + tilt * intensity)), least, most)

    def error(kept: np.ndarray) -> np.ndarray:
        return np.log(model.costs(kept) / asked)

    def at(tilt: float) -> tuple[float, np.ndarray]:
        """The widths of a tilt of which the first cost that was asked is right."""
        low, high = -12.0, 12.0
        first = int(np.isnan(asked[0]))
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if error(widths(middle, tilt))[first] > 0 else (low, middle)
        kept = widths((low + high) / 2, tilt)
        return float(np.nanmax(np.abs(error(kept)))), kept

    tilts = np.linspace(-2, 2, 33) if intensity.any() else np.zeros(1)
    best = min(((*at(float(tilt)), abs(float(tilt))) for tilt in tilts), key=lambda found: (round(found[0], 2), found[2]))
    return _rounded(best[1], allowed, lambda kept: np.nanmax(np.abs(error(kept)), -1))


def _rounded(kept: np.ndarray, allowed: Sequence[np.ndarray], error: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Allowed widths near `kept`, moved a step at a time while the error falls: one group's, or two groups' at once."""
    count = len(allowed)
    table = np.full((count, max(map(len, allowed))), np.nan)
    for k, widths in enumerate(allowed):
        table[k, : len(widths)] = widths
    places = np.array([int(np.abs(w - k).argmin()) for w, k in zip(allowed, kept, strict=True)])
    single = [step * np.eye(count, dtype=int)[k] for k in range(count) for step in (-1, 1)]
    double = [one + two for one, two in itertools.combinations(single, 2) if (one + two).any() and abs(one + two).max() < 2]
    moves = np.array(single + double if count <= MAX_PAIRED else single)

    def numbers(places: np.ndarray) -> np.ndarray:
        return np.take_along_axis(table, np.atleast_2d(places).T, 1).T

    best = float(error(numbers(places))[0])
    for _ in range(MAX_STEPS):
        after = places + moves
        after = after[((after >= 0) & (after < [len(widths) for widths in allowed])).all(1)]
        if best < CLOSE or not len(after):
            break
        found = error(numbers(after))
        deviation = np.abs(np.log(numbers(after) / kept)).sum(1) * (after != places).any(1)
        order = int(np.argmin(np.where(found < best, found + 0.02 * deviation, np.inf)))
        if found[order] >= best:
            break
        best, places = float(found[order]), after[order]
    return numbers(places)[0].astype(int)
