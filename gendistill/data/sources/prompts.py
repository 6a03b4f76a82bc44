"""Prompts without images, from which a teacher generates its training data."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from gendistill.data.samples import MAX_CAPTION
from gendistill.data.texts import json_fields, text_lines


class Prompts:
    """Prompts without images, from which a teacher generates its training data.

    Args:
        prompts: a UTF-8 text file with one prompt per line (with or without a byte order mark, any line ends; blank lines are
            ignored); or a sequence of prompts, which may contain "" (the prompt of an unconditional teacher).

    Raises:
        ValueError: the file cannot be read as UTF-8, a line is longer than `MAX_CAPTION`, or no prompt is left.
    """

    def __init__(self, prompts: str | Path | Sequence[str]):
        self.path = Path(prompts) if isinstance(prompts, str | Path) else None
        if self.path is None:
            lines = self.prompts = list(prompts)  # type: ignore[arg-type]
        else:
            try:
                lines = text_lines(self.path.read_bytes(), f"prompts: {str(prompts)!r}")
            except OSError as error:
                raise ValueError(f"prompts: {str(prompts)!r} cannot be read ({error}); expects a UTF-8 text file.") from error
            self.prompts = [line.strip() for line in lines if line.strip()]
            if self.prompts and all(map(json_fields, self.prompts)):
                raise ValueError(f"prompts: {str(prompts)!r} holds JSON objects; expects a text file with one prompt per line.")
        for number, line in enumerate(lines, start=1):
            if len(line) > MAX_CAPTION:
                raise ValueError(f"prompts: line {number} has {len(line)} characters; expects at most {MAX_CAPTION}.")
        if not self.prompts:
            raise ValueError(f"prompts: {str(prompts)!r} holds no prompt; expects a text file with one prompt per line.")

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.prompts)

    def fingerprint(self) -> str:
        """A hash of the prompts in their order."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()

    def describe(self) -> str:
        return f"{len(self)} prompts" + (f" of {self.path}" if self.path else "")
