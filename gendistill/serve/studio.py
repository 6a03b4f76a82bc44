"""The models of a server, the requests that they accept, and their sampling."""

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
    """The models of a server, with a worker that samples one batch at a time.

    Args:
        models: samplers by model name; the first, `STUDENT`, is the default.
        limits: limits of one request.
        max_waiting: maximum number of requests in the queue.
        max_images: maximum number of images in a batch.

    Raises:
        ValueError: a model is an image-to-image generator.
    """

    def __init__(
        self, models: dict[str, Sampler], limits: RequestLimits, *, max_waiting: int = 64, max_images: int = 16
    ) -> None:
        for name, sampler in models.items():
            if sampler.from_images:
                raise ValueError(
                    f"{name}: is an image-to-image generator; expects a model that samples from prompts, classes or noise"
                )
        self.models, self.limits = models, limits
        self.offers = {name: offer_of(name, sampler) for name, sampler in models.items()}
        if (
            spec := models[STUDENT].spec
        ) is not None and TEACHER in models:  # the guidance scale that the student was distilled at
            self.offers[TEACHER] = replace(self.offers[TEACHER], guidance_scale=spec.guidance_scale)
        self.worker = Worker(self._generate, max_waiting=max_waiting, max_images=max_images)

    def warm_up(self) -> None:
        """Sample an image with each model, so that the first request does not wait for the initialisation."""
        for offer in self.offers.values():
            prompt = offer.prompts[0] if offer.prompts else "warm"
            request = ImageRequest(offer.name, prompt, 1, 0, offer.steps, offer.guidance_scale, offer.size)
            self.worker.submit(request).result()

    def advice(self, request: ImageRequest) -> list[str]:
        """Warnings about steps or guidance that a student was not trained for, one sentence each."""
        return self.models[request.model].advice(request.steps, request.guidance_scale)

    def _generate(self, requests: list[ImageRequest]) -> Tensor:
        first = requests[0]
        rows = [(request, request.seed + number) for request in requests for number in range(request.count)]
        options: dict[str, Any] = {"size": first.size} if first.size != self.offers[first.model].size else {}
        if first.image is not None:
            images, masks = ([getattr(request, name) for request, _ in rows] for name in ("image", "mask"))
            options["task"] = Task(torch.stack(images), None if first.mask is None else torch.stack(masks), first.strength)
        batches = self.models[first.model].images(
            [request.prompt for request, _ in rows],
            [seed for _, seed in rows],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance_scale,
            **options,
        )
        return torch.cat([to_uint8(batch).cpu() for batch in batches]).permute(0, 2, 3, 1)


def offer_of(name: str, sampler: Sampler) -> Offer:
    """The requests that a sampler accepts."""
    text_to_image, prompts = sampler.text_to_image, sampler.own_prompts
    return Offer(
        name,
        sampler.default_steps,
        sampler.default_guidance_scale,
        sampler.size,
        multiple=sampler.size_multiple,
        prompts=None if prompts is None else tuple(prompts),
        images=text_to_image,
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
    """A student and the teacher that its folder names, or another teacher; and notes about them, one sentence each.

    Args:
        opening: options of both models, which divide the memory; `like` and `quantization` apply to the student alone.

    Raises:
        ValueError: the student, or the requested teacher, cannot be opened. Without a requested teacher, a note reports the
            failure.
    """
    opening = replace(opening, num_models=2 if with_teacher else 1)
    student_sampler = open_within(student, opening)
    models: dict[str, Sampler] = {STUDENT: student_sampler}
    if not with_teacher:
        return models, []
    if teacher is None and not _has_teacher(student_sampler):
        return models, [f"{student} names no teacher; the page has images of the student alone"]
    try:
        models[TEACHER] = _teacher_of(student_sampler, teacher, replace(opening, like=None, quantization=None))
    except ValueError as error:
        if teacher is not None:
            raise
        return models, [f"the teacher is left out: {error}"]
    return models, []


def compile_networks(models: dict[str, Sampler]) -> None:
    """Compile the networks of the models with torch.compile.

    Raises:
        ValueError: a model is not a diffusion model, or its networks move between devices during sampling.
    """
    for name, sampler in models.items():
        if not isinstance(sampler, FewStepSampler) or isinstance(sampler, PlacedSampler):
            raise ValueError(f"--compile: the {name} is a GAN or uses offloading; expects a diffusion model without --memory")
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
        return open_within(spec.teacher, replace(opening, **spec.teacher_opening))
    return open_within(teacher, opening)


@contextmanager
def studio_of(models: dict[str, Sampler], limits: RequestLimits, **settings: int) -> Iterator[Studio]:
    """A studio whose worker ends with the context."""
    studio = Studio(models, limits, **settings)
    try:
        yield studio
    finally:
        studio.worker.end()
