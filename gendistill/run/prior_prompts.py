"""The teacher's own prompts, from which it generates images that keep a student what it was while it learns new ones."""

from __future__ import annotations

from gendistill.data.encode import training_source
from gendistill.data.sources.prompts import Prompts
from gendistill.data.sources.source import open_source
from gendistill.diffusion.teacher import Teacher
from gendistill.evaluation.default_extractor import is_embedded, prompts_of
from gendistill.methods import RunConfig
from gendistill.samplers import FewStepSampler

EMBEDDED = ("assets/emoji/train-*.tar.gz", "subcategory")  # images with captions that the embedded models know


def prior_prompts(config: RunConfig, teacher: Teacher) -> Prompts:
    """The prompts of `data.prior_prompts`; by default the teacher's classes, the captions of the emoji for the embedded models,
    or the captions of the training images without their trigger word.

    Raises:
        ValueError: the file or images have no prompt, or there are no captions without the trigger.
    """
    data = config.data
    if data.prior_prompts is not None:
        return _captions(data.prior_prompts, data.caption if isinstance(data.caption, str) else None)
    if teacher.own_prompts is not None:
        return Prompts(teacher.own_prompts)
    if is_embedded(teacher.size, prompts_of(FewStepSampler(teacher.pipeline))):
        return _captions(*EMBEDDED)
    if data.trigger is not None:
        source = training_source(data.model_copy(update={"trigger": None}), teacher, config.seed)
        captions = {source.caption_of(entry) for entry in source.entries()} - {""}
        if captions:
            return Prompts(sorted(captions))
    raise ValueError(
        "data.prior_prompts null: the teacher has no prompts of its own; expects a text file of prompts (--prior-prompts), or "
        "data.prior_fraction=0, with which the student forgets more of what it could generate"
    )


def _captions(path: str, caption: str | None) -> Prompts:
    """The prompts of a text file, or the different captions of images."""
    source = open_source(path, caption)
    if isinstance(source, Prompts):
        return source
    source.require_captions("data.caption", "a text file of prompts as data.prior_prompts")
    return Prompts(sorted({source.caption_of(entry) for entry in source.entries()} - {""}))
