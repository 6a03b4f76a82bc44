"""What distillation breaks and one distance hides, student by teacher.

Concepts and copies are looked at always; attributes, modes and robustness to prompts only where they are asked for, as they
draw many images more or say little of small samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gendistill.evaluation.audited import AuditContext, ModelImages, clip_scores_of
from gendistill.evaluation.extraction import as_tensor
from gendistill.evaluation.judge import Judge
from gendistill.metrics.audit.groups import GroupComparison, coverage_by_group, covering, scores_by_group
from gendistill.metrics.audit.memorisation import Memorisation, memorisation
from gendistill.metrics.distances.manifold import NEIGHBOURS

if TYPE_CHECKING:
    from gendistill.metrics.audit.attributes import AttributeBias
    from gendistill.metrics.audit.modes import ModeLoss
    from gendistill.metrics.audit.robustness import Robustness
    from gendistill.metrics.pairs.paired import PairedTest

AUDITS = ("attributes", "modes", "robustness")  # what `--metrics` of a comparison takes beside the scores
SMALLEST_GROUP = 5  # pictures, below which nothing can be said of a group


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


def images_to_generate(context: AuditContext) -> int:
    """By each model, beside those of the judge's prompts."""
    kinds = len(context.probes.attributes) if "attributes" in context.audits else 0
    if "robustness" in context.audits and context.judge.scorer is not None:
        kinds += 2 + (context.probes.unusual is not None)
    return kinds * context.amount


def examine(context: AuditContext, teacher: ModelImages, student: ModelImages) -> Breakage:
    """Generate what is missing and compare."""
    features = context.judge.reference.features
    assert features is not None
    notes: list[str] = []
    coverage, following = _coverage(context.judge, teacher, student, notes), _following(context.judge, teacher, student, notes)
    requested: dict[str, Any] = {}
    if context.audits:
        from gendistill.evaluation.requested_audits import requested_audits

        requested = requested_audits(context, teacher, student, notes)
    copies = memorisation(features, teacher.pictures.features, student.pictures.features, context.held_out)
    return Breakage(coverage, following, copies, **requested, notes=notes)


def _coverage(judge: Judge, teacher: ModelImages, student: ModelImages, notes: list[str]) -> GroupComparison | None:
    if not _fall_into_groups(judge.captions):
        notes.append("coverage by concept: the reference's captions do not come again; take a coarser caption field.")
        return None
    real = as_tensor(judge.reference.features)
    by_teacher, by_student = (covering(real, model.pictures.features, NEIGHBOURS) for model in (teacher, student))
    return coverage_by_group(by_teacher, by_student, judge.captions)


def _following(judge: Judge, teacher: ModelImages, student: ModelImages, notes: list[str]) -> GroupComparison | None:
    if judge.scorer is None:
        notes.append("prompt following: there is no CLIP model.")
        return None
    if not _fall_into_groups(judge.prompts):
        notes.append("prompt following by concept: the prompts do not come again; take more pictures or coarser prompts.")
        return None
    return scores_by_group(clip_scores_of(teacher.pictures), clip_scores_of(student.pictures), judge.prompts)


def _fall_into_groups(names: Sequence[str]) -> bool:
    """Whether most pictures are in groups of which something can be said."""
    large = [count for count in Counter(names).values() if count >= SMALLEST_GROUP]
    return len(large) > 1 and 2 * sum(large) >= len(names)
