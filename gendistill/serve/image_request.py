"""Image requests, checked against the models and limits of a server."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from gendistill.data.images import as_tensor, fitted
from gendistill.samplers.tasks import min_strength

MAX_SEED = 2**63 - 1
STRENGTH = 0.8
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)


@dataclass(frozen=True)
class Offer:
    """A model of the server, and the requests that it accepts.

    Attributes:
        name: name of the model in requests.
        steps, guidance_scale: defaults of the model.
        size: default height and width of its images.
        multiple: other sizes must be multiples of this; None if the model has no other sizes.
        prompts: the classes of a class-conditional model; None if the prompt is any text.
        images: whether the model supports image-to-image and inpainting.
        allows: raises ValueError for a step count or a guidance scale that the model does not support.
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
    """Limits of one request.

    Attributes:
        prompt: maximum number of characters.
        images: maximum number of images.
        steps: maximum step count.
        guidance_scale: maximum guidance scale.
        edge: maximum height and width in pixels; the model's default size where None.
    """

    prompt: int = 2000
    images: int = 8
    steps: int = 100
    guidance_scale: float = 30.0
    edge: int | None = None


@dataclass(frozen=True)
class ImageRequest:
    """A request for `count` images of one prompt: image k has seed `seed` + k; `size` is (height, width).

    Attributes:
        image: initial image (3, H, W) in [0, 1].
        mask: inpainting mask (1, H, W), 1 where the image is generated.
        strength: see `Task`.
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
    def batch_key(self) -> tuple[Any, ...]:
        """Requests with the same key can be sampled in one batch."""
        task = self.image is not None, self.mask is not None, self.strength
        return self.model, self.steps, self.guidance_scale, self.size, task


class RefusedError(ValueError):
    """A rejected request, with the invalid field and a sentence with the reason."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field


def read_request(fields: Mapping[str, Any], offers: Mapping[str, Offer], limits: RequestLimits) -> ImageRequest:
    """Check the untrusted fields of a request.

    Args:
        fields: `prompt`, and optionally `model`, `n`, `seed`, `steps`, `guidance_scale`, `size` ("WIDTHxHEIGHT"), and `image`,
            an initial image, with `strength` and `mask`, white where the image is generated.
        offers: the models by name; the first is the default.

    Raises:
        RefusedError: a field is missing, has another type, or is outside the limits.
    """
    offer = _offer(fields.get("model"), offers)
    count = _number(fields, "n", 1, 1, limits.images)
    seed = _number(fields, "seed", secrets.randbelow(2**31), 0, MAX_SEED - count)
    steps = _number(fields, "steps", offer.steps, 1, limits.steps)
    scale = float(_number(fields, "guidance_scale", offer.guidance_scale, 0.0, limits.guidance_scale))
    try:
        offer.allows(steps, scale)
    except ValueError as error:
        raise RefusedError("steps", str(error)) from error
    size = _size(fields.get("size"), offer, limits)
    prompt = _prompt(fields.get("prompt"), offer, limits)
    return ImageRequest(offer.name, prompt, count, seed, steps, scale, size, **_task(fields, offer, steps, size))


def _task(fields: Mapping[str, Any], offer: Offer, steps: int, size: tuple[int, int]) -> dict[str, Any]:
    """The attributes `image`, `mask` and `strength` of a request with an initial image; empty without one."""
    image, mask = fields.get("image"), fields.get("mask")
    if image is None:
        if mask is not None:
            raise RefusedError("mask", "mask: expects an image, the image to inpaint")
        return {}
    for name, value in (("image", image), ("mask", mask)):
        if not isinstance(value, Image.Image | None):
            raise RefusedError(name, f"{name}: expects an image file")
    if not offer.images:
        raise RefusedError("image", f"image: {offer.name} does not support initial images; expects none")
    strength = _number(fields, "strength", STRENGTH, 0.0, 1.0)
    if int(steps * strength) < 1:
        raise RefusedError(
            "strength", f"strength {strength:g}: no step of {steps} is left; expects at least {min_strength(steps):g}"
        )
    initial_image = as_tensor(fitted(image, *size)) / 2 + 0.5
    binary_mask = None if mask is None else (as_tensor(fitted(mask, *size))[:1] > 0).float()
    return {"image": initial_image, "mask": binary_mask, "strength": float(strength)}


def _offer(name: Any, offers: Mapping[str, Offer]) -> Offer:
    if name is None:
        return next(iter(offers.values()))
    if not isinstance(name, str) or name not in offers:
        raise RefusedError("model", f"model {_shortened(name)}: expects {' or '.join(offers)}")
    return offers[name]


def _prompt(prompt: Any, offer: Offer, limits: RequestLimits) -> str:
    if not isinstance(prompt, str):
        raise RefusedError("prompt", "prompt: expects a text")
    if len(prompt) > limits.prompt:
        raise RefusedError("prompt", f"prompt: {len(prompt):,} characters; expects at most {limits.prompt:,}")
    if offer.prompts is not None and offer.prompts != ("",) and prompt not in offer.prompts:
        names = ", ".join(offer.prompts[:8]) + (", ..." if len(offer.prompts) > 8 else "")
        raise RefusedError("prompt", f"prompt {_shortened(prompt)}: expects one of {names}")
    return prompt


def _number(fields: Mapping[str, Any], name: str, default: Any, low: float, high: float) -> Any:
    """A number in [low, high]; an integer if `low` is an integer."""
    value, is_integer = fields.get(name), isinstance(low, int)
    if value is None:
        return default
    if is_integer and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int if is_integer else int | float) or not low <= value <= high:
        expected = f"a whole number from {low} to {high:,}" if is_integer else f"a number from {low:g} to {high:g}"
        raise RefusedError(name, f"{name} {_shortened(value)}: expects {expected}")
    return value


def _size(text: Any, offer: Offer, limits: RequestLimits) -> tuple[int, int]:
    if text is None or text == "auto":
        return offer.size
    match = SIZE.fullmatch(text) if isinstance(text, str) else None
    size = (int(match[2]), int(match[1])) if match else None
    if size == offer.size:
        return offer.size
    default, max_edge = f"{offer.size[1]}x{offer.size[0]}", limits.edge or max(offer.size)
    if offer.multiple is None:
        raise RefusedError("size", f"size {_shortened(text)}: expects {default}")
    if size is None or not all(0 < edge <= max_edge and edge % offer.multiple == 0 for edge in size):
        expected = f"WIDTHxHEIGHT, multiples of {offer.multiple} up to {max_edge}, such as {default}"
        raise RefusedError("size", f"size {_shortened(text)}: expects {expected}")
    return size


def _shortened(value: Any) -> str:
    """An untrusted value, shortened for a message."""
    text = repr(value) if not isinstance(value, str) else repr(value[:41])
    return text if len(text) <= 40 else f"{text[:40]}..."
