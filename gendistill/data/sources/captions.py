"""Which of an image's texts is its caption."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeAlias

from gendistill.runtime.hashing import chance

CaptionOption: TypeAlias = str | Sequence[str] | Mapping[str, float] | None
"""A field, several of equal weight, fields with their weights, or None for the source's own default."""


@dataclass(frozen=True)
class CaptionChoice:
    """Samples one of an image's texts, the same one each time for the same seed and key.

    Attributes:
        weights: (field, weight) in the order of the fields' names; weights are >= 0 and need not sum to 1.
        seed: another seed samples other fields; 0 where there is one field, and nothing to sample.
    """

    weights: tuple[tuple[str, float], ...]
    seed: int = 0

    @classmethod
    def of(cls, option: CaptionOption, default: str, seed: int) -> "CaptionChoice":
        """Read what a user wrote.

        Raises:
            ValueError: no field is named, or a weight is negative or not finite, or no weight is above zero.
        """
        if option is None or isinstance(option, str):
            option = [option or default]
        weights = dict(option) if isinstance(option, Mapping) else dict.fromkeys(option, 1.0)
        sound = all(isinstance(weight, int | float) and 0 <= weight < math.inf for weight in weights.values())
        if not sound or sum(weights.values()) <= 0:
            raise ValueError(f"caption: got {option!r}; it expects a field, or fields with weights >= 0 and one above 0.")
        is_sampled = sum(weight > 0 for weight in weights.values()) > 1
        return cls(tuple(sorted((field, float(weight)) for field, weight in weights.items())), seed if is_sampled else 0)

    @property
    def fields(self) -> list[str]:
        return [field for field, _ in self.weights]

    def require(self, present: Collection[str], where: str) -> None:
        """Raise ValueError, with the nearest field there is, if a field is not among those `present`."""
        for field in self.fields:
            if field not in present:
                nearest = get_close_matches(field, present, n=1)
                hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
                choices = ", ".join(repr(name) for name in sorted(present)) or "no caption at all"
                raise ValueError(f"caption: {where} has no {field!r}{hint}; it has {choices}.")

    def sample(self, key: str, texts: Mapping[str, str]) -> str:
        """The caption of image `key`, sampled by weight among those of its texts that are not empty; "" if all are."""
        present = [(texts[field], weight) for field, weight in self.weights if texts.get(field) and weight > 0]
        left = chance(self.seed, key) * sum(weight for _, weight in present)
        for text, weight in present:
            left -= weight
            if left < 0:
                return text
        return present[-1][0] if present else ""  # rounding may leave a last crumb

    def describe(self) -> str:
        if len(self.weights) == 1:
            return self.fields[0]
        total = sum(weight for _, weight in self.weights)
        return ", ".join(f"{field} {weight / total:.0%}" for field, weight in self.weights)
