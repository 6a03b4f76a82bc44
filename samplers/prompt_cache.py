"""A cache of encoded prompts with a size limit; the least recently used are removed first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gendistill.samplers.families import Conditions

MAX_BYTES = 2**28  # a thousand prompts of Stable Diffusion 1.5, four hundred of XL
BATCH_SIZE = 256


class PromptCache:
    """Conditions of prompts, one row per prompt; `encode` computes the conditions (B, ...) of new prompts.

    Args:
        max_bytes: size of the cache; None for no limit.

    Attributes:
        unconditional: conditions (1, ...) of the unconditional branch of guidance; None if they are not known yet.
    """

    unconditional: Conditions | None = None

    def __init__(self, encode: Callable[[Sequence[str]], Mapping[str, Tensor]], max_bytes: int | None = MAX_BYTES) -> None:
        self._encode, self._max_bytes, self._bytes = encode, max_bytes, 0
        self._rows: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._rows

    def conditions(self, prompts: Sequence[str], device: torch.device) -> Conditions:
        """Conditions (B, ...) of prompts on a device, from the cache or computed."""
        rows = {prompt: self._rows[prompt] for prompt in prompts if prompt in self._rows}
        for prompt in rows:
            self._rows.move_to_end(prompt)
        new = sorted(set(prompts) - rows.keys())
        for start in range(0, len(new), BATCH_SIZE):
            part = new[start : start + BATCH_SIZE]
            encoded = self._encode(part)
            rows |= {prompt: {name: t[k].clone() for name, t in encoded.items()} for k, prompt in enumerate(part)}
        self._keep((prompt, rows[prompt]) for prompt in new)
        batch = [rows[prompt] for prompt in prompts]
        return {name: torch.stack([row[name].to(device) for row in batch]) for name in batch[0]}

    def to(self, device: str) -> None:
        """Move the cache to a device."""
        for prompt, row in self._rows.items():
            self._rows[prompt] = {name: tensor.to(device) for name, tensor in row.items()}

    def clear(self) -> None:
        self._rows.clear()
        self.unconditional = None
        self._bytes = 0

    def _keep(self, rows: Iterable[tuple[str, dict[str, Tensor]]]) -> None:
        for prompt, row in rows:
            self._rows[prompt] = row
            self._bytes += _bytes_of(row)
        while self._max_bytes is not None and self._bytes > self._max_bytes:
            _, row = self._rows.popitem(last=False)
            self._bytes -= _bytes_of(row)


def _bytes_of(row: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in row.values())
