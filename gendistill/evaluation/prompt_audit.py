"""Prompts with typos, in capitals and of names that nobody trained on; imported only where they are asked for."""

from __future__ import annotations

import torch

from gendistill.data.sources.source import Prompts, open_source
from gendistill.evaluation.audited import (
    SEED_OF_PROBES,
    AuditContext,
    ModelImages,
    captions_of,
    clip_scores_of,
    own_classes_only,
)
from gendistill.evaluation.judge import Judge
from gendistill.evaluation.probes import Probes
from gendistill.metrics.audit.robustness import Robustness, perturbed, robustness
from gendistill.metrics.distances.clip_score import clip_scores
from gendistill.metrics.pairs.paired import PairedTest, paired_test

MISSPELT = {"typo": "other spelling", "upper": "capitals"}


def compare_misspelt(context: AuditContext, teacher: ModelImages, student: ModelImages, notes: list[str]) -> list[Robustness]:
    """A result for each kind of misspelling; what cannot be measured is a sentence in `notes`."""
    scorer = context.judge.scorer
    if scorer is None:
        notes.append("unusual prompts: there is no CLIP model.")
        return []
    judge = context.judge.of(range(min(context.amount, len(context.judge.prompts))))
    found = []
    for kind, words in MISSPELT.items():
        typed = perturbed(judge.prompts, kind, seed=judge.seed)
        why = own_classes_only(typed, teacher, student)
        if not why and not any(model.sampler.tells_apart(judge.prompts, typed) for model in (teacher, student)):
            why = "the tokenizer sees no difference"
        if why:
            notes.append(f"prompts in {words}: {why}.")
            context.skip(2 * len(typed))
            continue
        scores, meant = [], scorer.embed_texts(judge.prompts)
        for model in (teacher, student):
            drawn = judge.on(typed, judge.seeds).look(model.sampler, model.steps, model.guidance_scale, context.progress)
            misspelt = clip_scores(torch.as_tensor(drawn.image_embeddings), meant).numpy()
            scores += [clip_scores_of(model.pictures)[: len(typed)], misspelt]
        found.append(robustness(*scores, kind=kind))
    return found


def compare_unusual(context: AuditContext, teacher: ModelImages, student: ModelImages, notes: list[str]) -> PairedTest | None:
    """CLIP score of the student less the teacher's on prompts that nobody trained on; None where there are none."""
    if context.probes.unusual is None or context.judge.scorer is None:
        return None
    judge = unusual(context.judge, context.probes, context.amount)
    if why := own_classes_only(judge.prompts, teacher, student):
        notes.append(f"prompts that nobody trained on: {why}.")
        context.skip(2 * len(judge.prompts))
        return None
    of_teacher, of_student = (
        clip_scores_of(judge.look(model.sampler, model.steps, model.guidance_scale, context.progress))
        for model in (teacher, student)
    )
    return paired_test(of_student, of_teacher)


def unusual(judge: Judge, probes: Probes, amount: int) -> Judge:
    """The judge on prompts that no model was trained on, drawn without repeats as far as they go."""
    assert probes.unusual is not None
    source = open_source(probes.unusual.path, probes.unusual.caption)
    prompts = source.prompts if isinstance(source, Prompts) else list(dict.fromkeys(captions_of(source)))
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(SEED_OF_PROBES)).tolist()
    chosen = [prompts[order[number % len(order)]] for number in range(amount)]
    return judge.on(chosen, [SEED_OF_PROBES + 1_000_000 + number for number in range(amount)])
