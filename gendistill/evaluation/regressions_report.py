"""What distillation broke, as a section of the report: findings in sentences, then the images that show them."""

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
    broken: RegressionAnalysis, comparison: ModelComparison, student: str, source: ImageSource, probes: Probes
) -> PageSection:
    """Of one student.

    Args:
        source: the reference's images.
    """
    row = next(row for row in main_rows(comparison.rows) if row.entry.name == student)
    view = _View(comparison, row, source)
    blocks: list[Block] = []
    if broken.coverage is not None:
        covered = view.groups(broken.coverage, "share of its real images that are covered", most=1)
        blocks += [Text(broken.coverage.describe()), covered]
    if broken.prompt_following is not None:
        followed = view.groups(broken.prompt_following, "CLIP score", most=100)
        blocks += [Text(broken.prompt_following.describe(), "Prompt following"), followed]
        blocks += view.worst_prompts(broken.prompt_following)
    if broken.modes is not None:
        blocks += [Text(broken.modes.describe(), "Modes"), *view.lost_modes(broken.modes)]
    for name, bias in broken.attributes.items():
        neutral = ", ".join(f"“{prompt}”" for prompt in probes.attributes[name].prompts)
        blocks += [Text(bias.describe(), f"Shares: {name}"), view.shares(bias), Details("Neutral prompts", neutral)]
    blocks += [Text(broken.memorisation.describe(), "Copies of training images"), *view.suspicious(broken)]
    unusual = [found.describe() for found in broken.robustness]
    if broken.unusual is not None:
        told = broken.unusual.describe(view.names[1], view.names[0])
        unusual.append(f"Prompts that nobody trained on, by CLIP score: {told}")
    blocks += [Text(text, "" if number else "Unusual prompts") for number, text in enumerate(unusual)]
    if broken.notes:
        blocks.append(Details("What was not measured", "\n".join(broken.notes)))
    lead = f"{view.names[1]} beside {view.names[0]}, on the same prompts and seeds."
    return PageSection(f"What {student} lost", blocks, lead)


@dataclass(frozen=True)
class _View:
    """A student, its teacher and real images by their numbers."""

    comparison: ModelComparison
    row: ComparisonRow
    source: ImageSource

    @property
    def names(self) -> tuple[str, str]:
        return self.comparison.baseline.evaluation.label, self.row.evaluation.label

    def groups(self, found: GroupComparison, label: str, most: float) -> Block:
        """The groups that lost most for certain; `most`: what the score can be at most."""
        tested = [change for change in found.groups if change.p_value is not None]
        shown = tested[:GROUPS_SHOWN]

        def student(change: GroupChange) -> PlottedValue:
            ends = [None if end is None else min(max(change.teacher + end, 0.0), most) for end in (change.low, change.high)]
            return PlottedValue(change.student, *ends)

        plot = self._plot(
            label,
            [f"{change.group} ({change.count})" for change in shown],
            [PlottedValue(change.teacher) for change in shown],
            [student(change) for change in shown],
        )
        return Figure(plot, f"Of {len(tested)} groups the {len(shown)} that most surely lost, with their numbers of images.")

    def shares(self, bias: AttributeBias) -> Block:
        values = sorted(bias.values, key=lambda value: value.value)
        plot = self._plot(
            f"share of images by {bias.attribute}",
            [value.value for value in values],
            [PlottedValue(value.teacher, value.teacher_low, value.teacher_high) for value in values],
            [PlottedValue(value.student, value.student_low, value.student_high) for value in values],
        )
        return Figure(plot, f"{bias.teacher_count} images each, their values told by a probe ({bias.accuracy:.0%} right).")

    def worst_prompts(self, found: GroupComparison) -> list[Block]:
        worst = [change for change in found.groups if change.worst and change.p_value is not None][:SHOWN]
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
        return self._rows(numbers, {"a real one of the mode": real, teacher: self._generated(teacher, numbers)}, notes)

    def suspicious(self, broken: RegressionAnalysis) -> list[Block]:
        pairs, student = broken.memorisation.student.pairs[:SHOWN], self.names[1]
        numbers, real = [pair.generated for pair in pairs], self._real([pair.training for pair in pairs])
        notes = [f"{pair.ratio:.2f} of that image's distance to its own nearest" for pair in pairs]
        return self._rows(numbers, {student: self._generated(student, numbers), "nearest training image": real}, notes)

    def _plot(self, label: str, rows: list[str], teacher: list[PlottedValue], student: list[PlottedValue]) -> Plot:
        colours = [self.comparison.colours[row.entry.name] for row in (self.comparison.baseline, self.row)]
        return by_row(label, rows, dict(zip(self.names, (teacher, student), strict=True)), colours)

    def _rows(self, numbers: list[int], images: Mapping[str, Tensor], notes: list[str]) -> list[Block]:
        """Images by the names of their columns, a row a prompt, whose numbers are given."""
        together = zip(numbers, zip(*images.values(), strict=True), notes, strict=True)
        rows = [ImageRow(self.comparison.evaluator.prompts[number], of, note) for number, of, note in together]
        return [ImageComparison(list(images), rows)] if rows else []

    def _generated(self, name: str, numbers: Sequence[int]) -> Tensor:
        side = self.comparison.baseline.images if name == self.names[0] else self.row.images
        return self.comparison.evaluator.of(numbers).generate(side.sampler, side.steps, side.guidance_scale)

    def _real(self, numbers: Sequence[int]) -> Tensor:
        return images_at(self.source, numbers, min(256, self.comparison.baseline.images.sampler.resolution))
