"""The audits that are made on request alone: attributes under neutral prompts, modes, prompts out of the ordinary.

They generate many images more, or say little of small samples; imported only where they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.data.images import fitted
from gendistill.data.samples import ImageSource
from gendistill.data.sources.source import Prompts, open_source
from gendistill.evaluation.audited import AuditContext, ModelImages, captions_of, clip_scores_of, image_source
from gendistill.evaluation.evaluator import Evaluator
from gendistill.evaluation.extraction import as_tensor
from gendistill.evaluation.probes import Attribute, Probes
from gendistill.metrics.audit.attributes import AttributeBias, attribute_bias
from gendistill.metrics.audit.modes import ModeLoss, mode_loss
from gendistill.metrics.audit.probe import AttributeRule, LinearProbe, colour_histogram, fit_probe
from gendistill.metrics.audit.robustness import Robustness, perturbed, robustness
from gendistill.metrics.distances.clip_score import clip_scores
from gendistill.metrics.pairs.paired import PairedTest, paired_test

SEED_OF_PROBES = 40_000_003  # apart from those of training and of the prompts that are evaluated
BINS = 50
COLOUR_EDGE = 32  # pixels that colours are counted in
MISSPELT = {"typo": "other spelling", "upper": "capitals"}


def requested_audits(context: AuditContext, teacher: ModelImages, student: ModelImages, notes: list[str]) -> dict[str, Any]:
    """Fields of a `RegressionAnalysis`, those that were asked for; what cannot be measured is a sentence in `notes`."""
    models, found = (teacher, student), dict[str, Any]()
    if "modes" in context.audits:
        found["modes"] = _modes(context.evaluator, models)
    if "attributes" in context.audits:
        found["attributes"] = _attributes(context, models, notes)
    if "robustness" in context.audits:
        found |= {"robustness": _robustness(context, models, notes), "unusual": _unusual(context, models, notes)}
    return found


def _modes(evaluator: Evaluator, models: Sequence[ModelImages]) -> ModeLoss:
    assert evaluator.reference.features is not None
    bins = min(BINS, max(2, len(evaluator.prompts) // 20))
    return mode_loss(evaluator.reference.features, *(model.images.features for model in models), bins=bins)


def _attributes(context: AuditContext, models: Sequence[ModelImages], notes: list[str]) -> dict[str, AttributeBias]:
    """By attribute, by probes that are fitted once."""
    found = {}
    for name, attribute in context.probes.attributes.items():
        if why := _own_classes_only(attribute.prompts, models):
            _leave_out(context, context.amount, f"attribute {name}: {why}, and neutral prompts are none of them.", notes)
            continue
        try:
            if name not in context.fitted:
                context.fitted[name] = _probe(context, name, attribute)
            evaluator = neutral(context.evaluator, attribute, context.amount)
            seen = [_seen(evaluator, model, attribute, context) for model in models]
            found[name] = attribute_bias(context.fitted[name], *seen)
        except ValueError as error:
            notes.append(f"attribute {name}: {error}")
    return found


def _robustness(context: AuditContext, models: Sequence[ModelImages], notes: list[str]) -> list[Robustness]:
    """A result for each kind of misspelling."""
    scorer = context.evaluator.scorer
    if scorer is None:
        notes.append("unusual prompts: there is no CLIP model.")
        return []
    evaluator = context.evaluator.of(range(min(context.amount, len(context.evaluator.prompts))))
    found = []
    for kind, words in MISSPELT.items():
        typed = perturbed(evaluator.prompts, kind, seed=evaluator.seed)
        why = _own_classes_only(typed, models)
        if not why and not any(model.sampler.distinguishes(evaluator.prompts, typed) for model in models):
            why = "the tokenizer sees no difference"
        if why:
            _leave_out(context, len(typed), f"prompts in {words}: {why}.", notes)
            continue
        scores, meant = [], scorer.embed_texts(evaluator.prompts)
        for model in models:
            images = evaluator.on(typed, evaluator.seeds).look(
                model.sampler, model.steps, model.guidance_scale, context.progress
            )
            misspelt = clip_scores(as_tensor(images.image_embeddings), meant).numpy()
            scores += [clip_scores_of(model.images)[: len(typed)], misspelt]
        found.append(robustness(*scores, kind=kind))
    return found


def _unusual(context: AuditContext, models: Sequence[ModelImages], notes: list[str]) -> PairedTest | None:
    """CLIP score of the student less the teacher's on prompts that nobody trained on; None where there are none."""
    if context.probes.unusual is None or context.evaluator.scorer is None:
        return None
    evaluator = unusual(context.evaluator, context.probes, context.amount)
    if why := _own_classes_only(evaluator.prompts, models):
        _leave_out(context, len(evaluator.prompts), f"prompts that nobody trained on: {why}.", notes)
        return None
    of_teacher, of_student = (
        clip_scores_of(evaluator.look(model.sampler, model.steps, model.guidance_scale, context.progress)) for model in models
    )
    return paired_test(of_student, of_teacher)


def _own_classes_only(prompts: Sequence[str], models: Sequence[ModelImages]) -> str:
    """Who cannot sample these; empty where all can."""
    strangers = [model.name for model in models if not model.sampler.knows(prompts)]
    return f"{' and '.join(strangers)} sample{'s' * (len(strangers) == 1)} own classes only" if strangers else ""


def _leave_out(context: AuditContext, images: int, note: str, notes: list[str]) -> None:
    """Note why, and count the images that neither model generates as done."""
    notes.append(note)
    if context.progress:
        context.progress(2 * images)


def neutral(evaluator: Evaluator, attribute: Attribute, amount: int) -> Evaluator:
    """The evaluator on neutral prompts, each as often as any other."""
    prompts = [attribute.prompts[number % len(attribute.prompts)] for number in range(amount)]
    return evaluator.on(prompts, [SEED_OF_PROBES + number for number in range(amount)])


def unusual(evaluator: Evaluator, probes: Probes, amount: int) -> Evaluator:
    """The evaluator on prompts that no model was trained on, sampled without repeats as far as they go."""
    assert probes.unusual is not None
    source = open_source(probes.unusual.path, probes.unusual.caption)
    prompts = source.prompts if isinstance(source, Prompts) else list(dict.fromkeys(captions_of(source)))
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(SEED_OF_PROBES)).tolist()
    chosen = [prompts[order[number % len(order)]] for number in range(amount)]
    return evaluator.on(chosen, [SEED_OF_PROBES + 1_000_000 + number for number in range(amount)])


def _probe(context: AuditContext, name: str, attribute: Attribute) -> LinearProbe:
    """Fitted to the reference's images and captions, tested on held-out ones where there are any."""
    reference, held_out = context.reference, context.probes.unusual
    source = image_source(reference, attribute.caption)
    known = attribute.features == "extractor"
    features = as_tensor(context.evaluator.reference.features) if known else _features(context, source, attribute)
    captions = captions_of(source)
    if len(captions) != len(features):
        raise ValueError("the reference has images that cannot be decoded, which names cannot be told of; mend them.")
    said = [phrase for of in attribute.values.values() for phrase in ([of] if isinstance(of, str) else of)]
    phrases = re.compile("|".join(re.escape(phrase.lower()) for phrase in sorted(said, key=len, reverse=True)))
    groups = [phrases.sub("", caption.lower()) for caption in captions]  # those that differ by the attribute alone
    probe = fit_probe(features, _labels(reference, name, attribute), attribute=name, groups=groups)
    if held_out is not None and held_out.with_images:
        with suppress(ValueError):  # they have not all values
            labels = _labels(held_out.path, name, attribute)
            seen = _features(context, image_source(held_out.path, attribute.caption), attribute)
            probe = probe.tested(seen, labels, on="held-out images")
    return probe


def _labels(path: str, name: str, attribute: Attribute) -> list[str | None]:
    """The value of each image of a source, as its caption has it; None where it teaches nothing."""
    rule = AttributeRule(name, attribute.values, attribute.otherwise)
    labels = rule.labels(captions_of(image_source(path, attribute.caption)))
    for kind, words in attribute.among.items():
        others = captions_of(image_source(path, kind))
        labels = [label if words.lower() in of.lower() else None for label, of in zip(labels, others, strict=True)]
    return labels


def _features(context: AuditContext, source: ImageSource, attribute: Attribute) -> Tensor:
    """What the probe of an attribute sees of a source's images."""
    if attribute.features == "extractor":
        return context.features_of(source)
    images = (torch.from_numpy(np.array(fitted(sample.image, COLOUR_EDGE, COLOUR_EDGE))) for sample in source)
    blocks = []
    while block := list(islice(images, 512)):
        blocks.append(colour_histogram(torch.stack(block).permute(0, 3, 1, 2)))
    return torch.cat(blocks)


def _seen(evaluator: Evaluator, model: ModelImages, attribute: Attribute, context: AuditContext) -> Tensor:
    """What the probe of an attribute sees of a model's images."""
    how = model.sampler, model.steps, model.guidance_scale, context.progress
    if attribute.features == "extractor":
        return as_tensor(evaluator.look(*how).features)
    return torch.cat([colour_histogram(_shrunk(batch)) for batch in evaluator.batches(*how)])


def _shrunk(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to the size that colours are counted in."""
    if images.shape[-1] <= COLOUR_EDGE:
        return images
    smaller = F.interpolate(images.float(), (COLOUR_EDGE, COLOUR_EDGE), mode="bilinear", antialias=True)
    return smaller.round().clamp(0, 255).to(torch.uint8)
