"""What a network that nobody described takes and gives: found in its arguments and layers, and verified by running it."""

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
from gendistill.networks.classes import in_a_line

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
EDGES = (32, 64, 256)  # pixels that are tried of an image, the first that works is taken
LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
BATCH = 2


@dataclass(frozen=True)
class Described:
    """What can be read of a network before it is run.

    Attributes:
        known: arguments given, then its config and its constructor's defaults, then its own attributes that are numbers.
        accepts_labels: `no`, `may` or `must`.
        num_embeddings: of its first table of classes, 0 where it has none.
        layers: (what the layer is, how many numbers or channels go in), as they were made.
    """

    known: dict[str, Any]
    accepts_labels: Literal["no", "may", "must"]
    num_embeddings: int
    layers: list[tuple[str, int]]


def find_spec(
    network: nn.Module, arguments: dict[str, Any], settings: GeneratorConfig, teacher: str = "teacher"
) -> GeneratorSpec:
    """What a generator takes and gives. Settings win over what is found; all of it is verified by a batch of two on the CPU.

    Args:
        network: on the CPU.
        arguments: that it was built with.
        teacher: how it is called in sentences.

    Raises:
        ValueError: it cannot be found, or the network fails with it.
    """
    described = _describe(network, arguments, teacher)
    num_classes = _num_classes(described, settings, teacher)
    failures: list[str] = []
    for kind, shape in _candidates(network, described, num_classes, settings):
        try:
            image, found_range = _run(network, kind, shape, num_classes)
        except ValueError as error:
            failures.append(str(error))
            continue
        if image.ndim != 4 or len(image) != BATCH or not image.is_floating_point():
            failures.append(f"it gives {image.dtype} {list(image.shape)} of {list(shape)} and no images (B, C, H, W)")
            continue
        if kind == "image" and not settings.input_shape and shape[1] != _first_number(described.known, SIZE_NAMES):
            logger.warning(
                "%s: works on images of %dx%d, which is taken; --set generator.input_shape=[%d,H,W] says otherwise",
                *(teacher, *shape[1:], shape[0]),
            )
        return GeneratorSpec(
            kind=kind,
            input_shape=shape,
            output_shape=(image.shape[1], image.shape[2], image.shape[3]),
            num_classes=num_classes,
            output_range=settings.output_range or found_range,
        )
    if settings.input_shape:
        raise ValueError(f"generator.input_shape {settings.input_shape}: {teacher} does not work with it: {failures[0]}")
    tried = f"; tried, it says: {failures[0]}" if failures else ""
    raise ValueError(
        f"{teacher}: what goes in cannot be found; expects --set generator.input_shape=[128] of noise, or "
        f"--set generator.kind=image --set generator.input_shape=[3,64,64] of an image{tried}"
    )


def _describe(network: nn.Module, arguments: dict[str, Any], teacher: str) -> Described:
    known = {name: value for name, value in vars(network).items() if isinstance(value, int) and not isinstance(value, bool)}
    parameters = inspect.signature(type(network).__init__).parameters.values()
    known |= {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    if isinstance(network, ConfigMixin):
        known |= {name: value for name, value in network.config.items() if not name.startswith("_")}
    layers = [
        (type(of).__name__, of.in_features if isinstance(of, nn.Linear) else of.in_channels)
        for of in network.modules()
        if isinstance(of, LAYERS)
    ]
    tables = [of.num_embeddings for of in network.modules() if isinstance(of, nn.Embedding)]
    return Described(known | arguments, _accepts_labels(network, teacher), tables[0] if tables else 0, layers)


def _accepts_labels(network: nn.Module, teacher: str) -> Literal["no", "may", "must"]:
    """Whether class numbers are the second argument of `forward`.

    Raises:
        ValueError: forward requires anything else.
    """
    parameters = list(inspect.signature(network.forward).parameters.values())
    several = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if not several and any(each.kind == each.VAR_POSITIONAL for each in parameters):
        return "no"
    second = several[1] if len(several) > 1 else None
    labels = second is not None and second.name in LABEL_NAMES and second.kind != second.KEYWORD_ONLY
    unknown = [each.name for each in several[2 if labels else 1 :] if each.default is each.empty]
    if unknown or not several:
        raise ValueError(
            f"{teacher}: forward requires {', '.join(unknown) or 'nothing'}; it is called with noise or an image, and class "
            f"numbers where it has classes; expects a class around it whose forward(inputs, labels) gives the rest"
        )
    if not labels or second is None:
        return "no"
    return "must" if second.default is second.empty else "may"


def _num_classes(described: Described, settings: GeneratorConfig, teacher: str) -> int:
    if settings.num_classes is not None:
        if settings.num_classes > 0 and described.accepts_labels == "no":
            raise ValueError(
                f"generator.num_classes {settings.num_classes}: {teacher} expects no class numbers after its input"
            )
        if settings.num_classes == 0 and described.accepts_labels == "must":
            raise ValueError(f"generator.num_classes 0: {teacher} requires class numbers")
        return settings.num_classes
    if described.accepts_labels == "no":
        return 0
    named = _first_number(described.known, CLASS_NAMES)
    found = described.num_embeddings if named is None else named
    if described.accepts_labels == "must" and found < 1:
        raise ValueError(f"{teacher}: how many classes it expects cannot be found; expects --set generator.num_classes=10")
    return found


def _first_number(known: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = known.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _candidates(
    network: nn.Module, described: Described, num_classes: int, settings: GeneratorConfig
) -> Iterator[tuple[Literal["noise", "image"], tuple[int, ...]]]:
    """What may go in, the likeliest first."""
    if settings.input_shape:
        shape = tuple(settings.input_shape)
        images = len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) > 1
        yield settings.kind or ("image" if images else "noise"), shape
        return
    size = _first_number(described.known, LATENT_NAMES)
    first, width = described.layers[0] if described.layers else ("", 0)
    images_first = size is None and first == "Conv2d" and width in (1, 3)
    if settings.kind != "image" and not images_first:
        widths = [width, width - num_classes] + [of for kind, of in described.layers[1:4] if kind == first]
        widths += [width - of.embedding_dim for of in network.modules() if isinstance(of, nn.Embedding)]
        for n in dict.fromkeys(([size] if size else []) + widths):
            if n > 0:
                yield "noise", (n,)
                yield "noise", (n, 1, 1)
    if settings.kind == "image" or images_first:
        channels = next((of for kind, of in described.layers if kind == "Conv2d"), 3)
        named = _first_number(described.known, SIZE_NAMES)
        yield from (("image", (channels, edge, edge)) for edge in dict.fromkeys(([named] if named else []) + list(EDGES)))


def _run(network: nn.Module, kind: str, shape: tuple[int, ...], num_classes: int) -> tuple[Tensor, tuple[float, float]]:
    """What comes out of a batch of two, and the range of its images.

    Raises:
        ValueError: the network fails.
    """
    inputs = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(0))
    inputs = inputs.clamp(-1, 1) if kind == "image" else inputs
    labels = (torch.linspace(0, num_classes - 1, BATCH).long(),) if num_classes else ()  # the first and the last
    try:
        output = network(inputs.requires_grad_(), *labels)
    except Exception as error:  # whatever a stranger's network raises
        called = f"{kind} {[BATCH, *shape]}{' and class numbers' if num_classes else ''}"
        raise ValueError(f"called with {called}, it fails with {in_a_line(error)}") from error
    try:
        image = image_in(output)
    except (AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"it gives a {type(output).__name__}, in which no image is found") from error
    return image.detach(), _range_of(image)


def _range_of(image: Tensor) -> tuple[float, float]:
    """By its last operation: tanh, sigmoid, a clamp; [-1, 1] where it says nothing.

    Views and copies are looked through. Where numbers are added or multiplied after a tanh, as in (tanh + 1) / 2, images
    without a negative number are in [0, 1].
    """
    node, moved = image.grad_fn, False
    while node is not None:
        name = type(node).__name__
        if name.startswith("Tanh"):
            return (0.0, 1.0) if moved and image.min() >= 0 else (-1.0, 1.0)
        if name.startswith("Sigmoid"):
            return (-1.0, 1.0) if moved and image.min() < 0 else (0.0, 1.0)
        if name.startswith(("Clamp", "Hardtanh")):
            low, high = (_saved(node, *names) for names in (("_saved_min", "_saved_min_val"), ("_saved_max", "_saved_max_val")))
            return (low, high) if low is not None and high is not None and not moved else (-1.0, 1.0)
        if not name.startswith(
            ("View", "UnsafeView", "Slice", "Clone", "ToCopy", "Permute", "Alias", "Add", "Sub", "Mul", "Div")
        ):
            break
        moved = moved or name.startswith(("Add", "Sub", "Mul", "Div"))
        node = next((before for before, _ in node.next_functions if before is not None), None)
    return (-1.0, 1.0)


def _saved(node: Any, *names: str) -> float | None:
    return next((float(value) for name in names if isinstance(value := getattr(node, name, None), int | float)), None)
