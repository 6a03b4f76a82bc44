"""Select the caption among the texts of an image."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TypeAlias

from gendistill.runtime.hashing import chance

CaptionOption: TypeAlias = str | Sequence[str] | Mapping[str, float] | None
"""A field, several fields of equal weight, fields with weights, "none" for no captions, or None for the usual fields."""

Texts: TypeAlias = Mapping[str, str | list[str]]
"""The texts of an image by field; of a list of texts, one is sampled."""

NO_CAPTIONS = "none"

# Names of caption fields in `imagefolder`s, `datasets`, kohya's and LAION's metadata, the preferred first.
FIELDS = ("text", "caption", "prompt", "txt", "captions", "texts", "prompts", "description", "sentence", "sentences")
# Suffixes of the text files next to images, in folders and in shards: kohya's and WebDataset's.
FILES = ("txt", "caption", "text", "captions", "prompt")
CLASS_FILE = "cls"  # the suffix of WebDataset's files of class numbers; never a default
# Words in the names of fields that are texts and not captions.
NOT_CAPTIONS = {"author", "date", "error", "exif", "file", "filename", "format", "hash", "id", "key", "lang", "language"} | {
    *("license", "md", "path", "phash", "sha", "size", "source", "split", "status", "time", "uid", "uri", "url", "uuid")
}
FOLDER = "folder"  # the field with the name of an image's subfolder, as in torchvision's `ImageFolder`; never a default


@dataclass(frozen=True)
class CaptionChoice:
    """Samples one of the texts of an image; the same seed and key give the same text.

    Attributes:
        weights: (field, weight), sorted by field; weights are >= 0 and need not sum to 1.
        seed: seed of the sampling among fields and among lists of texts; 0 where nothing is sampled.
        usual: without weights, the fields whose first non-empty text is the caption.
        found: those of `usual` that are known to exist.
        none: whether the empty caption was requested for all images.
    """

    weights: tuple[tuple[str, float], ...]
    seed: int = 0
    usual: tuple[str, ...] = ()
    found: tuple[str, ...] = field(default=(), compare=False, repr=False)
    none: bool = False

    @classmethod
    def from_option(
        cls,
        option: CaptionOption,
        present: Mapping[str, bool],
        seed: int,
        *,
        preferred: Sequence[str] = (*FIELDS, *FILES),
        complete: bool = True,
    ) -> "CaptionChoice":
        """Parse the user's option; None is the usual field names, or the only text field that may be a caption.

        Args:
            present: the text fields of the source, and whether their values are lists.
            preferred: usual field names in lower case, the preferred first.
            complete: whether `present` has all fields of the source.

        Raises:
            ValueError: there is no field, a weight is negative or not finite, or no weight is above zero.
        """
        if option is None:
            return cls._of_usual(present, seed, preferred, complete)
        if option == NO_CAPTIONS:
            return cls((), none=True)
        if isinstance(option, str):
            option = [option]
        weights = dict(option) if isinstance(option, Mapping) else dict.fromkeys(option, 1.0)
        is_valid = all(isinstance(weight, int | float) and 0 <= weight < math.inf for weight in weights.values())
        if not is_valid or sum(weights.values()) <= 0:
            raise ValueError(f"caption: got {option!r}; expects a field, or fields with weights >= 0 and one above 0.")
        is_sampled = sum(weight > 0 for weight in weights.values()) > 1 or any(present.get(name) for name in weights)
        return cls(tuple(sorted((name, float(weight)) for name, weight in weights.items())), seed if is_sampled else 0)

    @classmethod
    def _of_usual(cls, present: Mapping[str, bool], seed: int, preferred: Sequence[str], complete: bool) -> "CaptionChoice":
        found = [name for usual in dict.fromkeys(preferred) for name in sorted(present) if name.lower() == usual]
        if not found:
            named = [name for name in present if set(_words(name)) & {"caption", "captions", "prompt", "text"}]
            candidates = named or [name for name in present if not set(_words(name)) & NOT_CAPTIONS]
            found = candidates if len(candidates) == 1 else []
        usual = found if complete else [*found, *(name for name in dict.fromkeys(preferred) if name not in found)]
        is_sampled = any(present[name] for name in found)
        return cls((), seed if is_sampled else 0, tuple(usual), tuple(found))

    @property
    def fields(self) -> list[str]:
        return [name for name, _ in self.weights] or list(self.usual)

    def require(self, present: Collection[str], where: str) -> None:
        """Raise ValueError, with the nearest existing field, if a requested field is not in `present`."""
        for name, _ in self.weights:
            if name not in present:
                nearest = get_close_matches(name, present, n=1)
                hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
                choices = f"one of {', '.join(map(repr, sorted(present)))}" if present else "captions, and it has none at all"
                raise ValueError(f"caption: {where} has no {name!r}{hint}; expects {choices}.")

    def sample(self, key: str, texts: Texts) -> str:
        """The caption of image `key`, sampled by weight among its non-empty texts; "" if all texts are empty."""
        if not self.weights:
            return self._one(key, next((texts[name] for name in self.usual if texts.get(name)), ""))
        present = [(texts[name], weight) for name, weight in self.weights if texts.get(name) and weight > 0]
        remaining = chance(self.seed, key) * sum(weight for _, weight in present)
        for text, weight in present:
            remaining -= weight
            if remaining < 0:
                return self._one(key, text)
        return self._one(key, present[-1][0]) if present else ""  # rounding may leave a small positive remainder

    def _one(self, key: str, text: str | list[str]) -> str:
        """A text; of a list of texts, the one that the seed and the image's key determine."""
        return text if isinstance(text, str) else text[int(chance("caption", self.seed, key) * len(text))]

    def describe(self) -> str:
        if self.none:
            return NO_CAPTIONS
        if not self.weights:
            return " or ".join(self.found) or ("the usual fields" if self.usual else "not found")
        if len(self.weights) == 1:
            return self.fields[0]
        total = sum(weight for _, weight in self.weights)
        return ", ".join(f"{name} {weight / total:.0%}" for name, weight in self.weights)


def _words(name: str) -> list[str]:
    return re.findall("[a-z]+", name.lower())
