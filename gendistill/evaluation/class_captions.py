"""The caption field of real images that names a GAN's classes, for users who do not specify one."""

from __future__ import annotations

from collections.abc import Iterable

from gendistill.data.samples import ImageSource
from gendistill.data.sources.source import open_source
from gendistill.samplers import Sampler


def class_caption(reference: str, samplers: Iterable[Sampler]) -> str | None:
    """The caption field of a reference whose texts are classes of all samplers; None if every sampler accepts any prompt.

    Raises:
        ValueError: a sampler accepts its own classes only, and no field consists of these classes.
    """
    restricted = [sampler for sampler in samplers if sampler.own_prompts not in (None, [""])]
    if not restricted or not isinstance(source := open_source(reference), ImageSource):
        return None
    field = source.field_of(lambda texts: all(sampler.knows(texts) for sampler in restricted))
    if field is None:
        classes = ", ".join(repr(prompt) for prompt in (restricted[0].own_prompts or [])[:3])
        raise ValueError(
            f"caption: no field of {reference} ({source.seen}) names the model's classes ({classes}, ...) and nothing else; "
            "expects --prompts FILE with one class per line"
        )
    return field
