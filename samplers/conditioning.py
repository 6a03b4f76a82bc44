"""The inputs of a network other than x_t and t, as one batch of named tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import overload

import torch
from torch import Tensor

GUIDANCE_SCALE = "guidance_scale"


class Conditioning(Mapping[str, Tensor]):
    """An immutable batch of conditions: tensors (B, ...) by name. It is empty for an unconditional network.

    The network's family defines the names; the Stable Diffusion models and the pixel-space models use

    prompt_embeds   (B, L, D)  text encoder states for cross-attention
    pooled_embeds   (B, P)     pooled text embedding (SDXL)
    time_ids        (B, 6)     original size, crop, target size (SDXL)
    class_labels    (B,) int64

    One name is common to all families:

    guidance_scale  (B,)       guidance scale of a w-conditioned student; 1 is no guidance

    `conditioning["prompt_embeds"]` is a tensor; `conditioning[2:4]` and `conditioning[rows]` select samples of all tensors.

    Args:
        tensors: tensors by name; None leaves a name out.
    """

    def __init__(self, **tensors: Tensor | None) -> None:
        self._tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}

    @overload
    def __getitem__(self, index: str) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice | Tensor) -> Conditioning: ...
    def __getitem__(self, index: str | slice | Tensor) -> Tensor | Conditioning:
        if isinstance(index, str):
            return self._tensors[index]
        return self.map(lambda tensor: tensor[index])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        """Number of tensors, not of samples."""
        return len(self._tensors)

    def __repr__(self) -> str:
        shapes = (f"{name}: {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in self.items())
        return f"Conditioning({', '.join(shapes)})"

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, from which `Conditioning(**tensors)` restores this value."""
        return dict(self._tensors)

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        """Apply `function` to every tensor."""
        return Conditioning(**{name: function(tensor) for name, tensor in self.items()})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """Move all tensors to a device, and floating-point tensors to `dtype`; a copy to a GPU (CUDA) is not waited for."""
        to_gpu = torch.device(device).type == "cuda"
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=to_gpu))

    @property
    def device(self) -> torch.device:
        """The device of the tensors; the CPU if there are none."""
        return next((tensor.device for tensor in self.values()), torch.device("cpu"))

    def expand(self, batch_size: int) -> Conditioning:
        """Expand a batch of 1 to `batch_size` samples, without copying."""
        return self.map(lambda tensor: tensor.expand(batch_size, *tensor.shape[1:]))

    def where(self, chosen: Tensor, other: Conditioning) -> Conditioning:
        """Per sample: this conditioning if `chosen` (B,) bool, otherwise this one `under` the other (batch of 1 or B)."""
        other = self.under(other, len(chosen))

        def pick(name: str, tensor: Tensor) -> Tensor:
            mask = chosen.reshape(-1, *[1] * (tensor.ndim - 1))
            return torch.where(mask, tensor, other[name])

        return Conditioning(**{name: pick(name, tensor) for name, tensor in self.items()})

    def under(self, other: Conditioning, batch_size: int) -> Conditioning:
        """This conditioning with the tensors of `other` (batch of 1 or B) in place of its own; tensors that only this one has,
        such as sizes, stay."""
        return Conditioning(**{**self, **other.expand(batch_size)})

    def with_guidance(self, guidance_scale: Tensor | None) -> Conditioning:
        """This conditioning with those guidance scales (B,), or without any if None."""
        return Conditioning(**{**self, GUIDANCE_SCALE: guidance_scale})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenate along the batch, each tensor in a common dtype of all parts.

        Floating-point tensors become float32 at least, which represents both half precisions and which autocast can
        concatenate, unlike float16 under bfloat16.

        Raises:
            ValueError: the parts have different names.
        """
        for part in parts:
            if part.keys() != parts[0].keys():
                raise ValueError(
                    f"conditions {', '.join(part)} cannot follow {', '.join(parts[0])}; expects the same in all parts"
                )

        def joined(tensors: list[Tensor]) -> Tensor:
            dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
            dtype = torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype
            return torch.cat([tensor.to(dtype) for tensor in tensors])

        return Conditioning(**{name: joined([part[name] for part in parts]) for name in parts[0]})
