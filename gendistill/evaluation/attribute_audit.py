"""Shares of the values of attributes under neutral prompts, told by probes; imported only where they are asked for."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gendistill.data.images import fitted
from gendistill.data.samples import PictureSource
from gendistill.evaluation.audited import (
    SEED_OF_PROBES,
    AuditContext,
    ModelImages,
    captions_of,
    image_source,
    own_classes_only,
)
from gendistill.evaluation.extraction import as_tensor
from gendistill.evaluation.judge import Judge
from gendistill.evaluation.probes import Attribute
from gendistill.metrics.audit.attributes import AttributeBias, attribute_bias
from gendistill.metrics.audit.probe import AttributeRule, LinearProbe, colour_histogram, fit_probe

COLOUR_EDGE = 32  # pixels that colours are counted in


class AttributeAudit:
    """Holds students against a teacher by every attribute of `probes.yaml`; each probe is taught once."""

    def __init__(self, context: AuditContext) -> None:
        self.context = context

    def compare(self, teacher: ModelImages, student: ModelImages, notes: list[str]) -> dict[str, AttributeBias]:
        """By attribute; what cannot be measured is a sentence in `notes`."""
        found, amount = {}, self.context.amount
        for name, attribute in self.context.probes.attributes.items():
            if why := own_classes_only(attribute.prompts, teacher, student):
                notes.append(f"attribute {name}: {why}, and neutral prompts are none of them.")
                self.context.skip(2 * amount)
                continue
            try:
                if name not in self._probes:
                    self._probes[name] = self._probe(name, attribute)
                judge = neutral(self.context.judge, attribute, amount)
                seen = [self._looked_at(judge, model, attribute) for model in (teacher, student)]
                found[name] = attribute_bias(self._probes[name], *seen)
            except ValueError as error:
                notes.append(f"attribute {name}: {error}")
        return found

    @cached_property
    def _probes(self) -> dict[str, LinearProbe]:
        return {}

    def _probe(self, name: str, attribute: Attribute) -> LinearProbe:
        """Taught by the reference's pictures and captions, tested on held-out ones where there are any."""
        reference, unusual = self.context.reference, self.context.probes.unusual
        source, phrases = image_source(reference, attribute.caption), _phrases(attribute)
        known = attribute.features == "extractor"
        features = as_tensor(self.context.judge.reference.features) if known else self._features(source, attribute)
        captions = captions_of(source)
        if len(captions) != len(features):
            raise ValueError("the reference has pictures that cannot be decoded, which names cannot be told of; mend them.")
        groups = [phrases.sub("", caption.lower()) for caption in captions]  # those that differ by the attribute alone
        probe = fit_probe(features, _labels(reference, name, attribute), attribute=name, groups=groups)
        if unusual is not None and unusual.with_pictures:
            held_out = image_source(unusual.path, attribute.caption)
            with suppress(ValueError):  # they have not all values
                told = _labels(unusual.path, name, attribute)
                probe = probe.tested(self._features(held_out, attribute), told, on="held-out pictures")
        return probe

    def _features(self, source: PictureSource, attribute: Attribute) -> Tensor:
        """What the probe of an attribute sees of a source's pictures."""
        if attribute.features == "extractor":
            return self.context.features_of(source)
        pictures = (torch.from_numpy(np.array(fitted(sample.picture, COLOUR_EDGE, COLOUR_EDGE))) for sample in source)
        blocks = []
        while block := list(islice(pictures, 512)):
            blocks.append(colour_histogram(torch.stack(block).permute(0, 3, 1, 2)))
        return torch.cat(blocks)

    def _looked_at(self, judge: Judge, model: ModelImages, attribute: Attribute) -> Tensor:
        how = model.sampler, model.steps, model.guidance_scale, self.context.progress
        if attribute.features == "extractor":
            return as_tensor(judge.look(*how).features)
        return torch.cat([colour_histogram(_shrunk(batch)) for batch in judge.batches(*how)])


def neutral(judge: Judge, attribute: Attribute, amount: int) -> Judge:
    """The judge on neutral prompts, each as often as any other."""
    prompts = [attribute.prompts[number % len(attribute.prompts)] for number in range(amount)]
    return judge.on(prompts, [SEED_OF_PROBES + number for number in range(amount)])


def _labels(path: str, name: str, attribute: Attribute) -> list[str | None]:
    """The value of each picture of a source, as its caption has it; None where it teaches nothing."""
    rule = AttributeRule(name, attribute.values, attribute.otherwise)
    labels = [rule.label(caption) for caption in captions_of(image_source(path, attribute.caption))]
    for kind, words in attribute.among.items():
        others = captions_of(image_source(path, kind))
        labels = [label if words.lower() in of.lower() else None for label, of in zip(labels, others, strict=True)]
    return labels


def _phrases(attribute: Attribute) -> re.Pattern[str]:
    said = [phrase for of in attribute.values.values() for phrase in ([of] if isinstance(of, str) else of)]
    return re.compile("|".join(re.escape(phrase.lower()) for phrase in sorted(said, key=len, reverse=True)))


def _shrunk(pictures: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to the size that colours are counted in."""
    if pictures.shape[-1] <= COLOUR_EDGE:
        return pictures
    smaller = F.interpolate(pictures.float(), (COLOUR_EDGE, COLOUR_EDGE), mode="bilinear", antialias=True)
    return smaller.round().clamp(0, 255).to(torch.uint8)
