"""Select the caption among the texts of an image."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeAlias

from gendistill.runtime.hashing import chance

CaptionOption: TypeAlias = str | Sequence[str] | Mapping[str, float] | None
"""A field, several fields of equal weight, fields with weights, or None for the default of the source."""


@dataclass(frozen=True)
class CaptionChoice:
    """Samples one of the texts of an image; the same seed and key give the same text.

    Attributes:
        weights: (field, weight), sorted by field; weights are >= 0 and need not sum to 1.
        seed: seed of the sampling among fields; 0 where one field alone has a weight.
    """

    weights: tuple[tuple[str, float], ...]
    seed: int = 0

    @classmethod
    def from_option(cls, option: CaptionOption, default: str, seed: int) -> "CaptionChoice":
        """Parse the user's option.

        Raises:
            ValueError: there is no field, a weight is negative or not finite, or no weight is above zero.
        """
        if option is None or isinstance(option, str):
            option = [option or default]
        weights = dict(option) if isinstance(option, Mapping) else dict.fromkeys(option, 1.0)
        is_valid = all(isinstance(weight, int | float) and 0 <= weight < math.inf for weight in weights.values())
        if not is_valid or sum(weights.values()) <= 0:
            raise ValueError(f"caption: got {option!r}; expects a field, or fields with weights >= 0 and one above 0.")
        is_sampled = sum(weight > 0 for weight in weights.values()) > 1
        return cls(tuple(sorted((field, float(weight)) for field, weight in weights.items())), seed if is_sampled else 0)

    @property
    def fields(self) -> list[str]:
        return [field for field, _ in self.weights]

    def require(self, present: Collection[str], where: str) -> None:
        """Raise ValueError, with the nearest existing field, if a field is not in `present`."""
        for field in self.fields:
            if field not in present:
                nearest = get_close_matches(field, present, n=1)
                hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
                choices = ", ".join(repr(name) for name in sorted(present)) or "no caption at all"
                raise ValueError(f"caption: {where} has no {field!r}{hint}; expects one of {choices}.")

    def sample(self, key: str, texts: Mapping[str, str]) -> str:
        """The caption of image `key`, sampled by weight among its non-empty texts; "" if all texts are empty."""
        present = [(texts[field], weight) for field, weight in self.weights if texts.get(field) and weight > 0]
        remaining = chance(self.seed, key) * sum(weight for _, weight in present)
        for text, weight in present:
            remaining -= weight
            if remaining < 0:
                return text
        return present[-1][0] if present else ""  # rounding may leave a small positive remainder

    def describe(self) -> str:
        if len(self.weights) == 1:
            return self.fields[0]
        total = sum(weight for _, weight in self.weights)
        return ", ".join(f"{field} {weight / total:.0%}" for field, weight in self.weights)
