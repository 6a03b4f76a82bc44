"""Regressions of a student against its teacher that a single distance does not show.

Coverage of concepts, prompt following and memorisation are always analysed; attributes, modes and robustness to prompts only on
request, because they sample many more images or are unreliable for small samples.
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

AUDITS = ("attributes", "modes", "robustness")  # names that `--metrics` of a comparison accepts in addition to scores
SMALLEST_GROUP = 5  # images; smaller groups are not tested


@dataclass(frozen=True)
class RegressionAnalysis:
    """Losses, gains and changes of a student compared with its teacher.

    Attributes:
        coverage: coverage of real images by caption; None if captions do not repeat.
        prompt_following: CLIP score by prompt; None without CLIP or if prompts do not repeat.
        modes, attributes, robustness: only on request.
        unusual: with `robustness`, CLIP scores of the student minus the teacher's on prompts outside the training data.
        notes: analyses that were skipped, and why.
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
    """Number of images that each model generates in addition to those of the evaluator's prompts."""
    kinds = len(context.probes.attributes) if "attributes" in context.audits else 0
    if "robustness" in context.audits and context.evaluator.scorer is not None:
        kinds += 2 + (context.probes.unusual is not None)
    return kinds * context.amount


def analyze_regressions(context: AuditContext, teacher: ModelImages, student: ModelImages) -> RegressionAnalysis:
    """Generate the images that the requested audits need, and compare both models."""
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
    if not _form_groups(evaluator.captions):
        notes.append("coverage by concept: the reference's captions do not repeat; choose a coarser caption field.")
        return None
    real = as_tensor(evaluator.reference.features)
    by_teacher, by_student = (covering(real, model.images.features, NEIGHBOURS) for model in (teacher, student))
    return coverage_by_group(by_teacher, by_student, evaluator.captions)


def _following(evaluator: Evaluator, teacher: ModelImages, student: ModelImages, notes: list[str]) -> GroupComparison | None:
    if evaluator.scorer is None:
        notes.append("prompt following: no CLIP model is used.")
        return None
    if not _form_groups(evaluator.prompts):
        notes.append("prompt following by concept: the prompts do not repeat; sample more images or use coarser prompts.")
        return None
    return scores_by_group(clip_scores_of(teacher.images), clip_scores_of(student.images), evaluator.prompts)


def _form_groups(names: Sequence[str]) -> bool:
    """Whether there are several groups of at least `SMALLEST_GROUP` images, with at least half of all images."""
    large = [count for count in Counter(names).values() if count >= SMALLEST_GROUP]
    return len(large) > 1 and 2 * sum(large) >= len(names)
