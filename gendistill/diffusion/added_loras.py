"""LoRAs of a folder, added to teacher and student for a micro-batch, so that the student learns to keep their effect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.loras import Matrices, lora_matrices
from gendistill.samplers.weighted_lora import LORA_FILES
from gendistill.settings.explanation import about
from gendistill.settings.section import Section


class CompatibleSettings(Section):
    """LoRAs whose effect the student keeps: for every micro-batch one of them is added to teacher and student."""

    loras: str | None = Field(
        None,
        description="Folder with LoRAs for the teacher (.safetensors); null adds none",
        json_schema_extra=about(path=True),
    )
    weight: tuple[float, float] = Field(
        (0.5, 1.0), description="Range from which the weight of the added LoRA is sampled uniformly"
    )
    probability: float = Field(
        0.5, ge=0, le=1, description="Probability that a LoRA is added to a micro-batch; the others have none"
    )

    @model_validator(mode="after")
    def _is_range(self) -> CompatibleSettings:
        low, high = self.weight
        if low > high:
            raise ValueError(f"compatible.weight [{low:g}, {high:g}]: expects the lower weight first")
        return self


class AddedLoras:
    """Samples a LoRA and a weight for every micro-batch, and adds them to networks while it is computed.

    The low-rank changes are hooks on the layers of all networks, within a context alone: no weight and no adapter is added, so
    that the saved student has none of them. The context includes the backward pass, which may recompute the forward pass.

    Args:
        loras: the matrices of each LoRA.
    """

    def __init__(self, loras: Sequence[Matrices], settings: CompatibleSettings) -> None:
        self.loras, self.settings = loras, settings

    @staticmethod
    def from_folder(pipeline: Any, settings: CompatibleSettings) -> AddedLoras | None:
        """The LoRAs of the folder `settings.loras`; None without one.

        Raises:
            ValueError: there is no LoRA in the folder, or one of another model.
        """
        if settings.loras is None:
            return None
        folder = Path(settings.loras).expanduser()
        inner = [path / name for path in folder.glob("*/") for name in LORA_FILES if (path / name).is_file()]
        files = sorted([*folder.glob("*.safetensors"), *inner])
        if not files:
            raise ValueError(f"compatible.loras {settings.loras}: expects a folder with LoRAs (.safetensors)")
        try:
            return AddedLoras([lora_matrices(pipeline, file) for file in files], settings)
        except ValueError as error:
            raise ValueError(f"compatible.loras: {error}") from error

    def sampled(self, random: PerSampleRandom) -> tuple[Matrices, float] | None:
        """The LoRA of a micro-batch and its weight, the same in every call; None where no LoRA is added."""
        choice, number, position = random.of_batch(3)
        if choice >= self.settings.probability:
            return None
        low, high = self.settings.weight
        return self.loras[int(number * len(self.loras))], low + (high - low) * position

    @contextmanager
    def added(self, networks: Iterable[nn.Module], random: PerSampleRandom) -> Iterator[None]:
        """Add the LoRA of a micro-batch to networks within the context; networks without its layers do not change."""
        if (sampled := self.sampled(random)) is None:
            yield
            return
        matrices, weight = sampled
        bases = {id(base): base for base in (getattr(network, "base", network) for network in networks)}
        with ExitStack() as stack:
            for base in bases.values():
                for name, layer in base.named_modules():
                    if (pair := matrices.get(name.removeprefix("module."))) is not None:  # DDP's prefix
                        stack.callback(layer.register_forward_hook(partial(_add, *pair, weight)).remove)
            yield


def _add(down: Tensor, up: Tensor, weight: float, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A layer's output with the low-rank change of its input."""
    layer, x = getattr(layer, "base_layer", layer), inputs[0]
    if isinstance(layer, nn.Conv2d):
        low = F.conv2d(x, down.to(x), None, layer.stride, layer.padding, layer.dilation)
        change = F.conv2d(low, up.to(low))
    else:
        low = F.linear(x, down.to(x))
        change = F.linear(low, up.to(low))
    return output + weight * change.to(output.dtype)
