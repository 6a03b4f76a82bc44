"""The audits that run only on request: attributes under neutral prompts, modes, and robustness to unusual prompts.

They generate many more images, or are unreliable for small samples; the module is imported only on request.
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

SEED_OF_PROBES = 40_000_003  # differs from the seeds of training and of the evaluated prompts
BINS = 50
COLOUR_EDGE = 32  # edge in pixels of the images for colour histograms
MISSPELT = {"typo": "other spelling", "upper": "capitals"}


def requested_audits(context: AuditContext, teacher: ModelImages, student: ModelImages, notes: list[str]) -> dict[str, Any]:
    """The requested fields of a `RegressionAnalysis`; a skipped measurement adds a sentence to `notes`."""
    models, fields = (teacher, student), dict[str, Any]()
    if "modes" in context.audits:
        fields["modes"] = _modes(context.evaluator, models)
    if "attributes" in context.audits:
        fields["attributes"] = _attributes(context, models, notes)
    if "robustness" in context.audits:
        fields |= {"robustness": _robustness(context, models, notes), "unusual": _unusual(context, models, notes)}
    return fields


def _modes(evaluator: Evaluator, models: Sequence[ModelImages]) -> ModeLoss:
    assert evaluator.reference.features is not None
    bins = min(BINS, max(2, len(evaluator.prompts) // 20))
    return mode_loss(evaluator.reference.features, *(model.images.features for model in models), bins=bins)


def _attributes(context: AuditContext, models: Sequence[ModelImages], notes: list[str]) -> dict[str, AttributeBias]:
    """The bias of each attribute, by probes that are fitted once for all students."""
    biases = {}
    for name, attribute in context.probes.attributes.items():
        if why := _own_classes_only(attribute.prompts, models):
            _skip(context, context.amount, f"attribute {name}: {why}, and neutral prompts are not among them.", notes)
            continue
        try:
            if name not in context.fitted:
                context.fitted[name] = _probe(context, name, attribute)
            evaluator = neutral(context.evaluator, attribute, context.amount)
            features = [_sampled_inputs(evaluator, model, attribute, context) for model in models]
            biases[name] = attribute_bias(context.fitted[name], *features)
        except ValueError as error:
            notes.append(f"attribute {name}: {error}")
    return biases


def _robustness(context: AuditContext, models: Sequence[ModelImages], notes: list[str]) -> list[Robustness]:
    """One result for each kind of perturbed prompt."""
    scorer = context.evaluator.scorer
    if scorer is None:
        notes.append("unusual prompts: no CLIP model is used.")
        return []
    evaluator = context.evaluator.subset(range(min(context.amount, len(context.evaluator.prompts))))
    results = []
    for kind, words in MISSPELT.items():
        prompts = perturbed(evaluator.prompts, kind, seed=evaluator.seed)
        why = _own_classes_only(prompts, models)
        if not why and not any(model.sampler.distinguishes(evaluator.prompts, prompts) for model in models):
            why = "the tokenizer sees no difference"
        if why:
            _skip(context, len(prompts), f"prompts in {words}: {why}.", notes)
            continue
        scores, text_embeddings = [], scorer.embed_texts(evaluator.prompts)
        for model in models:
            images = evaluator.with_prompts(prompts, evaluator.seeds).sample_features(
                model.sampler, model.steps, model.guidance_scale, context.progress
            )
            perturbed_scores = clip_scores(as_tensor(images.image_embeddings), text_embeddings).numpy()
            scores += [clip_scores_of(model.images)[: len(prompts)], perturbed_scores]
        results.append(robustness(*scores, kind=kind))
    return results


def _unusual(context: AuditContext, models: Sequence[ModelImages], notes: list[str]) -> PairedTest | None:
    """CLIP scores of the student minus the teacher's on prompts outside the training data; None without such prompts."""
    if context.probes.unusual is None or context.evaluator.scorer is None:
        return None
    evaluator = unusual(context.evaluator, context.probes, context.amount)
    if why := _own_classes_only(evaluator.prompts, models):
        _skip(context, len(evaluator.prompts), f"prompts outside the training data: {why}.", notes)
        return None
    teacher_scores, student_scores = (
        clip_scores_of(evaluator.sample_features(model.sampler, model.steps, model.guidance_scale, context.progress))
        for model in models
    )
    return paired_test(student_scores, teacher_scores)


def _own_classes_only(prompts: Sequence[str], models: Sequence[ModelImages]) -> str:
    """The reason why some models cannot sample the prompts; empty if all can."""
    names = [model.name for model in models if not model.sampler.knows(prompts)]
    return f"{' and '.join(names)} sample{'s' * (len(names) == 1)} own classes only" if names else ""


def _skip(context: AuditContext, images: int, note: str, notes: list[str]) -> None:
    """Add a note, and advance the progress by the images that neither model generates."""
    notes.append(note)
    if context.progress:
        context.progress(2 * images)


def neutral(evaluator: Evaluator, attribute: Attribute, amount: int) -> Evaluator:
    """The evaluator with an attribute's neutral prompts in equal numbers."""
    prompts = [attribute.prompts[number % len(attribute.prompts)] for number in range(amount)]
    return evaluator.with_prompts(prompts, [SEED_OF_PROBES + number for number in range(amount)])


def unusual(evaluator: Evaluator, probes: Probes, amount: int) -> Evaluator:
    """The evaluator with prompts outside the training data, in random order, repeated only if there are too few."""
    assert probes.unusual is not None
    source = open_source(probes.unusual.path, probes.unusual.caption)
    prompts = source.prompts if isinstance(source, Prompts) else list(dict.fromkeys(captions_of(source)))
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(SEED_OF_PROBES)).tolist()
    chosen = [prompts[order[number % len(order)]] for number in range(amount)]
    return evaluator.with_prompts(chosen, [SEED_OF_PROBES + 1_000_000 + number for number in range(amount)])


def _probe(context: AuditContext, name: str, attribute: Attribute) -> LinearProbe:
    """A probe that is fitted to the reference's images and captions, and tested on held-out images if available."""
    reference, held_out = context.reference, context.probes.unusual
    source = image_source(reference, attribute.caption)
    cached = attribute.features == "extractor"
    features = as_tensor(context.evaluator.reference.features) if cached else _source_inputs(context, source, attribute)
    captions = context.captions(reference, attribute.caption)
    if len(captions) != len(features):
        raise ValueError("the reference has images that cannot be decoded, so captions do not match images; remove them.")
    values = [[value] if isinstance(value, str) else value for value in attribute.values.values()]
    phrases = sorted((phrase for phrase_list in values for phrase in phrase_list), key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(phrase.lower()) for phrase in phrases))
    groups = [pattern.sub("", caption.lower()) for caption in captions]  # images that differ in the attribute only
    probe = fit_probe(features, _labels(context, reference, name, attribute), attribute=name, groups=groups)
    if held_out is not None and held_out.with_images:
        with suppress(ValueError):  # held-out images may lack a value
            labels = _labels(context, held_out.path, name, attribute)
            held_out_features = _source_inputs(context, image_source(held_out.path, attribute.caption), attribute)
            probe = probe.tested(held_out_features, labels, on="held-out images")
    return probe


def _labels(context: AuditContext, path: str, name: str, attribute: Attribute) -> list[str | None]:
    """The attribute's value in the caption of each image of a source; None for images that the probe is not trained on."""
    rule = AttributeRule(name, attribute.values, attribute.otherwise)
    labels = rule.labels(context.captions(path, attribute.caption))
    for kind, words in attribute.among.items():
        others = context.captions(path, kind)
        labels = [label if words.lower() in text.lower() else None for label, text in zip(labels, others, strict=True)]
    return labels


def _source_inputs(context: AuditContext, source: ImageSource, attribute: Attribute) -> Tensor:
    """Inputs (N, D) of an attribute's probe for the images of a source."""
    if attribute.features == "extractor":
        return context.features_of(source)
    images = (torch.from_numpy(np.array(fitted(sample.image, COLOUR_EDGE, COLOUR_EDGE))) for sample in source)
    blocks = []
    while block := list(islice(images, 512)):
        blocks.append(colour_histogram(torch.stack(block).permute(0, 3, 1, 2)))
    return torch.cat(blocks)


def _sampled_inputs(evaluator: Evaluator, model: ModelImages, attribute: Attribute, context: AuditContext) -> Tensor:
    """Inputs (N, D) of an attribute's probe for a model's images."""
    sampling = model.sampler, model.steps, model.guidance_scale, context.progress
    if attribute.features == "extractor":
        return as_tensor(evaluator.sample_features(*sampling).features)
    return torch.cat([colour_histogram(_downsampled(batch)) for batch in evaluator.batches(*sampling)])


def _downsampled(images: Tensor) -> Tensor:
    """Images uint8 (N, 3, H, W), resized to `COLOUR_EDGE` if larger."""
    if images.shape[-1] <= COLOUR_EDGE:
        return images
    smaller = F.interpolate(images.float(), (COLOUR_EDGE, COLOUR_EDGE), mode="bilinear", antialias=True)
    return smaller.round().clamp(0, 255).to(torch.uint8)
