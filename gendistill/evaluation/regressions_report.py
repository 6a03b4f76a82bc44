"""Regressions of a student as a section of the report: findings in sentences, then images that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from gendistill.data.samples import ImageSource
from gendistill.evaluation.comparison import ComparisonRow, ModelComparison, main_rows
from gendistill.evaluation.probes import Probes
from gendistill.evaluation.reference import images_at
from gendistill.evaluation.regressions import RegressionAnalysis
from gendistill.evaluation.reporting.page import (
    Block,
    Details,
    Figure,
    ImageComparison,
    ImageRow,
    PageSection,
    Text,
)
from gendistill.evaluation.reporting.plot import Plot
from gendistill.evaluation.reporting.rows import PlottedValue, by_row
from gendistill.metrics.audit.groups import GroupChange, GroupComparison

if TYPE_CHECKING:
    from gendistill.metrics.audit.attributes import AttributeBias
    from gendistill.metrics.audit.modes import ModeLoss

SHOWN = 5
GROUPS_SHOWN = 15


def regressions_section(
    regressions: RegressionAnalysis, comparison: ModelComparison, student: str, source: ImageSource, probes: Probes
) -> PageSection:
    """The section of one student.

    Args:
        student: name of its model entry.
        source: the reference's images.
    """
    row = next(row for row in main_rows(comparison.rows) if row.entry.name == student)
    view = _View(comparison, row, source)
    blocks: list[Block] = []
    if regressions.coverage is not None:
        coverage = view.groups(regressions.coverage, "fraction of real images covered", maximum=1)
        blocks += [Text(regressions.coverage.describe(), "Coverage"), coverage]
    if regressions.prompt_following is not None:
        following = view.groups(regressions.prompt_following, "CLIP score", maximum=100)
        blocks += [Text(regressions.prompt_following.describe(), "Prompt following"), following]
        blocks += view.worst_prompts(regressions.prompt_following)
    if regressions.modes is not None:
        blocks += [Text(regressions.modes.describe(), "Modes"), *view.lost_modes(regressions.modes)]
    for name, bias in regressions.attributes.items():
        neutral = ", ".join(f"“{prompt}”" for prompt in probes.attributes[name].prompts)
        blocks += [Text(bias.describe(), f"Attribute: {name}"), view.attribute(bias), Details("Neutral prompts", neutral)]
    blocks += [Text(regressions.memorisation.describe(), "Memorisation"), *view.memorised(regressions)]
    unusual = [result.describe() for result in regressions.robustness]
    if regressions.unusual is not None:
        difference = regressions.unusual.describe(view.names[1], view.names[0])
        unusual.append(f"Prompts outside the training data, by CLIP score: {difference}")
    blocks += [Text(text, "" if number else "Unusual prompts") for number, text in enumerate(unusual)]
    if regressions.notes:
        blocks.append(Details("Not measured", "\n".join(regressions.notes)))
    lead = f"{view.names[1]} compared with {view.names[0]}, on the same prompts and seeds."
    return PageSection(f"Regressions of {student}", blocks, lead)


@dataclass(frozen=True)
class _View:
    """A student and its teacher, with their images and the real ones by index."""

    comparison: ModelComparison
    row: ComparisonRow
    source: ImageSource

    @property
    def names(self) -> tuple[str, str]:
        return self.comparison.baseline.evaluation.label, self.row.evaluation.label

    def groups(self, comparison: GroupComparison, label: str, maximum: float) -> Block:
        """The groups with the most significant losses; `maximum` is the largest possible score."""
        tested = [change for change in comparison.groups if change.p_value is not None]
        shown = tested[:GROUPS_SHOWN]

        def student(change: GroupChange) -> PlottedValue:
            ends = [None if end is None else min(max(change.teacher + end, 0.0), maximum) for end in (change.low, change.high)]
            return PlottedValue(change.student, *ends)

        plot = self._plot(
            label,
            [f"{change.group} ({change.count})" for change in shown],
            [PlottedValue(change.teacher) for change in shown],
            [student(change) for change in shown],
        )
        caption = f"The {len(shown)} groups with the most significant losses, of {len(tested)}; image counts in brackets."
        return Figure(plot, caption)

    def attribute(self, bias: AttributeBias) -> Block:
        values = sorted(bias.values, key=lambda value: value.value)
        plot = self._plot(
            f"fraction of images by {bias.attribute}",
            [value.value for value in values],
            [PlottedValue(value.teacher, value.teacher_low, value.teacher_high) for value in values],
            [PlottedValue(value.student, value.student_low, value.student_high) for value in values],
        )
        return Figure(plot, f"{bias.teacher_count} images each, classified by a linear probe (accuracy {bias.accuracy:.0%}).")

    def worst_prompts(self, comparison: GroupComparison) -> list[Block]:
        worst = [change for change in comparison.groups if change.worst and change.p_value is not None][:SHOWN]
        numbers = [change.worst[0] for change in worst]
        notes = [f"{change.group}: {change.teacher:.1f} → {change.student:.1f}" for change in worst]
        generated = {name: self._generated(name, numbers) for name in self.names} if worst else {}
        return self._rows(numbers, generated, notes)

    def lost_modes(self, modes: ModeLoss) -> list[Block]:
        by_number = {mode.number: mode for mode in modes.bins}
        lost = [by_number[number] for number in modes.lost if by_number[number].teacher_examples][:SHOWN]
        if not lost:
            return []
        numbers = [mode.teacher_examples[0] for mode in lost]
        notes = [f"{mode.teacher:.1%} of the teacher's images, {mode.student:.1%} of the student's" for mode in lost]
        real, teacher = self._real([mode.examples[0] for mode in lost]), self.names[0]
        return self._rows(numbers, {"real image of the mode": real, teacher: self._generated(teacher, numbers)}, notes)

    def memorised(self, regressions: RegressionAnalysis) -> list[Block]:
        pairs, student = regressions.memorisation.student.pairs[:SHOWN], self.names[1]
        numbers, real = [pair.generated for pair in pairs], self._real([pair.training for pair in pairs])
        notes = [f"distance {pair.ratio:.2f}× that of the training image to its own nearest neighbour" for pair in pairs]
        return self._rows(numbers, {student: self._generated(student, numbers), "nearest training image": real}, notes)

    def _plot(self, label: str, rows: list[str], teacher: list[PlottedValue], student: list[PlottedValue]) -> Plot:
        colours = [self.comparison.colours[row.entry.name] for row in (self.comparison.baseline, self.row)]
        return by_row(label, rows, dict(zip(self.names, (teacher, student), strict=True)), colours)

    def _rows(self, numbers: list[int], images: Mapping[str, Tensor], notes: list[str]) -> list[Block]:
        """Images by column name, one row per prompt index."""
        by_prompt = zip(numbers, zip(*images.values(), strict=True), notes, strict=True)
        rows = [ImageRow(self.comparison.evaluator.prompts[number], shown, note) for number, shown, note in by_prompt]
        return [ImageComparison(list(images), rows)] if rows else []

    def _generated(self, name: str, numbers: Sequence[int]) -> Tensor:
        side = self.comparison.baseline.images if name == self.names[0] else self.row.images
        return self.comparison.evaluator.subset(numbers).generate(side.sampler, side.steps, side.guidance_scale)

    def _real(self, numbers: Sequence[int]) -> Tensor:
        return images_at(self.source, numbers, min(256, self.comparison.baseline.images.sampler.resolution))
