"""Names in checkpoints of earlier versions, which are still read: of tensors, networks and values of the state."""

from __future__ import annotations

import re
from typing import Any

CURRENT_NAMES = {  # by regular expressions for the former names
    r"^(buffer\.)?partner(?=[._]|$)": r"\1peer",  # the second student (words: allowed)
    r"discriminator\.blocks\.(\d+)\.beside\.": r"discriminator.blocks.\1.shortcut.",  # words: allowed
    r"discriminator\.of_condition\.": "discriminator.condition_embedding.",
    r"^told_apart$": "discriminator_accuracy",  # of `GanCodistillation.state_dict`
    r"^most_diverse$": "max_diversity",
}


def with_current_names(values: dict[str, Any]) -> dict[str, Any]:
    """The tensors or the state (nested dictionaries) of a checkpoint by the names of this version."""
    return {_current(name): with_current_names(value) if isinstance(value, dict) else value for name, value in values.items()}


def _current(name: str) -> str:
    for former, current in CURRENT_NAMES.items():
        name = re.sub(former, current, name)
    return name
