"""Adapter for discriminators of any architecture: images and labels to logits."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn

from gendistill.gan.generator import GeneratorSpec, image_in
from gendistill.gan.inspecting import LABEL_NAMES
from gendistill.networks.classes import error_summary
from gendistill.networks.counting import evaluating

EDGES = (8, 16, 28, 32, 64, 128, 256, 512)  # pixels; tried to report the image size that a discriminator expects
SIZE_NAMES = ("resolution", "image_size", "img_size", "input_size", "crop_size")


class Discriminator:
    """`discriminator(images, labels)`: logits, large where real; per image (B,) or per patch (B, 1, h, w).

    The output of a network is interpreted by its shape. (B,), (B, 1) and (B, 1, 1, 1) are logits. (B, 1, h, w) are logits of
    patches (Isola et al. 2017). (B, K) with K classes are logits per class, from which that of the label is selected.
    (B, K + 1) are logits of K classes and of "generated"; the result is the logsumexp of the classes minus the logit of
    "generated" (Salimans et al. 2016, section 5). Of several outputs, the first one is used.

    Args:
        accepts_labels: whether the network is called as `network(images, labels)`.
        num_classes: K.
    """

    def __init__(self, network: Any, accepts_labels: bool, num_classes: int = 0) -> None:
        self.network, self.accepts_labels, self.num_classes = network, accepts_labels, num_classes

    def with_network(self, network: nn.Module) -> Discriminator:
        """The same adapter with another network: the EMA, or a wrapped network."""
        return Discriminator(network, self.accepts_labels, self.num_classes)

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B,) or (B, 1, h, w).

        Args:
            images: (B, C, H, W) in [-1, 1].
            labels: (B,) int64; only with classes.

        Raises:
            ValueError: the output of the network has another shape.
        """
        return self.outputs(images, labels)[0]

    def outputs(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The logits, and the class logits (B, K) or (B, K + 1) if the network has a classification head, otherwise None."""
        output = self.network(images, labels) if self.accepts_labels else self.network(images)
        return as_logits(output, labels, self.num_classes), class_logits(output, self.num_classes)


def class_logits(output: Any, num_classes: int) -> Tensor | None:
    """The class logits (B, K) or (B, K + 1), K > 1, among a discriminator's outputs (AC-GAN, Odena et al. 2017), or None."""
    parts = output if isinstance(output, list | tuple) else [output]
    heads = [
        part
        for part in parts
        if isinstance(part, Tensor) and part.ndim == 2 and part.shape[1] in (num_classes, num_classes + 1)
    ]
    return heads[0] if heads and num_classes > 1 else None


def as_logits(output: Any, labels: Tensor | None, num_classes: int) -> Tensor:
    """The output of a discriminator as logits (B,) or (B, 1, h, w), see `Discriminator`."""
    try:
        output = image_in(output)
    except (AttributeError, IndexError, RecursionError) as error:
        raise ValueError(
            f"got a {type(output).__name__}; expects logits (B,), (B, 1), (B, 1, h, w) or (B, K + 1) from a discriminator"
        ) from error
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
        f"got an output {list(output.shape)}; expects logits (B,), (B, 1), (B, 1, h, w) or (B, {num_classes + 1}: classes and "
        f"generated) from a discriminator"
    )


def adapt(network: nn.Module, spec: GeneratorSpec, name: str = "discriminator") -> Discriminator:
    """A discriminator of a generator's images, verified on a batch of two.

    Args:
        name: of the discriminator in error messages.

    Raises:
        ValueError: it expects images of another size or other arguments, or its output is not logits.
    """
    channels, height, width = spec.output_shape
    edge = _own_edge(network)
    if edge is not None and edge != height:
        raise ValueError(_other_size(name, edge, spec))
    accepts_labels = _accepts_labels(network, spec, name)
    adapted = Discriminator(network, accepts_labels, spec.num_classes)
    problem = _problem(adapted, (channels, height, width))
    if problem is None:
        return adapted
    for edge in EDGES:
        if edge not in (height, width) and _problem(adapted, (channels, edge, edge)) is None:
            raise ValueError(_other_size(name, edge, spec))
    raise ValueError(f"{name}: fails on images of {height}x{width} with {channels} channels: {problem}")


def _own_edge(network: nn.Module) -> int | None:
    """The image size in the config or the attributes of a network."""
    attributes = dict(network.config) if isinstance(network, ConfigMixin) else vars(network)
    return next((value for name in SIZE_NAMES if isinstance(value := attributes.get(name), int)), None)


def _other_size(name: str, edge: int, spec: GeneratorSpec) -> str:
    _, height, width = spec.output_shape
    return (
        f"{name}: is for images of {edge}x{edge}, but the generator outputs {height}x{width}; expects a discriminator for "
        f"{height}x{width}, or --set generator.discriminator=fresh"
    )


def _accepts_labels(network: nn.Module, spec: GeneratorSpec, name: str) -> bool:
    parameters = [
        parameter
        for parameter in inspect.signature(network.forward).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    if len(required) > 2:
        raise ValueError(f"{name}: forward requires {', '.join(required[1:])}; it is called with images and class numbers")
    if len(required) == 2 and not spec.num_classes:
        raise ValueError(f"{name}: forward requires {required[1]}, and the generator has no classes")
    if len(required) == 2:
        return True
    classes = getattr(getattr(network, "config", None), "num_classes", None) if isinstance(network, ConfigMixin) else None
    return bool(spec.num_classes and len(parameters) > 1 and parameters[1].name in LABEL_NAMES and classes != 0)


def _problem(adapted: Discriminator, shape: tuple[int, ...]) -> str | None:
    """The error on two images of this shape; None where the discriminator works."""
    device = next((weight.device for weight in adapted.network.parameters()), torch.device("cpu"))
    labels = torch.arange(2, device=device) % adapted.num_classes if adapted.num_classes else None
    try:
        with evaluating(adapted.network):  # the statistics of batch norms must not change
            logits = adapted(torch.zeros(2, *shape, device=device), labels)
    except Exception as error:  # a foreign network may raise anything
        return str(error) if isinstance(error, ValueError) and "\n" not in str(error) else error_summary(error)
    return None if len(logits) == 2 else f"it outputs {list(logits.shape)} for two images"
