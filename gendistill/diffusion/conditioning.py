"""Everything a network takes beside x_t and t."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """A batch of conditions; what a network does not take is None. All None: an unconditional network.

    prompt_embeds   (B, L, D)  text encoder states for cross-attention
    pooled_embeds   (B, P)     pooled text embedding (SDXL)
    time_ids        (B, 6)     original size, crop, target size (SDXL)
    class_labels    (B,) int64
    guidance_scale  (B,)       the scale that a w-conditioned student is to imitate; 1 is no guidance
    """

    prompt_embeds: Tensor | None = None
    pooled_embeds: Tensor | None = None
    time_ids: Tensor | None = None
    class_labels: Tensor | None = None
    guidance_scale: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same with `function` applied to every tensor that is there."""
        return Conditioning(**{name: function(tensor) for name, tensor in self.tensors().items()})

    def __getitem__(self, index: slice | Tensor) -> Conditioning:
        return self.map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """Moved to a device; floating tensors also to `dtype`."""
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    @property
    def device(self) -> torch.device:
        """Where its tensors are; the CPU where there are none."""
        return next((tensor.device for tensor in self.tensors().values()), torch.device("cpu"))

    def expand(self, batch_size: int) -> Conditioning:
        """One condition (batch of 1) for `batch_size` samples, without copying."""
        return self.map(lambda tensor: tensor.expand(batch_size, *tensor.shape[1:]))

    def where(self, chosen: Tensor, other: Conditioning) -> Conditioning:
        """Row by row: this one where `chosen` (B,) bool, else this one `under` the other (batch of 1 or B)."""
        other = self.under(other, len(chosen))

        def pick(name: str, tensor: Tensor) -> Tensor:
            mask = chosen.reshape(-1, *[1] * (tensor.ndim - 1))
            return torch.where(mask, tensor, getattr(other, name))

        return Conditioning(**{name: pick(name, tensor) for name, tensor in self.tensors().items()})

    def under(self, other: Conditioning, batch_size: int) -> Conditioning:
        """These pictures with the conditions that `other` (batch of 1 or B) has; the rest, their sizes, stay their own."""
        return replace(self, **other.expand(batch_size).tensors())

    def with_guidance(self, guidance_scale: Tensor | None) -> Conditioning:
        return replace(self, guidance_scale=guidance_scale)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name: what is saved and what `Conditioning(**tensors)` restores."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenated along the batch; all parts hold the same kinds of condition, each in a dtype of its own.

        Floating tensors come back in float32 at least, which holds the values of both half precisions and which autocast
        concatenates, as it does not float16 under bfloat16.
        """
        return Conditioning(**{name: _cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()})


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    dtype = torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype
    return torch.cat([tensor.to(dtype) for tensor in tensors])
