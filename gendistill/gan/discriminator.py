"""A discriminator at the door: however it is called and whatever it gives, images go in and logits come out."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn

from gendistill.gan.generator import GeneratorSpec, image_in
from gendistill.gan.inspecting import LABEL_NAMES
from gendistill.networks.classes import in_a_line
from gendistill.networks.counting import evaluating

EDGES = (8, 16, 28, 32, 64, 128, 256, 512)  # pixels that are tried to say what a discriminator would take
SIZE_NAMES = ("resolution", "image_size", "img_size", "input_size", "crop_size")


class Discriminator:
    """`discriminator(images, labels)`: logits, large where real; of an image (B,), or of each of its patches (B, 1, h, w).

    What a network gives is understood by its shape: (B,), (B, 1) or (B, 1, 1, 1) are logits; (B, 1, h, w) are logits of
    patches (Isola et al. 2017); (B, K) of K classes are logits class by class, of which the label's counts; (B, K + 1) are
    K classes and "made", whose logit is logsumexp of the classes minus that of "made" (Salimans et al. 2016, section 5). Of
    several outputs the first counts.

    Args:
        accepts_labels: whether it is called as `network(images, labels)`.
        num_classes: K.
    """

    def __init__(self, network: Any, accepts_labels: bool, num_classes: int = 0) -> None:
        self.network, self.accepts_labels, self.num_classes = network, accepts_labels, num_classes

    def with_network(self, network: nn.Module) -> Discriminator:
        """The same with another network: an average, one that is wrapped."""
        return Discriminator(network, self.accepts_labels, self.num_classes)

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B,) or (B, 1, h, w).

        Args:
            images: (B, C, H, W) in [-1, 1].
            labels: (B,) int64; only where there are classes.

        Raises:
            ValueError: the network gives anything else.
        """
        return self.outputs(images, labels)[0]

    def outputs(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The logits, and those of the classes (B, K) or (B, K + 1) where the network has a head for them."""
        output = self.network(images, labels) if self.accepts_labels else self.network(images)
        return as_logits(output, labels, self.num_classes), class_logits(output, self.num_classes)


def class_logits(output: Any, num_classes: int) -> Tensor | None:
    """Logits (B, K) or (B, K + 1) of K > 1 classes among what a discriminator gave, in AC-GANs (Odena et al. 2017) beside
    the logit of real and made; None where there are none."""
    parts = output if isinstance(output, list | tuple) else [output]
    heads = [
        part
        for part in parts
        if isinstance(part, Tensor) and part.ndim == 2 and part.shape[1] in (num_classes, num_classes + 1)
    ]
    return heads[0] if heads and num_classes > 1 else None


def as_logits(output: Any, labels: Tensor | None, num_classes: int) -> Tensor:
    """What a discriminator gave as logits (B,) or (B, 1, h, w), see `Discriminator`."""
    try:
        output = image_in(output)
    except (AttributeError, IndexError, RecursionError) as error:
        raise ValueError("a discriminator gives logits (B,), (B, 1), (B, 1, h, w) or (B, K + 1), not an object") from error
    if output.ndim == 4 and output.shape[1] == 1 and output.shape[2] * output.shape[3] > 1:
        return output
    flat = output.flatten(1) if output.ndim > 1 else output[:, None]
    if flat.shape[1] == 1:
        return flat[:, 0]
    if num_classes and labels is not None and flat.shape[1] == num_classes:
        return flat.gather(1, labels[:, None])[:, 0]
    if num_classes and flat.shape[1] == num_classes + 1:
        return torch.logsumexp(flat[:, :-1], 1) - flat[:, -1]
    raise ValueError(
        f"a discriminator gives logits (B,), (B, 1), (B, 1, h, w) or (B, {num_classes + 1} classes with made), not "
        f"{list(output.shape)}"
    )


def adapt(network: nn.Module, spec: GeneratorSpec, name: str = "discriminator") -> Discriminator:
    """A discriminator of a generator's images, tried on a batch of two of them.

    Args:
        name: how it is called in sentences.

    Raises:
        ValueError: it takes images of another size, or other arguments, or gives no logits.
    """
    channels, height, width = spec.output_shape
    edge = _own_edge(network)
    if edge is not None and edge != height:
        raise ValueError(_of_another_size(name, edge, spec))
    accepts_labels = _accepts_labels(network, spec, name)
    adapted = Discriminator(network, accepts_labels, spec.num_classes)
    problem = _problem(adapted, (channels, height, width))
    if problem is None:
        return adapted
    for edge in EDGES:
        if edge not in (height, width) and _problem(adapted, (channels, edge, edge)) is None:
            raise ValueError(_of_another_size(name, edge, spec))
    raise ValueError(f"{name}: fails on images of {height}x{width} with {channels} channels: {problem}")


def _own_edge(network: nn.Module) -> int | None:
    """The size that it says it was made for."""
    known = dict(network.config) if isinstance(network, ConfigMixin) else vars(network)
    return next((value for name in SIZE_NAMES if isinstance(value := known.get(name), int)), None)


def _of_another_size(name: str, edge: int, spec: GeneratorSpec) -> str:
    _, height, width = spec.output_shape
    return (
        f"{name}: expects images of {edge}x{edge}, the generator makes {height}x{width}; expects a discriminator of "
        f"{height}x{width}, or --set generator.discriminator=fresh"
    )


def _accepts_labels(network: nn.Module, spec: GeneratorSpec, name: str) -> bool:
    parameters = [
        each
        for each in inspect.signature(network.forward).parameters.values()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    required = [each.name for each in parameters if each.default is each.empty]
    if len(required) > 2:
        raise ValueError(f"{name}: forward requires {', '.join(required[1:])}; it is called with images and class numbers")
    if len(required) == 2 and not spec.num_classes:
        raise ValueError(f"{name}: forward requires {required[1]}, and the generator has no classes")
    if len(required) == 2:
        return True
    says = getattr(getattr(network, "config", None), "num_classes", None) if isinstance(network, ConfigMixin) else None
    return bool(spec.num_classes and len(parameters) > 1 and parameters[1].name in LABEL_NAMES and says != 0)


def _problem(adapted: Discriminator, shape: tuple[int, ...]) -> str | None:
    """What goes wrong on two images of this shape."""
    device = next((of.device for of in adapted.network.parameters()), torch.device("cpu"))
    labels = torch.arange(2, device=device) % adapted.num_classes if adapted.num_classes else None
    try:
        with evaluating(adapted.network):  # batch norms must not learn from images that are none
            logits = adapted(torch.zeros(2, *shape, device=device), labels)
    except Exception as error:  # whatever a stranger's network raises
        return str(error) if isinstance(error, ValueError) and "\n" not in str(error) else in_a_line(error)
    return None if len(logits) == 2 else f"it gives {list(logits.shape)} of two images"
