"""Infer the inputs and outputs of a generator from its arguments and layers, and verify them by running it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn

from gendistill.gan.generator import GeneratorSpec, image_in
from gendistill.gan.generator_config import GeneratorConfig
from gendistill.networks.classes import error_summary

logger = logging.getLogger(__name__)

LATENT_NAMES = (
    "latent_dim",
    "z_dim",
    "nz",
    "latent_size",
    "noise_dim",
    "dim_z",
    "latent_channels",
    "n_z",
    "latent",
    "code_dim",
    "style_dim",
)
CLASS_NAMES = ("num_classes", "n_classes", "c_dim", "n_class", "num_class", "nclass", "num_labels", "num_class_embeds")
SIZE_NAMES = ("resolution", "image_size", "img_size", "input_size", "sample_size", "load_size", "crop_size", "size")
LABEL_NAMES = (
    "labels",
    "label",
    "y",
    "c",
    "classes",
    "class_labels",
    "class_label",
    "class_ids",
    "class_id",
    "target",
    "targets",
)
EDGES = (32, 64, 256)  # pixels; image sizes that are tried, the first one that works is used
LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
BATCH = 2


@dataclass(frozen=True)
class NetworkProperties:
    """Properties of a network that are known before running it.

    Attributes:
        known: numbers by name: the constructor's arguments, then config entries, defaults and integer attributes.
        accepts_labels: whether labels are not accepted, optional or required.
        num_embeddings: of the first embedding; 0 if there is none.
        layers: (class name, input features or channels) in the order of their definition.
    """

    known: dict[str, Any]
    accepts_labels: Literal["no", "may", "must"]
    num_embeddings: int
    layers: list[tuple[str, int]]


def find_spec(
    network: nn.Module, arguments: dict[str, Any], settings: GeneratorConfig, teacher: str = "teacher"
) -> GeneratorSpec:
    """The inputs and outputs of a generator, verified with a batch of two on the CPU. Settings take precedence.

    Args:
        network: on the CPU.
        arguments: of the constructor.
        teacher: the name of the generator in error messages.

    Raises:
        ValueError: the inputs cannot be inferred, or the network fails with the settings.
    """
    properties = _properties(network, arguments, teacher)
    num_classes = _num_classes(properties, settings, teacher)
    failures: list[str] = []
    attempts = [
        (kind, shape, one_hot)
        for one_hot in ((False, True) if num_classes else (False,))
        for kind, shape in _candidates(network, properties, num_classes, settings)
    ]
    for kind, shape, one_hot in attempts:
        try:
            image, inferred_range = _run(network, kind, shape, num_classes, one_hot)
        except ValueError as error:
            failures.append(str(error))
            continue
        if image.ndim != 4 or len(image) != BATCH or not image.is_floating_point():
            failures.append(f"with {list(shape)} it outputs {image.dtype} {list(image.shape)}, no images (B, C, H, W)")
            continue
        if kind == "image" and not settings.input_shape and shape[1] != _first_number(properties.known, SIZE_NAMES):
            logger.warning(
                "%s: the input size is assumed to be %dx%d, which works; --set generator.input_shape=[%d,H,W] changes it",
                *(teacher, *shape[1:], shape[0]),
            )
        return GeneratorSpec(
            kind=kind,
            input_shape=shape,
            output_shape=(image.shape[1], image.shape[2], image.shape[3]),
            num_classes=num_classes,
            output_range=settings.output_range or inferred_range,
            one_hot=one_hot,
        )
    if settings.input_shape:
        raise ValueError(f"generator.input_shape {settings.input_shape}: {teacher} does not work with it: {failures[0]}")
    tried = f"; the first attempt failed: {failures[0]}" if failures else ""
    raise ValueError(
        f"{teacher}: the input shape cannot be inferred; expects --set generator.input_shape=[128] for noise, or "
        f"--set generator.kind=image --set generator.input_shape=[3,64,64] for images{tried}"
    )


def _properties(network: nn.Module, arguments: dict[str, Any], teacher: str) -> NetworkProperties:
    known = {name: value for name, value in vars(network).items() if isinstance(value, int) and not isinstance(value, bool)}
    parameters = inspect.signature(type(network).__init__).parameters.values()
    known |= {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
    if isinstance(network, ConfigMixin):
        known |= {name: value for name, value in network.config.items() if not name.startswith("_")}
    layers = [description for layer in network.modules() if (description := _layer(layer)) is not None]
    embeddings = [layer.num_embeddings for layer in network.modules() if isinstance(layer, nn.Embedding)]
    return NetworkProperties(known | arguments, _accepts_labels(network, teacher), embeddings[0] if embeddings else 0, layers)


def _layer(layer: nn.Module) -> tuple[str, int] | None:
    """The class name and the input features or channels of a layer, also of one of the user with a bare weight."""
    if isinstance(layer, LAYERS):
        return type(layer).__name__, layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    weight = layer._parameters.get("weight")
    if weight is None or weight.ndim not in (2, 4) or isinstance(layer, nn.Embedding):
        return None
    return "Linear" if weight.ndim == 2 else "Conv2d", weight.shape[1]


def _accepts_labels(network: nn.Module, teacher: str) -> Literal["no", "may", "must"]:
    """Whether the second argument of `forward` is labels, and whether it is required.

    Raises:
        ValueError: forward requires other arguments.
    """
    parameters = list(inspect.signature(network.forward).parameters.values())
    named = [parameter for parameter in parameters if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)]
    if not named and any(parameter.kind == parameter.VAR_POSITIONAL for parameter in parameters):
        return "no"
    second = named[1] if len(named) > 1 else None
    labels = second is not None and second.name in LABEL_NAMES and second.kind != second.KEYWORD_ONLY
    unknown = [parameter.name for parameter in named[2 if labels else 1 :] if parameter.default is parameter.empty]
    if unknown or not named:
        raise ValueError(
            f"{teacher}: forward requires {', '.join(unknown) or 'nothing'}; it is called with noise or an image, and class "
            f"numbers if it has classes; expects a wrapper class whose forward(inputs, labels) passes the other arguments"
        )
    if not labels or second is None:
        return "no"
    return "must" if second.default is second.empty else "may"


def _num_classes(properties: NetworkProperties, settings: GeneratorConfig, teacher: str) -> int:
    if settings.num_classes is not None:
        if settings.num_classes > 0 and properties.accepts_labels == "no":
            raise ValueError(f"generator.num_classes {settings.num_classes}: {teacher} does not accept class numbers")
        if settings.num_classes == 0 and properties.accepts_labels == "must":
            raise ValueError(f"generator.num_classes 0: {teacher} requires class numbers")
        return settings.num_classes
    if properties.accepts_labels == "no":
        return 0
    named = _first_number(properties.known, CLASS_NAMES)
    num_classes = properties.num_embeddings if named is None else named
    if properties.accepts_labels == "must" and num_classes < 1:
        raise ValueError(f"{teacher}: the number of classes cannot be inferred; expects --set generator.num_classes=10")
    return num_classes


def _first_number(known: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = known.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _candidates(
    network: nn.Module, properties: NetworkProperties, num_classes: int, settings: GeneratorConfig
) -> Iterator[tuple[Literal["noise", "image"], tuple[int, ...]]]:
    """Possible kinds and shapes of the input, the most likely first."""
    if settings.input_shape:
        shape = tuple(settings.input_shape)
        images = len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) > 1
        yield settings.kind or ("image" if images else "noise"), shape
        return
    size = _first_number(properties.known, LATENT_NAMES)
    first, width = properties.layers[0] if properties.layers else ("", 0)
    images_first = size is None and first == "Conv2d" and width in (1, 3)
    if settings.kind != "image" and not images_first:
        widths = [width, width - num_classes] + [inputs for kind, inputs in properties.layers[1:4] if kind == first]
        widths += [width - layer.embedding_dim for layer in network.modules() if isinstance(layer, nn.Embedding)]
        for n in dict.fromkeys(([size] if size else []) + widths):
            if n > 0:
                yield "noise", (n,)
                yield "noise", (n, 1, 1)
    if settings.kind == "image" or images_first:
        channels = next((inputs for kind, inputs in properties.layers if kind == "Conv2d"), 3)
        named = _first_number(properties.known, SIZE_NAMES)
        yield from (("image", (channels, edge, edge)) for edge in dict.fromkeys(([named] if named else []) + list(EDGES)))


def _run(
    network: nn.Module, kind: str, shape: tuple[int, ...], num_classes: int, one_hot: bool
) -> tuple[Tensor, tuple[float, float]]:
    """The images of a batch of two, and their value range.

    Raises:
        ValueError: the network fails.
    """
    inputs = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0))
    inputs = inputs.clamp(-1, 1) if kind == "image" else inputs
    numbers = torch.linspace(0, num_classes - 1, BATCH).long()  # the first and the last
    labels = (nn.functional.one_hot(numbers, num_classes).float() if one_hot else numbers,) if num_classes else ()
    try:
        output = network(inputs.requires_grad_(), *labels)
    except Exception as error:  # a foreign network may raise anything
        called = f"{kind} {[BATCH, *shape]}{' and class numbers' if num_classes else ''}"
        raise ValueError(f"called with {called}, it fails with {error_summary(error)}") from error
    try:
        image = image_in(output)
    except (AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"it outputs a {type(output).__name__}, which contains no image") from error
    return image.detach(), _range_of(image)


def _range_of(image: Tensor) -> tuple[float, float]:
    """The value range from the last operation: tanh, sigmoid or clamp; [-1, 1] after other operations.

    Views and copies are skipped. If constants are added or multiplied after a tanh, as in (tanh + 1) / 2, the range is [0, 1]
    for images without negative values.
    """
    node, rescaled = image.grad_fn, False
    while node is not None:
        name = type(node).__name__
        if name.startswith("Tanh"):
            return (0.0, 1.0) if rescaled and image.min() >= 0 else (-1.0, 1.0)
        if name.startswith("Sigmoid"):
            return (-1.0, 1.0) if rescaled and image.min() < 0 else (0.0, 1.0)
        if name.startswith(("Clamp", "Hardtanh")):
            low, high = (_saved(node, *names) for names in (("_saved_min", "_saved_min_val"), ("_saved_max", "_saved_max_val")))
            return (low, high) if low is not None and high is not None and not rescaled else (-1.0, 1.0)
        if not name.startswith(
            ("View", "UnsafeView", "Slice", "Clone", "ToCopy", "Permute", "Alias", "Add", "Sub", "Mul", "Div")
        ):
            break
        rescaled = rescaled or name.startswith(("Add", "Sub", "Mul", "Div"))
        node = next((source for source, _ in node.next_functions if source is not None), None)
    return (-1.0, 1.0)


def _saved(node: Any, *names: str) -> float | None:
    return next((float(value) for name in names if isinstance(value := getattr(node, name, None), int | float)), None)
