"""What distillation broke, as a section of the report: findings in sentences, then the pictures that show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from gendistill.data.samples import PictureSource
from gendistill.evaluation.audited import ModelImages
from gendistill.evaluation.breakage import Breakage
from gendistill.evaluation.comparison import ModelComparison, main_rows
from gendistill.evaluation.judge import Judge
from gendistill.evaluation.probes import Probes
from gendistill.evaluation.reference import pictures_at
from gendistill.evaluation.reporting import (
    Block,
    Details,
    Figure,
    Group,
    PageSection,
    PictureComparison,
    PictureRow,
    PlottedValue,
    Text,
    dumbbell,
    shares,
)
from gendistill.metrics.audit.groups import GroupComparison

if TYPE_CHECKING:
    from gendistill.metrics.audit.attributes import AttributeBias
    from gendistill.metrics.audit.modes import ModeLoss

SHOWN = 5
GROUPS_SHOWN = 15


def breakage_section(
    broken: Breakage, comparison: ModelComparison, student: str, colour: int, source: PictureSource, probes: Probes
) -> PageSection:
    """Of one student.

    Args:
        colour: the student's number.
        source: the reference's pictures.
    """
    judge, baseline = comparison.judge, comparison.baseline
    row = next(row for row in main_rows(comparison.rows) if row.contestant.name == student)
    view = _View(judge, baseline.images, row.images, (baseline.evaluation.label, row.evaluation.label), colour, source)
    blocks: list[Block] = []
    if broken.coverage is not None:
        blocks += [
            Text(broken.coverage.describe()),
            view.groups(broken.coverage, "share of its real pictures that are covered", most=1),
        ]
    if broken.prompt_following is not None:
        blocks += [
            Text(broken.prompt_following.describe(), "Prompt following"),
            view.groups(broken.prompt_following, "CLIP score", most=100),
        ]
        blocks += view.worst_prompts(broken.prompt_following)
    if broken.modes is not None:
        blocks += [Text(broken.modes.describe(), "Modes"), *view.lost_modes(broken.modes)]
    for name, bias in broken.attributes.items():
        neutral = ", ".join(f"“{prompt}”" for prompt in probes.attributes[name].prompts)
        blocks += [Text(bias.describe(), f"Shares: {name}"), view.shares(bias), Details("Neutral prompts", neutral)]
    blocks += [Text(broken.memorisation.describe(), "Copies of training pictures"), *view.suspicious(broken)]
    unusual = [found.describe() for found in broken.robustness]
    if broken.unusual is not None:
        told = broken.unusual.describe(view.names[1], view.names[0])
        unusual.append(f"Prompts that nobody trained on, by CLIP score: {told}")
    blocks += [Text(text, "" if number else "Unusual prompts") for number, text in enumerate(unusual)]
    if broken.notes:
        blocks.append(Details("What was not measured", "\n".join(broken.notes)))
    return PageSection(
        f"What {student} lost", blocks, f"{view.names[1]} beside {view.names[0]}, on the same prompts and seeds."
    )


def _within(teacher: float, difference: float | None, most: float) -> float | None:
    """The student's score at an end of the difference's interval."""
    return None if difference is None else min(max(teacher + difference, 0.0), most)


class _View:
    """Teacher, student and real pictures by their numbers."""

    def __init__(
        self,
        judge: Judge,
        teacher: ModelImages,
        student: ModelImages,
        names: tuple[str, str],
        colour: int,
        source: PictureSource,
    ) -> None:
        self.judge, self.teacher, self.student, self.names = judge, teacher, student, names
        self.colour, self.source = colour, source

    def groups(self, found: GroupComparison, label: str, most: float) -> Block:
        """The groups that lost most for certain; `most`: what the score can be at most."""
        tested = [change for change in found.groups if change.p_value is not None]
        shown = [
            Group(
                f"{change.group} ({change.count})",
                PlottedValue(change.teacher),
                PlottedValue(change.student, *(_within(change.teacher, end, most) for end in (change.low, change.high))),
            )
            for change in tested[:GROUPS_SHOWN]
        ]
        plot = dumbbell(
            shown,
            label,
            teacher=self.names[0],
            student=self.names[1],
            colour=self.colour,
            better="higher",
        )
        return Figure(plot, f"Of {len(tested)} groups the {len(shown)} that most surely lost, with their numbers of pictures.")

    def shares(self, bias: AttributeBias) -> Block:
        values = [
            Group(
                value.value,
                PlottedValue(value.teacher, value.teacher_low, value.teacher_high),
                PlottedValue(value.student, value.student_low, value.student_high),
            )
            for value in sorted(bias.values, key=lambda value: value.value)
        ]
        plot = shares({bias.attribute: values}, teacher=self.names[0], student=self.names[1], colour=self.colour)
        return Figure(plot, f"{bias.teacher_count} pictures each, their values told by a probe ({bias.accuracy:.0%} right).")

    def worst_prompts(self, found: GroupComparison) -> list[Block]:
        worst = [change for change in found.groups if change.worst and change.p_value is not None]
        numbers = [change.worst[0] for change in worst[:SHOWN]]
        if not numbers:
            return []
        notes = [f"{change.group}: {change.teacher:.1f} → {change.student:.1f}" for change in worst[:SHOWN]]
        drawn = [self._drawn(side, numbers) for side in (self.teacher, self.student)]
        prompts = [self.judge.prompts[number] for number in numbers]
        return [self._rows(prompts, drawn, self.names, notes)]

    def lost_modes(self, modes: ModeLoss) -> list[Block]:
        by_number = {mode.number: mode for mode in modes.bins}
        lost = [by_number[number] for number in modes.lost if by_number[number].teacher_examples][:SHOWN]
        if not lost:
            return []
        real = self._real([mode.examples[0] for mode in lost])
        drawn = self._drawn(self.teacher, [mode.teacher_examples[0] for mode in lost])
        prompts = [self.judge.prompts[mode.teacher_examples[0]] for mode in lost]
        notes = [f"{mode.teacher:.1%} of the teacher's pictures, {mode.student:.1%} of the student's" for mode in lost]
        return [self._rows(prompts, [real, drawn], ("a real one of the mode", self.names[0]), notes)]

    def suspicious(self, broken: Breakage) -> list[Block]:
        pairs = broken.memorisation.student.pairs[:SHOWN]
        drawn = self._drawn(self.student, [pair.drawn for pair in pairs])
        real = self._real([pair.training for pair in pairs])
        prompts = [self.judge.prompts[pair.drawn] for pair in pairs]
        notes = [f"{pair.ratio:.2f} of that picture's distance to its own nearest" for pair in pairs]
        return [self._rows(prompts, [drawn, real], (self.names[1], "nearest training picture"), notes)]

    def _rows(self, prompts: list[str], pictures: list[Tensor], columns: Sequence[str], notes: list[str]) -> Block:
        together = zip(prompts, zip(*pictures, strict=True), notes, strict=True)
        return PictureComparison(list(columns), [PictureRow(prompt, list(of), note=note) for prompt, of, note in together])

    def _drawn(self, side: ModelImages, numbers: Sequence[int]) -> Tensor:
        return self.judge.of(numbers).draw(side.sampler, side.steps, side.guidance_scale)

    def _real(self, numbers: Sequence[int]) -> Tensor:
        return pictures_at(self.source, numbers, min(256, self.teacher.sampler.resolution))
