"""What distillation breaks and one distance hides: concepts, modes, shares, copies, unusual prompts; student by teacher."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from gendistill.data.images import fitted
from gendistill.data.samples import PictureSource
from gendistill.data.sources.source import Prompts, open_source
from gendistill.evaluation.extraction import Extraction, as_tensor
from gendistill.evaluation.judge import Judge
from gendistill.evaluation.probes import Attribute, Probes
from gendistill.evaluation.reference import read_reference
from gendistill.metrics.audit.attributes import AttributeBias, attribute_bias
from gendistill.metrics.audit.groups import GroupComparison, coverage_by_group, covering, scores_by_group
from gendistill.metrics.audit.memorisation import Memorisation, memorisation
from gendistill.metrics.audit.modes import ModeLoss, mode_loss
from gendistill.metrics.audit.probe import AttributeRule, LinearProbe, colour_histogram, fit_probe
from gendistill.metrics.audit.robustness import Robustness, perturbed, robustness
from gendistill.metrics.distances.clip_score import clip_scores
from gendistill.metrics.measure import NEIGHBOURS, Pictures
from gendistill.metrics.pairs.paired import PairedTest, paired_test
from gendistill.samplers import Sampler

SEED_OF_PROBES = 40_000_003  # apart from those of training and of the prompts that are judged
SMALLEST_GROUP = 5  # pictures, below which nothing can be said of a group
COLOUR_EDGE = 32  # pixels that colours are counted in
BINS = 50
MISSPELT = {"typo": "other spelling", "upper": "capitals"}

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Side:
    """A model as it is drawn from, and its pictures of the judge's prompts."""

    name: str
    sampler: Sampler
    steps: int
    guidance_scale: float
    pictures: Pictures


@dataclass(frozen=True)
class Breakage:
    """What a student lost, gained or changed against its teacher.

    Attributes:
        coverage: of the reference's captions; None where they do not fall into groups.
        prompt_following: CLIP score by prompt; None without CLIP or where prompts do not come again.
        attributes: and the neutral prompts and seeds of each, by name.
        unusual: CLIP score of the student less the teacher's on prompts that nobody trained on.
        notes: what was not measured, and why.
    """

    coverage: GroupComparison | None
    prompt_following: GroupComparison | None
    modes: ModeLoss
    attributes: dict[str, AttributeBias]
    memorisation: Memorisation
    robustness: list[Robustness]
    unusual: PairedTest | None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Examiner:
    """Holds students against a teacher; what does not depend on the student, probes and held-out pictures, is made once.

    Args:
        reference: the path of the judge's real pictures.
        amount: how many pictures to draw for each attribute and each kind of prompt.
    """

    judge: Judge
    reference: str
    probes: Probes
    amount: int
    progress: Progress | None = None

    def pictures_to_draw(self) -> int:
        """By each model, beside those of the judge's prompts."""
        kinds = len(self.probes.attributes) + (2 + (self.probes.unusual is not None)) * (self.judge.scorer is not None)
        return kinds * self.amount

    def examine(self, teacher: Side, student: Side) -> Breakage:
        """Draw what is missing and compare."""
        features = self.judge.reference.features
        assert features is not None
        notes: list[str] = []
        return Breakage(
            coverage=self._coverage(teacher, student, notes),
            prompt_following=self._prompt_following(teacher, student, notes),
            modes=mode_loss(
                features,
                teacher.pictures.features,
                student.pictures.features,
                bins=min(BINS, max(2, len(self.judge.prompts) // 20)),
                paired=True,
            ),
            attributes=self._attributes(teacher, student, notes),
            memorisation=memorisation(features, teacher.pictures.features, student.pictures.features, self._held_out),
            robustness=self._robustness(teacher, student, notes),
            unusual=self._unusual(teacher, student, notes),
            notes=notes,
        )

    def _coverage(self, teacher: Side, student: Side, notes: list[str]) -> GroupComparison | None:
        if not _fall_into_groups(self.judge.captions):
            notes.append("coverage by concept: the reference's captions do not come again; take a coarser caption field.")
            return None
        real = as_tensor(self.judge.reference.features)
        by_teacher, by_student = (covering(real, side.pictures.features, NEIGHBOURS) for side in (teacher, student))
        return coverage_by_group(by_teacher, by_student, self.judge.captions)

    def _prompt_following(self, teacher: Side, student: Side, notes: list[str]) -> GroupComparison | None:
        if self.judge.scorer is None:
            notes.append("prompt following: there is no CLIP model.")
            return None
        if not _fall_into_groups(self.judge.prompts):
            notes.append("prompt following by concept: the prompts do not come again; take more pictures or coarser prompts.")
            return None
        return scores_by_group(_clip(teacher.pictures), _clip(student.pictures), self.judge.prompts)

    def _attributes(self, teacher: Side, student: Side, notes: list[str]) -> dict[str, AttributeBias]:
        found = {}
        for name, attribute in self.probes.attributes.items():
            if why := _unknown(attribute.prompts, teacher, student):
                notes.append(f"attribute {name}: {why}, and neutral prompts are none of them.")
                self._skip(2 * self.amount)
                continue
            try:
                found[name] = self._attribute(name, attribute, teacher, student)
            except ValueError as error:
                notes.append(f"attribute {name}: {error}")
        return found

    def _attribute(self, name: str, attribute: Attribute, teacher: Side, student: Side) -> AttributeBias:
        if name not in self._probes:
            self._probes[name] = self._probe(name, attribute)
        judge = neutral(self.judge, attribute, self.amount)
        drawn = [self._looked_at(judge, side, attribute) for side in (teacher, student)]
        return attribute_bias(self._probes[name], *drawn, paired=True)

    @cached_property
    def _probes(self) -> dict[str, LinearProbe]:
        return {}

    def _probe(self, name: str, attribute: Attribute) -> LinearProbe:
        """Taught by the reference's pictures and captions, tested on held-out ones where there are any."""
        source, phrases = _pictures(self.reference, attribute.caption), _phrases(attribute)
        captions, features = _captions(source), self._real(source, attribute)
        if len(captions) != len(features):
            raise ValueError("the reference has pictures that cannot be decoded, which names cannot be told of; mend them.")
        groups = [phrases.sub("", caption.lower()) for caption in captions]  # those that differ by the attribute alone
        labels = _labels(self.reference, name, attribute)
        probe = fit_probe(features, labels, attribute=name, groups=groups)
        if self.probes.unusual is not None and self.probes.unusual.with_pictures:
            held_out = _pictures(self.probes.unusual.path, attribute.caption)
            with suppress(ValueError):  # they have not all values
                told = _labels(self.probes.unusual.path, name, attribute)
                probe = probe.tested(self._features(held_out, attribute), told, on="held-out pictures")
        return probe

    def _real(self, source: PictureSource, attribute: Attribute) -> Tensor:
        if attribute.features == "extractor":
            return as_tensor(self.judge.reference.features)
        return self._features(source, attribute)

    def _features(self, source: PictureSource, attribute: Attribute) -> Tensor:
        """What the probe of an attribute sees of a source's pictures."""
        if attribute.features == "extractor":
            extraction = Extraction(self.judge.extractor, None, self.judge.albums)
            return as_tensor(read_reference(source, extraction, square=self.judge.square).reference.features)
        pictures = (torch.from_numpy(np.array(fitted(sample.picture, COLOUR_EDGE, COLOUR_EDGE))) for sample in source)
        blocks = []
        while block := list(islice(pictures, 512)):
            blocks.append(colour_histogram(torch.stack(block).permute(0, 3, 1, 2)))
        return torch.cat(blocks)

    def _looked_at(self, judge: Judge, side: Side, attribute: Attribute) -> Tensor:
        if attribute.features == "extractor":
            looked = judge.look(side.sampler, side.steps, side.guidance_scale, self.progress)
            return as_tensor(looked.features)
        batches = judge.batches(side.sampler, side.steps, side.guidance_scale, self.progress)
        return torch.cat([colour_histogram(_shrunk(batch)) for batch in batches])

    def _robustness(self, teacher: Side, student: Side, notes: list[str]) -> list[Robustness]:
        scorer = self.judge.scorer
        if scorer is None:
            notes.append("unusual prompts: there is no CLIP model.")
            return []
        judge = self.judge.of(range(min(self.amount, len(self.judge.prompts))))
        found = []
        for kind in MISSPELT:
            typed = perturbed(judge.prompts, kind, seed=judge.seed)
            if why := _unknown(typed, teacher, student):
                notes.append(f"prompts in {MISSPELT[kind]}: {why}.")
                self._skip(2 * len(typed))
                continue
            if not any(side.sampler.tells_apart(judge.prompts, typed) for side in (teacher, student)):
                notes.append(f"prompts in {MISSPELT[kind]}: the tokenizer sees no difference.")
                self._skip(2 * len(typed))
                continue
            scores, meant = [], scorer.embed_texts(judge.prompts)
            for side in (teacher, student):
                drawn = judge.on(typed, judge.seeds).look(side.sampler, side.steps, side.guidance_scale, self.progress)
                scores += [_clip(side.pictures)[: len(typed)], clip_scores(torch.as_tensor(drawn.images), meant).numpy()]
            found.append(robustness(*scores, kind=kind))
        return found

    def _unusual(self, teacher: Side, student: Side, notes: list[str]) -> PairedTest | None:
        if self.probes.unusual is None or self.judge.scorer is None:
            return None
        judge = unusual(self.judge, self.probes, self.amount)
        if why := _unknown(judge.prompts, teacher, student):
            notes.append(f"prompts that nobody trained on: {why}.")
            self._skip(2 * len(judge.prompts))
            return None
        looked = [judge.look(side.sampler, side.steps, side.guidance_scale, self.progress) for side in (teacher, student)]
        return paired_test(_clip(looked[1]), _clip(looked[0]))

    def _skip(self, pictures: int) -> None:
        """Count pictures that are not drawn as done."""
        if self.progress:
            self.progress(pictures)

    @cached_property
    def _held_out(self) -> Tensor | None:
        if self.probes.unusual is None or not self.probes.unusual.with_pictures:
            return None
        source = _pictures(self.probes.unusual.path, self.probes.unusual.caption)
        extraction = Extraction(self.judge.extractor, None, self.judge.albums)
        return as_tensor(read_reference(source, extraction, square=self.judge.square).reference.features)


def neutral(judge: Judge, attribute: Attribute, amount: int) -> Judge:
    """The judge on neutral prompts, each as often as any other."""
    prompts = [attribute.prompts[number % len(attribute.prompts)] for number in range(amount)]
    return judge.on(prompts, [SEED_OF_PROBES + number for number in range(amount)])


def unusual(judge: Judge, probes: Probes, amount: int) -> Judge:
    """The judge on prompts that no model was trained on, drawn without repeats as far as they go."""
    assert probes.unusual is not None
    source = open_source(probes.unusual.path, probes.unusual.caption)
    prompts = source.prompts if isinstance(source, Prompts) else list(dict.fromkeys(_captions(source)))
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(SEED_OF_PROBES)).tolist()
    chosen = [prompts[order[number % len(order)]] for number in range(amount)]
    return judge.on(chosen, [SEED_OF_PROBES + 1_000_000 + number for number in range(amount)])


def _unknown(prompts: Sequence[str], *sides: Side) -> str:
    """Who cannot draw these; empty where all can."""
    strangers = [side.name for side in sides if not side.sampler.knows(prompts)]
    return f"{' and '.join(strangers)} draw{'s' * (len(strangers) == 1)} own classes only" if strangers else ""


def _pictures(path: str, caption: str | None) -> PictureSource:
    source = open_source(path, caption)
    assert isinstance(source, PictureSource)
    return source


def _labels(path: str, name: str, attribute: Attribute) -> list[str | None]:
    """The value of each picture of a source, as its caption has it; None where it teaches nothing."""
    rule = AttributeRule(name, attribute.values, attribute.otherwise)
    labels = [rule.label(caption) for caption in _captions(_pictures(path, attribute.caption))]
    for kind, words in attribute.among.items():
        others = _captions(_pictures(path, kind))
        labels = [label if words.lower() in of.lower() else None for label, of in zip(labels, others, strict=True)]
    return labels


def _captions(source: PictureSource) -> list[str]:
    """Of all pictures, in their order; none is decoded."""
    return [source.choice.draw(entry.key, entry.texts) for entry in source.entries()]


def _clip(pictures: Pictures) -> np.ndarray:
    return clip_scores(torch.as_tensor(pictures.images), torch.as_tensor(pictures.texts)).numpy()


def _fall_into_groups(names: Sequence[str]) -> bool:
    """Whether most pictures are in groups of which something can be said."""
    large = [count for count in Counter(names).values() if count >= SMALLEST_GROUP]
    return len(large) > 1 and 2 * sum(large) >= len(names)


def _phrases(attribute: Attribute) -> re.Pattern[str]:
    said = [phrase for of in attribute.values.values() for phrase in ([of] if isinstance(of, str) else of)]
    return re.compile("|".join(re.escape(phrase.lower()) for phrase in sorted(said, key=len, reverse=True)))


def _shrunk(pictures: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to the size that colours are counted in."""
    if pictures.shape[-1] <= COLOUR_EDGE:
        return pictures
    smaller = torch.nn.functional.interpolate(pictures.float(), (COLOUR_EDGE, COLOUR_EDGE), mode="bilinear", antialias=True)
    return smaller.round().clamp(0, 255).to(torch.uint8)
