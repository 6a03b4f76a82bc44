"""What may be asked of a server, and the sentence for what may not."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        prompt: characters; `pictures`: in one request; `steps`: of a picture; `guidance`: the largest scale.
        sizes: (height, width) that may be asked for, the model's own first.
    """

    prompt: int = 2000
    pictures: int = 16
    steps: int = 100
    guidance: float = 30.0
    sizes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class PictureRequest:
    """Pictures of one prompt: picture k has seed `seed` + k."""

    prompt: str
    count: int
    seed: int
    steps: int
    guidance_scale: float
    size: tuple[int, int]

    @property
    def goes_with(self) -> tuple[int, float, tuple[int, int]]:
        """Requests that are alike in this may be drawn in one batch."""
        return self.steps, self.guidance_scale, self.size


class RefusedError(ValueError):
    """A request that is not drawn: the field that is to blame, and why, in a sentence."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field


def read_request(given: Mapping[str, Any], limits: Limits, steps: int, guidance_scale: float) -> PictureRequest:
    """A request from fields as a stranger sends them.

    Args:
        given: `prompt`, and where they are there `n`, `seed`, `steps`, `guidance_scale`, `size` ("HEIGHTxWIDTH" is read as
            OpenAI's "WIDTHxHEIGHT").
        steps, guidance_scale: the model's own, for requests that say none.

    Raises:
        RefusedError: a field is missing, of another kind, or beyond the limits.
    """
    prompt = given.get("prompt")
    if not isinstance(prompt, str):
        raise RefusedError("prompt", "prompt: takes a text")
    if len(prompt) > limits.prompt:
        raise RefusedError("prompt", f"prompt: {len(prompt):,} characters; takes at most {limits.prompt:,}")
    count = _whole(given, "n", 1, 1, limits.pictures)
    seed = secrets.randbelow(2**31) if given.get("seed") is None else _whole(given, "seed", 0, 0, MOST_SEED - count)
    scale = given.get("guidance_scale")
    if scale is None:
        scale = guidance_scale
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale <= limits.guidance:
        raise RefusedError("guidance_scale", f"guidance_scale {_shown(scale)}: takes a number from 0 to {limits.guidance:g}")
    return PictureRequest(
        prompt=prompt,
        count=count,
        seed=seed,
        steps=_whole(given, "steps", steps, 1, limits.steps),
        guidance_scale=float(scale),
        size=_size(given.get("size"), limits),
    )


def _whole(given: Mapping[str, Any], name: str, usual: int, low: int, high: int) -> int:
    value = given.get(name)
    if value is None:
        return usual
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RefusedError(name, f"{name} {_shown(value)}: takes a whole number from {low} to {high:,}")
    return value


def _size(given: Any, limits: Limits) -> tuple[int, int]:
    if given is None or given == "auto":
        return limits.sizes[0]
    known = {f"{width}x{height}": (height, width) for height, width in limits.sizes}
    if not isinstance(given, str) or given not in known:
        raise RefusedError("size", f"size {_shown(given)}: takes one of {', '.join(known)}")
    return known[given]


def _shown(value: Any) -> str:
    """A stranger's value, short enough to be told."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
