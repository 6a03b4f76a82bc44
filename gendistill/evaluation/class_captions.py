"""Captions of real images that name a GAN's classes: found where the user does not say which field they are."""

from __future__ import annotations

from collections.abc import Iterable

from gendistill.data.samples import ImageSource
from gendistill.data.sources.source import open_source
from gendistill.samplers import Sampler


def class_caption(reference: str, samplers: Iterable[Sampler]) -> str | None:
    """The caption field of a reference whose texts are all classes of all these; None where each takes any prompt.

    Raises:
        ValueError: they take their own classes only, and no field names them alone.
    """
    choosy = [sampler for sampler in samplers if sampler.own_prompts not in (None, [""])]
    if not choosy or not isinstance(source := open_source(reference), ImageSource):
        return None
    fields: dict[str, set[str]] = {}
    for entry in source.entries():
        for name, text in entry.texts.items():
            fields.setdefault(name, set()).add(text)
    fitting = [name for name, texts in fields.items() if all(sampler.knows(texts) for sampler in choosy)]
    if not fitting:
        some = ", ".join(repr(prompt) for prompt in (choosy[0].own_prompts or [])[:3])
        raise ValueError(
            f"caption: no field of {reference} ({', '.join(sorted(fields)) or 'it has none'}) names the model's classes "
            f"({some}, ...) and nothing else; expects --prompts FILE, one class a line"
        )
    return max(fitting, key=lambda name: len(fields[name]))
