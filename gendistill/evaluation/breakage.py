"""What distillation breaks and one distance hides, student by teacher.

Concepts and copies are looked at always; attributes, modes and robustness to prompts only where they are asked for, as they
draw many images more or say little of small samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from gendistill.evaluation.audited import AuditContext, ModelImages, clip_scores_of
from gendistill.evaluation.extraction import as_tensor
from gendistill.metrics.audit.groups import GroupComparison, coverage_by_group, covering, scores_by_group
from gendistill.metrics.audit.memorisation import Memorisation, memorisation
from gendistill.metrics.distances.manifold import NEIGHBOURS

if TYPE_CHECKING:
    from gendistill.evaluation.attribute_audit import AttributeAudit
    from gendistill.metrics.audit.attributes import AttributeBias
    from gendistill.metrics.audit.modes import ModeLoss
    from gendistill.metrics.audit.robustness import Robustness
    from gendistill.metrics.pairs.paired import PairedTest

AUDITS = ("attributes", "modes", "robustness")  # what `--metrics` of a comparison takes beside the scores
SMALLEST_GROUP = 5  # pictures, below which nothing can be said of a group
BINS = 50


@dataclass(frozen=True)
class Breakage:
    """What a student lost, gained or changed against its teacher.

    Attributes:
        coverage: of the reference's captions; None where they do not fall into groups.
        prompt_following: CLIP score by prompt; None without CLIP or where prompts do not come again.
        modes, attributes, robustness: where they were asked for.
        unusual: with `robustness`, CLIP score of the student less the teacher's on prompts that nobody trained on.
        notes: what was not measured, and why.
    """

    coverage: GroupComparison | None
    prompt_following: GroupComparison | None
    memorisation: Memorisation
    modes: ModeLoss | None = None
    attributes: dict[str, AttributeBias] = field(default_factory=dict)
    robustness: list[Robustness] = field(default_factory=list)
    unusual: PairedTest | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Examiner:
    """Holds students against a teacher; `audits` are the names in `AUDITS` that were asked for."""

    context: AuditContext
    audits: Sequence[str] = ()

    def pictures_to_draw(self) -> int:
        """By each model, beside those of the judge's prompts."""
        probes, kinds = self.context.probes, 0
        if "attributes" in self.audits:
            kinds += len(probes.attributes)
        if "robustness" in self.audits and self.context.judge.scorer is not None:
            kinds += 2 + (probes.unusual is not None)
        return kinds * self.context.amount

    def examine(self, teacher: ModelImages, student: ModelImages) -> Breakage:
        """Draw what is missing and compare."""
        features = self.context.judge.reference.features
        assert features is not None
        notes: list[str] = []
        coverage, following = self._coverage(teacher, student, notes), self._prompt_following(teacher, student, notes)
        modes, attributes, misspelt, unusual = None, {}, [], None
        if "modes" in self.audits:
            modes = self._modes(teacher, student)
        if "attributes" in self.audits:
            attributes = self._attribute_audit.compare(teacher, student, notes)
        copies = memorisation(features, teacher.pictures.features, student.pictures.features, self.context.held_out)
        if "robustness" in self.audits:
            from gendistill.evaluation.prompt_audit import compare_misspelt, compare_unusual

            misspelt = compare_misspelt(self.context, teacher, student, notes)
            unusual = compare_unusual(self.context, teacher, student, notes)
        return Breakage(coverage, following, copies, modes, attributes, misspelt, unusual, notes)

    def _coverage(self, teacher: ModelImages, student: ModelImages, notes: list[str]) -> GroupComparison | None:
        judge = self.context.judge
        if not _fall_into_groups(judge.captions):
            notes.append("coverage by concept: the reference's captions do not come again; take a coarser caption field.")
            return None
        real = as_tensor(judge.reference.features)
        by_teacher, by_student = (covering(real, model.pictures.features, NEIGHBOURS) for model in (teacher, student))
        return coverage_by_group(by_teacher, by_student, judge.captions)

    def _prompt_following(self, teacher: ModelImages, student: ModelImages, notes: list[str]) -> GroupComparison | None:
        judge = self.context.judge
        if judge.scorer is None:
            notes.append("prompt following: there is no CLIP model.")
            return None
        if not _fall_into_groups(judge.prompts):
            notes.append("prompt following by concept: the prompts do not come again; take more pictures or coarser prompts.")
            return None
        return scores_by_group(clip_scores_of(teacher.pictures), clip_scores_of(student.pictures), judge.prompts)

    def _modes(self, teacher: ModelImages, student: ModelImages) -> ModeLoss:
        from gendistill.metrics.audit.modes import mode_loss

        judge = self.context.judge
        assert judge.reference.features is not None
        bins = min(BINS, max(2, len(judge.prompts) // 20))
        of_models = (model.pictures.features for model in (teacher, student))
        return mode_loss(judge.reference.features, *of_models, bins=bins)

    @cached_property
    def _attribute_audit(self) -> AttributeAudit:
        from gendistill.evaluation.attribute_audit import AttributeAudit

        return AttributeAudit(self.context)


def _fall_into_groups(names: Sequence[str]) -> bool:
    """Whether most pictures are in groups of which something can be said."""
    large = [count for count in Counter(names).values() if count >= SMALLEST_GROUP]
    return len(large) > 1 and 2 * sum(large) >= len(names)
