"""All that a network takes beside x_t and t, as one batch of named tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import overload

import torch
from torch import Tensor

GUIDANCE_SCALE = "guidance_scale"


class Conditioning(Mapping[str, Tensor]):
    """A batch of conditions by name: tensors (B, ...), which nobody replaces afterwards. Without any: an unconditional network.

    The names are those that the family of the network gives them; the Stable Diffusions and the pixel models use

    prompt_embeds   (B, L, D)  text encoder states for cross-attention
    pooled_embeds   (B, P)     pooled text embedding (SDXL)
    time_ids        (B, 6)     original size, crop, target size (SDXL)
    class_labels    (B,) int64

    One name is the same for every family:

    guidance_scale  (B,)       the scale that a w-conditioned student is to imitate; 1 is no guidance

    `conditioning["prompt_embeds"]` is a tensor, `conditioning[2:4]` and `conditioning[rows]` are those samples of all tensors.

    Args:
        tensors: by name; None is a tensor that is not there.
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
        """How many tensors there are, whatever their batch."""
        return len(self._tensors)

    def __repr__(self) -> str:
        shapes = (f"{name}: {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in self.items())
        return f"Conditioning({', '.join(shapes)})"

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, and what `Conditioning(**tensors)` restores."""
        return dict(self._tensors)

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same with `function` applied to every tensor."""
        return Conditioning(**{name: function(tensor) for name, tensor in self.items()})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """Moved to a device; floating tensors also to `dtype`."""
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    @property
    def device(self) -> torch.device:
        """Where its tensors are; the CPU where there are none."""
        return next((tensor.device for tensor in self.values()), torch.device("cpu"))

    def expand(self, batch_size: int) -> Conditioning:
        """One condition (batch of 1) for `batch_size` samples, without copying."""
        return self.map(lambda tensor: tensor.expand(batch_size, *tensor.shape[1:]))

    def where(self, chosen: Tensor, other: Conditioning) -> Conditioning:
        """Row by row: this one where `chosen` (B,) bool, else this one `under` the other (batch of 1 or B)."""
        other = self.under(other, len(chosen))

        def pick(name: str, tensor: Tensor) -> Tensor:
            mask = chosen.reshape(-1, *[1] * (tensor.ndim - 1))
            return torch.where(mask, tensor, other[name])

        return Conditioning(**{name: pick(name, tensor) for name, tensor in self.items()})

    def under(self, other: Conditioning, batch_size: int) -> Conditioning:
        """These samples with the conditions that `other` (batch of 1 or B) has; the rest, their sizes, stay their own."""
        return Conditioning(**{**self, **other.expand(batch_size)})

    def with_guidance(self, guidance_scale: Tensor | None) -> Conditioning:
        """The same at those scales (B,); without any where None."""
        return Conditioning(**{**self, GUIDANCE_SCALE: guidance_scale})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenated along the batch, each tensor in a dtype that holds those of all parts.

        Floating tensors come back in float32 at least, which holds the values of both half precisions and which autocast
        concatenates, as it does not float16 under bfloat16.

        Raises:
            ValueError: the parts hold different conditions.
        """
        for part in parts:
            if part.keys() != parts[0].keys():
                raise ValueError(f"conditions {', '.join(part)} cannot follow {', '.join(parts[0])}: parts must hold the same")

        def joined(tensors: list[Tensor]) -> Tensor:
            dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
            dtype = torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype
            return torch.cat([tensor.to(dtype) for tensor in tensors])

        return Conditioning(**{name: joined([part[name] for part in parts]) for name in parts[0]})
