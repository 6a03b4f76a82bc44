"""Names of tensors in checkpoints of earlier versions, which are still read."""

from __future__ import annotations

import re

from torch import Tensor

FORMER_NAMES = {  # regular expressions, and the names of today
    r"^(buffer\.)?partner(?=[._])": r"\1peer",  # the second student (words: allowed)
    r"discriminator\.blocks\.(\d+)\.beside\.": r"discriminator.blocks.\1.shortcut.",  # of `LatentDiscriminator` (words: allowed)
    r"discriminator\.of_condition\.": "discriminator.condition_embedding.",
}


def with_current_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a checkpoint by the names of this version."""
    return {_current(name): tensor for name, tensor in tensors.items()}


def _current(name: str) -> str:
    for former, current in FORMER_NAMES.items():
        name = re.sub(former, current, name)
    return name
