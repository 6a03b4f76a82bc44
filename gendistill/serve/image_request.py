"""What may be asked of a server, and the sentence for what may not."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from gendistill.data.images import as_tensor, fitted

MAX_SEED = 2**63 - 1
STRENGTH = 0.8
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)


@dataclass(frozen=True)
class Offer:
    """A model that images can be asked of.

    Attributes:
        name: what it is asked for by.
        steps, guidance_scale: its own, for requests that say none.
        size: height and width of its images; `multiple`: what other sizes are multiples of, None where it samples no others.
        prompts: all that it knows; None where it takes any text.
        images: whether it begins at images.
        allows: raises ValueError for a number of steps or a guidance scale that it cannot be sampled by.
    """

    name: str
    steps: int
    guidance_scale: float
    size: tuple[int, int]
    multiple: int | None = None
    prompts: tuple[str, ...] | None = None
    images: bool = False
    allows: Callable[[int, float], None] = lambda steps, guidance_scale: None


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for.

    Attributes:
        prompt: characters; `images`: in one request; `steps`: of an image; `guidance_scale`: the largest.
        edge: pixels of the longer edge; the model's own where None.
    """

    prompt: int = 2000
    images: int = 8
    steps: int = 100
    guidance_scale: float = 30.0
    edge: int | None = None


@dataclass(frozen=True)
class ImageRequest:
    """Images of one prompt: image k has seed `seed` + k; `size` is (height, width).

    Attributes:
        image: (3, H, W) in [0, 1], to begin at; `mask`: (1, H, W), 1 where it is generated anew; `strength`: see `Task`.
    """

    model: str
    prompt: str
    count: int
    seed: int
    steps: int
    guidance_scale: float
    size: tuple[int, int]
    image: Tensor | None = field(default=None, compare=False)
    mask: Tensor | None = field(default=None, compare=False)
    strength: float = 1.0

    @property
    def goes_with(self) -> tuple[Any, ...]:
        """Requests that are alike in this may be sampled in one batch."""
        begins = self.image is not None, self.mask is not None, self.strength
        return self.model, self.steps, self.guidance_scale, self.size, begins


class RefusedError(ValueError):
    """A request that is not sampled: the field that is to blame, and why, in a sentence."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field


def read_request(given: Mapping[str, Any], offers: Mapping[str, Offer], limits: RequestLimits) -> ImageRequest:
    """A request from fields as a stranger sends them.

    Args:
        given: `prompt`, and where they are there `model`, `n`, `seed`, `steps`, `guidance_scale`, `size` ("WIDTHxHEIGHT");
            `image`, an image to begin at, with `strength` and `mask`, white where it is generated anew.
        offers: by name; the first is for requests that name none.

    Raises:
        RefusedError: a field is missing, of another kind, or beyond the limits.
    """
    offer = _offer(given.get("model"), offers)
    count = _number(given, "n", 1, 1, limits.images)
    seed = _number(given, "seed", secrets.randbelow(2**31), 0, MAX_SEED - count)
    steps = _number(given, "steps", offer.steps, 1, limits.steps)
    scale = float(_number(given, "guidance_scale", offer.guidance_scale, 0.0, limits.guidance_scale))
    try:
        offer.allows(steps, scale)
    except ValueError as error:
        raise RefusedError("steps", str(error)) from error
    size = _size(given.get("size"), offer, limits)
    prompt = _prompt(given.get("prompt"), offer, limits)
    return ImageRequest(offer.name, prompt, count, seed, steps, scale, size, **_beginning(given, offer, steps, size))


def _beginning(given: Mapping[str, Any], offer: Offer, steps: int, size: tuple[int, int]) -> dict[str, Any]:
    """The fields of a request that begins at an image; none of one that does not."""
    image, mask = given.get("image"), given.get("mask")
    if image is None:
        if mask is not None:
            raise RefusedError("mask", "mask: expects an image, the image to generate in")
        return {}
    for name, of in (("image", image), ("mask", mask)):
        if not isinstance(of, Image.Image | None):
            raise RefusedError(name, f"{name}: expects the file of an image")
    if not offer.images:
        raise RefusedError("image", f"image: {offer.name} begins at no images")
    strength = _number(given, "strength", STRENGTH, 0.0, 1.0)
    if int(steps * strength) < 1:
        raise RefusedError(
            "strength", f"strength {strength:g}: of {steps} steps it leaves none; expects at least {1 / steps:.2g}"
        )
    begun = as_tensor(fitted(image, *size)) / 2 + 0.5
    anew = None if mask is None else (as_tensor(fitted(mask, *size))[:1] > 0).float()
    return {"image": begun, "mask": anew, "strength": float(strength)}


def _offer(given: Any, offers: Mapping[str, Offer]) -> Offer:
    if given is None:
        return next(iter(offers.values()))
    if not isinstance(given, str) or given not in offers:
        raise RefusedError("model", f"model {_shown(given)}: expects {' or '.join(offers)}")
    return offers[given]


def _prompt(given: Any, offer: Offer, limits: RequestLimits) -> str:
    if not isinstance(given, str):
        raise RefusedError("prompt", "prompt: expects a text")
    if len(given) > limits.prompt:
        raise RefusedError("prompt", f"prompt: {len(given):,} characters; expects at most {limits.prompt:,}")
    if offer.prompts is not None and offer.prompts != ("",) and given not in offer.prompts:
        names = ", ".join(offer.prompts[:8]) + (", ..." if len(offer.prompts) > 8 else "")
        raise RefusedError("prompt", f"prompt {_shown(given)}: expects one of {names}")
    return given


def _number(given: Mapping[str, Any], name: str, usual: Any, low: float, high: float) -> Any:
    """A number in [low, high], a whole one where these are."""
    value, whole = given.get(name), isinstance(low, int)
    if value is None:
        return usual
    if whole and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        takes = f"a whole number from {low} to {high:,}" if whole else f"a number from {low:g} to {high:g}"
        raise RefusedError(name, f"{name} {_shown(value)}: expects {takes}")
    return value


def _size(given: Any, offer: Offer, limits: RequestLimits) -> tuple[int, int]:
    if given is None or given == "auto":
        return offer.size
    read = SIZE.fullmatch(given) if isinstance(given, str) else None
    size = (int(read[2]), int(read[1])) if read else None
    if size == offer.size:
        return offer.size
    own, most = f"{offer.size[1]}x{offer.size[0]}", limits.edge or max(offer.size)
    if offer.multiple is None:
        raise RefusedError("size", f"size {_shown(given)}: expects {own}")
    if size is None or not all(0 < edge <= most and edge % offer.multiple == 0 for edge in size):
        takes = f"WIDTHxHEIGHT, multiples of {offer.multiple} up to {most}, such as {own}"
        raise RefusedError("size", f"size {_shown(given)}: expects {takes}")
    return size


def _shown(value: Any) -> str:
    """A stranger's value, short enough to be told."""
    text = repr(value) if not isinstance(value, str) else repr(value[:41])
    return text if len(text) <= 40 else f"{text[:40]}..."
