"""What distillation breaks and one distance hides, student by teacher.

Concepts and copies are looked at always; attributes, modes and robustness to prompts only where they are asked for, as they
sample many images more or say little of small samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gendistill.evaluation.audited import AuditContext, ModelImages, clip_scores_of
from gendistill.evaluation.evaluator import Evaluator
from gendistill.evaluation.extraction import as_tensor
from gendistill.metrics.audit.groups import GroupComparison, coverage_by_group, covering, scores_by_group
from gendistill.metrics.audit.memorisation import Memorisation, memorisation
from gendistill.metrics.distances.manifold import NEIGHBOURS

if TYPE_CHECKING:
    from gendistill.metrics.audit.attributes import AttributeBias
    from gendistill.metrics.audit.modes import ModeLoss
    from gendistill.metrics.audit.robustness import Robustness
    from gendistill.metrics.pairs.paired import PairedTest

AUDITS = ("attributes", "modes", "robustness")  # what `--metrics` of a comparison takes beside the scores
SMALLEST_GROUP = 5  # images, below which nothing can be said of a group


@dataclass(frozen=True)
class RegressionAnalysis:
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
    """By each model, beside those of the evaluator's prompts."""
    kinds = len(context.probes.attributes) if "attributes" in context.audits else 0
    if "robustness" in context.audits and context.evaluator.scorer is not None:
        kinds += 2 + (context.probes.unusual is not None)
    return kinds * context.amount


def analyze_regressions(context: AuditContext, teacher: ModelImages, student: ModelImages) -> RegressionAnalysis:
    """Generate what is missing and compare."""
    features = context.evaluator.reference.features
    assert features is not None
    notes: list[str] = []
    coverage, following = (
        _coverage(context.evaluator, teacher, student, notes),
        _following(context.evaluator, teacher, student, notes),
    )
    requested: dict[str, Any] = {}
    if context.audits:
        from gendistill.evaluation.requested_audits import requested_audits

        requested = requested_audits(context, teacher, student, notes)
    copies = memorisation(features, teacher.images.features, student.images.features, context.held_out)
    return RegressionAnalysis(coverage, following, copies, **requested, notes=notes)


def _coverage(evaluator: Evaluator, teacher: ModelImages, student: ModelImages, notes: list[str]) -> GroupComparison | None:
    if not _fall_into_groups(evaluator.captions):
        notes.append("coverage by concept: the reference's captions do not come again; take a coarser caption field.")
        return None
    real = as_tensor(evaluator.reference.features)
    by_teacher, by_student = (covering(real, model.images.features, NEIGHBOURS) for model in (teacher, student))
    return coverage_by_group(by_teacher, by_student, evaluator.captions)


def _following(evaluator: Evaluator, teacher: ModelImages, student: ModelImages, notes: list[str]) -> GroupComparison | None:
    if evaluator.scorer is None:
        notes.append("prompt following: there is no CLIP model.")
        return None
    if not _fall_into_groups(evaluator.prompts):
        notes.append("prompt following by concept: the prompts do not come again; take more images or coarser prompts.")
        return None
    return scores_by_group(clip_scores_of(teacher.images), clip_scores_of(student.images), evaluator.prompts)


def _fall_into_groups(names: Sequence[str]) -> bool:
    """Whether most images are in groups of which something can be said."""
    large = [count for count in Counter(names).values() if count >= SMALLEST_GROUP]
    return len(large) > 1 and 2 * sum(large) >= len(names)
