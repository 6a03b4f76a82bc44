"""The layout of a release's checkpoint: one file, with other names for the weights than those of diffusers' folders.

A layout is a table. A row lists the weights of diffusers' models that are one weight of the release, one after the other along
the first dimension, such as query, key and value. The table converts checkpoints in both directions, and LoRAs in kohya's
format, whose names are those of the release.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LORA = "lora_unet_"  # prefix of the denoiser's keys in kohya's format, whatever the denoiser is
NETWORK = "model.diffusion_model."  # prefix of the denoiser's weights in a checkpoint


@dataclass(frozen=True)
class Row:
    """A weight of the release and its parts in diffusers' model; `{}` in the names stands for `weight` and for `bias`.

    Attributes:
        swapped: the weight is a shift and a scale, in diffusers a scale and a shift.
    """

    original: str
    parts: tuple[str, ...]
    swapped: bool = False

    def expanded(self) -> Iterator[Row]:
        """The rows of the weight and of the bias."""
        for suffix in ("weight", "bias") if "{}" in self.original else ("",):
            yield Row(self.original.format(suffix), tuple(part.format(suffix) for part in self.parts), self.swapped)


class OriginalLayout(ABC):
    """The layout of the checkpoints of one release or of several similar ones. It has no state.

    Attributes:
        prefixes: for each component, the prefixes of its weights in a checkpoint; one of them suffices.
        optional: components without which the pipeline samples.
        reads_loras: whether LoRAs in kohya's format are converted by the table, as diffusers does not read all of them.
    """

    prefixes: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...] = ()
    reads_loras = False

    @abstractmethod
    def architecture(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """The name of the folder in `architectures/` with the configs of a checkpoint; None for a checkpoint in another layout.

        Args:
            shapes: of the weights, by name.

        Raises:
            ValueError: the checkpoint is in this layout, and its architecture cannot be inferred; the message is the reason and
                the expected config.
        """

    def unfit(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """What a checkpoint has that a text-to-image model has not; None for a text-to-image model."""
        return None

    def holds(self, component: str, names: Iterable[str]) -> bool:
        """Whether a checkpoint with these names has weights of a component."""
        return any(name.startswith(self.prefixes.get(component, ())) for name in names)

    @abstractmethod
    def release(self, pipeline: Any) -> str:
        """The release, as `modelspec.architecture` names it, whose checkpoints hold such a pipeline.

        Raises:
            ValueError: the layout does not support a component or an option of the pipeline.
        """

    @abstractmethod
    def rows(self, config: Mapping[str, Any], names: Iterable[str]) -> Iterator[Row]:
        """The table of a denoiser with this config and weights of these names; its names are without `NETWORK`."""

    @abstractmethod
    def weights(self, pipeline: Any) -> dict[str, Tensor]:
        """All weights of a pipeline by the names of the release; raises ValueError as `release`."""

    def lora_rows(self, config: Mapping[str, Any], names: Iterable[str]) -> Iterator[Row]:
        """The table of the names of LoRAs in kohya's format."""
        return self.rows(config, names)

    @abstractmethod
    def marks(self, scheduler: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Further entries of a checkpoint with these weights, by which programs know the prediction type of a scheduler.

        None if programs would read another prediction type in the file.
        """

    def scheduler(self, scheduler: Any, names: Iterable[str]) -> Any:
        """The scheduler of a checkpoint with these names, from that of its architecture."""
        return scheduler

    def networks(self, file: Any, folder: Any, index: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any] | None:
        """The networks in a checkpoint by component; None where diffusers' `from_single_file` opens them.

        Raises:
            ValueError: weights are missing, or have other shapes than the configs in the folder expect.
        """
        return None


def to_original(rows: Iterable[Row], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a diffusers model by the names of a release.

    Raises:
        ValueError: the table has no row for some of them.
    """
    converted: dict[str, Tensor] = {}
    known: set[str] = set()
    for row in (row for template in rows for row in template.expanded()):
        if row.parts[0] in weights:
            tensor = weights[row.parts[0]] if len(row.parts) == 1 else torch.cat([weights[part] for part in row.parts])
            converted[row.original] = _halves_swapped(tensor) if row.swapped else tensor
            known.update(row.parts)
    if unknown := sorted(weights.keys() - known):
        raise ValueError(f"the original layout has no place for the weight {unknown[0]}; expects --format diffusers")
    return converted


def from_original(rows: Iterable[Row], weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The inverse of `to_original`, for a model whose weights have these shapes; weights that are missing are left out.

    Raises:
        ValueError: a weight has another shape.
    """
    converted: dict[str, Tensor] = {}
    for row in (row for template in rows for row in template.expanded()):
        if row.original in weights and row.parts[0] in shapes:
            tensor = weights[row.original]
            sizes = [shapes[part][0] for part in row.parts]
            if tensor.shape[:1] != (sum(sizes),) or tensor.shape[1:] != shapes[row.parts[0]][1:]:
                raise ValueError(f"{row.original} is {tuple(tensor.shape)}, not {(sum(sizes), *shapes[row.parts[0]][1:])}")
            tensor = _halves_swapped(tensor) if row.swapped else tensor
            converted |= dict(zip(row.parts, tensor.split(sizes) if len(sizes) > 1 else [tensor], strict=True))
    return converted


def lora_to_kohya(
    rows: Iterable[Row], layers: Mapping[str, tuple[Tensor, Tensor, float]], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """A LoRA in kohya's format, from its matrices A (r, in), B (out, r) and scale for each layer of a diffusers model.

    The matrices of layers that are one layer of the release become one matrix A with the rows of all, and a block diagonal
    matrix B. A layer without matrices has zeros there.

    Args:
        shapes: of the weights of the diffusers model.

    Raises:
        ValueError: the table has no row for a layer.
    """
    weights: dict[str, Tensor] = {}
    known: set[str] = set()
    for row in rows:
        paths = [part.removesuffix(".{}") for part in row.parts]
        known.update(paths)
        if (first := next((layers[path] for path in paths if path in layers), None)) is None:
            continue
        down, _, scale = first
        nothing = [(torch.zeros_like(down), down.new_zeros(shapes[f"{path}.weight"][0], len(down)), scale) for path in paths]
        found = [layers.get(path, zeros) for path, zeros in zip(paths, nothing, strict=True)]
        down = torch.cat([a for a, _, _ in found])
        up = found[0][1] if len(found) == 1 else torch.block_diag(*[b * (own / scale) for _, b, own in found]).to(down.dtype)
        key = LORA + row.original.removesuffix(".{}").replace(".", "_")
        weights[f"{key}.lora_down.weight"] = down.contiguous()
        weights[f"{key}.lora_up.weight"] = (_halves_swapped(up) if row.swapped else up).contiguous()
        weights[f"{key}.alpha"] = torch.tensor(scale * len(down), dtype=torch.float32)
    if unknown := sorted(layers.keys() - known):
        raise ValueError(f"kohya's format has no name for the layer {unknown[0]}; expects --format lora")
    return weights


def lora_from_kohya(
    rows: Iterable[Row], weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor] | None:
    """The matrices `LAYER.lora_A.weight` and `LAYER.lora_B.weight` of a LoRA in kohya's format, with its scales in B.

    None if the file has keys that are not of the table.

    Args:
        shapes: of the weights of the diffusers model.
    """
    converted: dict[str, Tensor] = {}
    left = set(weights)
    for row in (row for row in rows if row.original.endswith("{}")):
        key = LORA + row.original.removesuffix(".{}").replace(".", "_")
        down, up = (weights.get(f"{key}.{name}.weight") for name in ("lora_down", "lora_up"))
        if down is None or up is None:
            continue
        alpha = weights.get(f"{key}.alpha")
        left -= {f"{key}.lora_down.weight", f"{key}.lora_up.weight", f"{key}.alpha"}
        up = up if alpha is None else up * (alpha.float() / len(down)).to(up.dtype)
        sizes = [shapes[part.format("weight")][0] for part in row.parts]
        if len(up) != sum(sizes):
            raise ValueError(f"{key} has {len(up)} outputs, and the network {sum(sizes)}")
        up_parts = list((_halves_swapped(up) if row.swapped else up).split(sizes))
        downs = _block_diagonal(up_parts, down)
        for part, a, b in zip(row.parts, *downs, strict=True):
            converted[part.format("lora_A.weight")], converted[part.format("lora_B.weight")] = a.contiguous(), b.contiguous()
    return None if left else converted


def _block_diagonal(ups: list[Tensor], down: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The matrices A and B of each part: the own rows of A where B is block diagonal, otherwise all rows of A for each."""
    count = len(ups)
    if count > 1 and len(down) % count == 0:
        rank = len(down) // count
        blocks = [up.split(rank, 1) for up in ups]
        if not any(bool(block.any()) for i, row in enumerate(blocks) for j, block in enumerate(row) if i != j):
            return list(down.split(rank)), [row[i] for i, row in enumerate(blocks)]
    return [down] * count, ups


def _halves_swapped(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])
