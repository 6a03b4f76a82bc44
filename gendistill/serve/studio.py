"""The models of a server, side by side: what each may be asked for, and the one place that samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gendistill.gan.generator_sampler import GeneratorSampler
from gendistill.samplers import FewStepSampler, Sampler, to_uint8
from gendistill.samplers.offload.placed import PlacedSampler
from gendistill.samplers.tasks import Task
from gendistill.sampling.load import Opening, open_teacher_of, open_within
from gendistill.serve.image_request import ImageRequest, Offer, RequestLimits
from gendistill.serve.worker import Worker

STUDENT, TEACHER = "student", "teacher"


class Studio:
    """Samples for whoever asks, one batch at a time.

    Args:
        models: what samples, by the name that it is asked for by; `STUDENT` first, for requests that name none.

    Raises:
        ValueError: a model generates images anew from files, which nobody may send.
    """

    def __init__(
        self, models: dict[str, Sampler], limits: RequestLimits, *, max_waiting: int = 64, max_images: int = 16
    ) -> None:
        for name, sampler in models.items():
            if sampler.from_images:
                raise ValueError(f"{name}: generates images anew; expects a model that samples from prompts, classes or noise")
        self.models, self.limits = models, limits
        self.offers = {name: offer_of(name, sampler) for name, sampler in models.items()}
        if (spec := models[STUDENT].spec) is not None and TEACHER in models:  # it samples what the student learned from
            self.offers[TEACHER] = replace(self.offers[TEACHER], guidance_scale=spec.guidance_scale)
        self.worker = Worker(self._generate, max_waiting=max_waiting, max_images=max_images)

    def warm_up(self) -> None:
        """Sample an image by each model, so that nobody waits for what is only made once."""
        for offer in self.offers.values():
            prompt = offer.prompts[0] if offer.prompts else "warm"
            request = ImageRequest(offer.name, prompt, 1, 0, offer.steps, offer.guidance_scale, offer.size)
            self.worker.submit(request).result()

    def advice(self, request: ImageRequest) -> list[str]:
        """What to know of images sampled so, a sentence each: steps or guidance that a student was not made for."""
        return self.models[request.model].advice(request.steps, request.guidance_scale)

    def _generate(self, requests: list[ImageRequest]) -> Tensor:
        like = requests[0]
        rows = [(request, request.seed + number) for request in requests for number in range(request.count)]
        more: dict[str, Any] = {"size": like.size} if like.size != self.offers[like.model].size else {}
        if like.image is not None:
            begun, masks = ([getattr(of, name) for of, _ in rows] for name in ("image", "mask"))
            more["task"] = Task(torch.stack(begun), None if like.mask is None else torch.stack(masks), like.strength)
        batches = self.models[like.model].images(
            [of.prompt for of, _ in rows],
            [seed for _, seed in rows],
            num_inference_steps=like.steps,
            guidance_scale=like.guidance_scale,
            **more,
        )
        return torch.cat([to_uint8(batch).cpu() for batch in batches]).permute(0, 2, 3, 1)


def offer_of(name: str, sampler: Sampler) -> Offer:
    """What may be asked of a sampler."""
    resized, prompts = sampler.text_to_image, sampler.own_prompts
    return Offer(
        name,
        sampler.default_steps,
        sampler.default_guidance_scale,
        sampler.size,
        multiple=8 if resized else None,
        prompts=None if prompts is None else tuple(prompts),
        images=resized,
        allows=_allowing(sampler),
    )


def _allowing(sampler: Sampler) -> Callable[[int, float], None]:
    def allows(steps: int, guidance_scale: float) -> None:
        sampler.require_steps(steps)
        sampler.require_guidance(guidance_scale)

    return allows


def open_models(
    student: str, teacher: str | None, opening: Opening, *, with_teacher: bool = True
) -> tuple[dict[str, Sampler], list[str]]:
    """A student, and the teacher that its folder names, or another one; and what to know of them, a sentence each.

    Args:
        opening: of both, which share its memory; `like` and `quantization` of the student alone.

    Raises:
        ValueError: one that was asked for cannot be opened. A teacher that nobody asked for is left out, which is told.
    """
    opening = replace(opening, share=2 if with_teacher else 1)
    found = open_within(student, opening)
    models: dict[str, Sampler] = {STUDENT: found}
    if not with_teacher:
        return models, []
    if teacher is None and not _has_teacher(found):
        return models, [f"{student} names no teacher; there is no image beside its own"]
    try:
        models[TEACHER] = _teacher_of(found, teacher, replace(opening, like=None, quantization=None))
    except ValueError as error:
        if teacher is not None:
            raise
        return models, [f"the teacher is left out: {error}"]
    return models, []


def compile_networks(models: dict[str, Sampler]) -> None:
    """Let torch compile the networks of models.

    Raises:
        ValueError: one of them is not sampled from by a diffusion pipeline, or moves its networks while it samples.
    """
    for name, sampler in models.items():
        if not isinstance(sampler, FewStepSampler) or isinstance(sampler, PlacedSampler):
            raise ValueError(
                f"--compile: the {name} does not stay where it is or is a GAN; expects a diffusion model, no --memory"
            )
        sampler.compile()


def _has_teacher(student: Sampler) -> bool:
    if isinstance(student, GeneratorSampler):
        return bool((student.student or {}).get("teacher"))
    return student.spec is not None


def _teacher_of(student: Sampler, teacher: str | None, opening: Opening) -> Sampler:
    if isinstance(student, GeneratorSampler):
        return open_teacher_of(student, teacher, device=opening.device)
    if teacher is None:
        spec = student.spec
        assert spec is not None
        return open_within(spec.teacher, replace(opening, config=spec.teacher_config, revision=spec.teacher_revision))
    return open_within(teacher, opening)


@contextmanager
def studio_of(models: dict[str, Sampler], limits: RequestLimits, **settings: int) -> Iterator[Studio]:
    """A studio that ends with its context."""
    studio = Studio(models, limits, **settings)
    try:
        yield studio
    finally:
        studio.worker.end()
