"""Unusual prompts: misspelt, in capitals, unseen in training. Does the student's score drop more than its teacher's?

Images of perturbed prompts are scored against the plain prompts: the intended text, not the typed one.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gendistill.metrics.audit.groups import SHOWN, sign_flip_p, t_interval
from gendistill.metrics.distances.uncertainty import LEVEL

Scores = torch.Tensor | NDArray[np.floating]
WORD = re.compile(r"[^\W\d_]{4,}")
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """Letters next to each letter of an English keyboard: in the same row, and the two nearest in the rows above and below."""
    place = {letter: (row, column) for row, letters in enumerate(ROWS) for column, letter in enumerate(letters)}
    adjacent = {}
    for letter, (row, column) in place.items():
        near = {(row, column - 1), (row, column + 1), (row - 1, column), (row - 1, column + 1), (row + 1, column - 1)}
        adjacent[letter] = "".join(other for other, at in place.items() if at in near | {(row + 1, column)})
    return adjacent


NEIGHBOURS = _neighbours()


def _swap(word: str, chance: random.Random) -> str:
    at = chance.choice([i for i in range(len(word) - 1) if word[i] != word[i + 1]] or [0])
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _drop(word: str, chance: random.Random) -> str:
    at = chance.randrange(len(word))
    return word[:at] + word[at + 1 :]


def _double(word: str, chance: random.Random) -> str:
    at = chance.randrange(len(word))
    return word[: at + 1] + word[at:]


def _neighbour(word: str, chance: random.Random) -> str:
    at = chance.choice([i for i, letter in enumerate(word) if letter.lower() in NEIGHBOURS] or [0])
    letter = chance.choice(NEIGHBOURS.get(word[at].lower(), word[at]))
    return word[:at] + (letter.upper() if word[at].isupper() else letter) + word[at + 1 :]


MISTAKES: dict[str, Callable[[str, random.Random], str]] = {
    "swap": _swap,
    "drop": _drop,
    "double": _double,
    "neighbour": _neighbour,
}
KINDS = ("typo", *MISTAKES, "upper")


def perturbed(prompts: Sequence[str], kind: str, seed: int = 0) -> list[str]:
    """The prompts with one mistake each, in a word of 4 letters or more; result k depends only on `seed`, k and prompt k.

    Args:
        kind: `swap` two adjacent letters, `drop` one, `double` one, replace one by a `neighbour` on an English keyboard;
            `typo`: one of these four at random; `upper`: capitals. A tokenizer that lower-cases, as CLIP's does, removes
            `upper`.

    Raises:
        ValueError: `kind` is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expects one of {', '.join(KINDS)}.")
    if kind == "upper":
        return [prompt.upper() for prompt in prompts]
    return [_mistaken(prompt, kind, random.Random(f"{seed} {k} {prompt}")) for k, prompt in enumerate(prompts)]


def _mistaken(prompt: str, kind: str, chance: random.Random) -> str:
    words = list(WORD.finditer(prompt))
    for word in chance.sample(words, min(1, len(words))):
        mistake = MISTAKES[chance.choice(list(MISTAKES)) if kind == "typo" else kind]
        prompt = prompt[: word.start()] + mistake(word[0], chance) + prompt[word.end() :]
    return prompt


@dataclass(frozen=True)
class Drop:
    """One model's mean score with plain and with perturbed prompts; low, high: interval of the drop."""

    plain: float
    perturbed: float
    drop: float  # plain - perturbed
    low: float
    high: float


@dataclass(frozen=True)
class Robustness:
    """How much more the student's score drops than the teacher's.

    Attributes:
        excess: the student's drop minus the teacher's, in units of the score; above 0 if the student is less robust.
        low, high: interval of the excess.
        p_value: two-sided, of a sign-flip permutation test.
        worst: numbers of the prompts with the largest excess, the largest first.
    """

    kind: str
    count: int
    teacher: Drop
    student: Drop
    excess: float
    low: float
    high: float
    p_value: float
    worst: tuple[int, ...]
    level: float

    def describe(self) -> str:
        """The finding in two sentences."""
        t, s = self.teacher, self.student
        first = (
            f"{self.kind}: over {self.count} prompts the teacher's score goes from {t.plain:.3g} to {t.perturbed:.3g} and the "
            f"student's from {s.plain:.3g} to {s.perturbed:.3g}."
        )
        interval = f"{self.level:.0%} interval of the excess {self.low:+.3g} to {self.high:+.3g}, p = {self.p_value:.2g}"
        if self.p_value > 1 - self.level:
            return f"{first} The two drops do not differ significantly ({interval})."
        return f"{first} The student drops by {abs(self.excess):.3g} {'more' if self.excess > 0 else 'less'} ({interval})."


def robustness(
    teacher_plain: Scores,
    teacher_perturbed: Scores,
    student_plain: Scores,
    student_perturbed: Scores,
    *,
    kind: str = "perturbed",
    permutations: int = 9999,
    seed: int = 0,
) -> Robustness:
    """Compare scores (N,) of the same prompts and seeds, higher is better; all four are against the plain prompts.

    Prompt k is the unit: its excess is (student_plain - student_perturbed) - (teacher_plain - teacher_perturbed).
    Intervals are Student's t. `kind` is the name in the report. A student that is poor at plain prompts has less to lose,
    so compare the excess with the plain scores.

    Raises:
        ValueError: the lengths differ, N is below 2, or a score is not finite.
    """
    scores = [np.asarray(s, dtype=np.float64) for s in (teacher_plain, teacher_perturbed, student_plain, student_perturbed)]
    shapes = [s.shape for s in scores]
    if len(set(shapes)) != 1 or scores[0].ndim != 1 or len(scores[0]) < 2:
        raise ValueError(f"scores: got shapes {shapes}, expects (N,) four times with N of at least 2.")
    if not all(np.isfinite(s).all() for s in scores):
        raise ValueError("scores: got NaN or infinity, expects finite scores.")
    teacher, student = _drop_of(scores[0], scores[1]), _drop_of(scores[2], scores[3])
    excess = (scores[2] - scores[3]) - (scores[0] - scores[1])
    low, high = t_interval(excess)
    worst = np.argsort(-excess, kind="stable")[: min(SHOWN, int((excess > 0).sum()))]
    p = sign_flip_p(excess, permutations, seed)
    return Robustness(kind, len(excess), teacher, student, float(excess.mean()), low, high, p, tuple(worst.tolist()), LEVEL)


def _drop_of(plain: NDArray[np.float64], changed: NDArray[np.float64]) -> Drop:
    return Drop(float(plain.mean()), float(changed.mean()), float((plain - changed).mean()), *t_interval(plain - changed))
