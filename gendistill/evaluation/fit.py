"""How well a student fits its teacher: final latents, feature maps layer by layer, and the effects of the teacher's add-ons.

LoRAs, ControlNets and decoders that were trained for a teacher work with its student if the student keeps the teacher's latent
space and feature maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.diffusion.blocks import blocks_of, paired_blocks, recorded_maps, sizes_of
from gendistill.evaluation.add_ons import AddOn, AddOnFit, SampledModel, add_on_fit
from gendistill.evaluation.default_extractor import chosen_extractor, is_embedded, prompts_of
from gendistill.evaluation.teacher_plans import distilled_scale
from gendistill.metrics.features.extractors import FeatureExtractor
from gendistill.metrics.features.load_extractor import load_extractor
from gendistill.metrics.pairs.drift import (
    MomentDrift,
    latent_psnr,
    linear_cka,
    mean_cosine,
    moment_drift,
    orthogonal_procrustes,
)
from gendistill.samplers import FewStepSampler, images_at_once
from gendistill.samplers.families import network_of

MIN_PROMPTS = 4  # required by the unbiased CKA
CKA_IMAGES = 32  # their feature maps of all layers are in memory at once: 1.5 GB each for SD 1.5's teacher and student
NOISE_LEVELS = (0.1, 0.5, 0.9)  # fractions of the teacher's timesteps
OTHER_NOISE = 2**32  # added to an image's seed, for noise that differs from the initial noise of its latents


@dataclass(frozen=True)
class LatentDrift:
    """Distance of the student's final latents from the teacher's for the same noise and prompts.

    Means, covariances and rotations are those of the channels: every position of every image is a sample of C features, as in
    a decoder's first convolution.

    Attributes:
        moments: drift of the channels' moments, over all positions.
        procrustes: squared distance after the best rotation of the channels, in [0, 2].
        unrotated: squared distance before it; much larger if the student's latent space is a rotation of the teacher's.
        cosine: mean cosine similarity of an image's latents.
        psnr: PSNR of the latents in dB, whose peak is the teacher's range; infinite if they are equal.
    """

    moments: MomentDrift
    procrustes: float
    unrotated: float
    cosine: float
    psnr: float


@dataclass(frozen=True)
class LayerFit:
    """A layer of the teacher and the student's layer that it is paired with, by module name: `down_blocks.0`.

    Attributes:
        size: height and width of their feature maps.
        cka: unbiased linear CKA of their feature maps over images, by timestep; 1 means equal up to rotation and scale.
    """

    teacher: str
    student: str
    size: tuple[int, int]
    cka: dict[int, float]

    @property
    def mean(self) -> float:
        return sum(self.cka.values()) / len(self.cka)


@dataclass(frozen=True)
class Fit:
    """All figures of a student's fit to its teacher.

    Attributes:
        images: number of images sampled from each model, and number of them that the layers were compared on.
        sampling: step count and guidance scale of `teacher` and `student`.
        unpaired: layers of the teacher without a counterpart in the student.
        add_ons: fits of the LoRAs and ControlNets that were trained for the teacher.
        extractor: the network in whose features the effects of add-ons are measured; empty without add-ons.
    """

    images: tuple[int, int]
    sampling: dict[str, tuple[int, float]]
    latents: LatentDrift
    layers: tuple[LayerFit, ...]
    unpaired: tuple[str, ...]
    add_ons: tuple[AddOnFit, ...]
    extractor: str

    @property
    def mean_cka(self) -> float | None:
        """Mean over all paired layers; None if there are no pairs."""
        return sum(layer.mean for layer in self.layers) / len(self.layers) if self.layers else None


def measure_fit(
    teacher: FewStepSampler,
    student: FewStepSampler,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    teacher_steps: int | None = None,
    student_steps: int | None = None,
    guidance_scale: float | None = None,
    add_ons: Sequence[AddOn] = (),
    extractor: FeatureExtractor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Fit:
    """Sample from both models and compare them. Neither pipeline is changed.

    The teacher is sampled at the guidance scale that was distilled into the student; layers are compared at `NOISE_LEVELS`.

    Args:
        prompts, seeds: one per image, the same for both models; at least 4.
        teacher_steps, student_steps: step counts; each model's default if None.
        guidance_scale: guidance scale of the student; its default if None.
        add_ons: LoRAs and ControlNets that were trained for the teacher.
        extractor: feature network for the effects of add-ons; if None, that of `chosen_extractor`.
        progress: called repeatedly with the number of newly sampled images.

    Raises:
        ValueError: fewer than 4 prompts, not one seed per prompt, different latent spaces, different kinds of prompts, or a
            missing file.
    """
    if len(prompts) < MIN_PROMPTS or len(seeds) != len(prompts):
        raise ValueError(
            f"prompts: got {len(prompts)} with {len(seeds)} seeds, expects at least {MIN_PROMPTS} and a seed for each"
        )
    _require_same_latent_space(_latent_shape(teacher), _latent_shape(student))
    for add_on in add_ons:
        add_on.require(teacher.size)
    student_scale = student.default_guidance_scale if guidance_scale is None else guidance_scale
    teacher_scale = distilled_scale(student, student_scale) if teacher.family.has_guidance else 1.0
    models = [
        SampledModel(name, sampler, steps or sampler.default_steps, scale, list(prompts), list(seeds), progress)
        for name, sampler, steps, scale in (
            ("teacher", teacher, teacher_steps, teacher_scale),
            ("student", student, student_steps, student_scale),
        )
    ]
    latents = [model.latents() for model in models]
    layers, unpaired = _layer_fits([model.first(CKA_IMAGES) for model in models], latents[0])
    add_on_fits: list[AddOnFit] = []
    if add_ons:
        extractor = extractor or load_extractor(_network_for(teacher), teacher.device)
        plain = [model.features(extractor) for model in models]
        add_on_fits = [add_on_fit(models, add_on, extractor, plain) for add_on in add_ons]
    return Fit(
        (len(prompts), min(len(prompts), CKA_IMAGES)),
        {model.name: (model.steps, model.guidance_scale) for model in models},
        latent_drift(*latents),
        tuple(layers),
        tuple(unpaired),
        tuple(add_on_fits),
        extractor.name if extractor is not None and add_ons else "",
    )


def _network_for(teacher: FewStepSampler) -> str:
    return chosen_extractor(None, embedded=is_embedded(teacher.size, prompts_of(teacher)))[0]


def latent_drift(teacher: Tensor, student: Tensor) -> LatentDrift:
    """The drift between latents (N, C, h, w) of the same noise and prompts.

    Raises:
        ValueError: shapes differ, or as in `gendistill.metrics.pairs.drift`.
    """
    _require_same_latent_space(tuple(teacher.shape[1:]), tuple(student.shape[1:]))
    positions = [latents.movedim(1, -1).flatten(0, -2) for latents in (teacher, student)]
    images = [latents.flatten(1) for latents in (teacher, student)]
    rotated = orthogonal_procrustes(*positions)
    return LatentDrift(
        moment_drift(*positions),
        rotated.distance,
        rotated.unrotated,
        mean_cosine(*images),
        latent_psnr(*images),
    )


def _latent_shape(sampler: FewStepSampler) -> tuple[int, ...]:
    """Channels, height and width."""
    return sampler.family.codec(sampler.pipeline).latent_shape(sampler.size)


def _require_same_latent_space(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    if teacher != student:
        raise ValueError(
            f"student: has latents of shape {student} and the teacher {teacher}; expects models of one latent space"
        )


def _layer_fits(models: Sequence[SampledModel], latents: Tensor) -> tuple[list[LayerFit], list[str]]:
    """CKA of the paired layers for noised latents (N or more, C, h, w) of the teacher; and the teacher's unpaired layers."""
    teacher, count = models[0], len(models[0].prompts)
    schedule = teacher.sampler.family.schedule_of(teacher.sampler.pipeline)
    noise = torch.stack(
        [torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed + OTHER_NOISE)) for seed in teacher.seeds]
    )
    ckas: dict[tuple[str, str], dict[int, float]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for fraction in NOISE_LEVELS:
        t = round(fraction * schedule.num_train_timesteps) - 1
        x_t = schedule.add_noise(latents[:count], noise, torch.full((count,), t)).float()
        time = float(schedule.network_time(torch.tensor(t)))
        maps = [_feature_maps(model, x_t, time) for model in models]
        sizes = sizes_of(maps[0])
        for teacher_layer, student_layer in paired_blocks(sizes, sizes_of(maps[1])):
            a, b = maps[0][teacher_layer].flatten(1), maps[1][student_layer].flatten(1)
            ckas.setdefault((teacher_layer, student_layer), {})[t] = linear_cka(a, b, unbiased=True)
    layers = [LayerFit(*pair, sizes[pair[0]], cka) for pair, cka in ckas.items()]
    paired = {layer.teacher for layer in layers}
    return layers, [name for name in sizes if name not in paired]


@torch.no_grad()
def _feature_maps(model: SampledModel, x_t: Tensor, time: float) -> dict[str, Tensor]:
    """Feature maps of the network's blocks at x_t (N, C, h, w): float32 (N, C', h', w') on the CPU, by block name.

    A w-conditioned network is called with the guidance scale of the sampling; other networks with the prompt, without guidance.
    """
    sampler, pipeline, family = model.sampler, model.sampler.pipeline, model.sampler.family
    network, size = network_of(pipeline), images_at_once(sampler.resolution)
    maps: dict[str, list[Tensor]] = {name: [] for name in blocks_of(network)}
    with recorded_maps(network) as outputs:
        for start in range(0, len(x_t), size):
            part = x_t[start : start + size].to(sampler.device)
            encoded = family.encode(pipeline, list(model.prompts[start : start + size]))
            conditioning = family.conditioning(encoded, sampler.size)
            if family.guidance_input or network.config.get("time_cond_proj_dim") is not None:
                scale = torch.full((len(part),), float(model.guidance_scale), device=part.device)
                conditioning = conditioning.with_guidance(scale)
            family.call(network, part, torch.full((len(part),), time, device=part.device), conditioning)
            for name, output in outputs.items():
                maps[name].append(output.float().cpu())
    return {name: torch.cat(batches) for name, batches in maps.items()}
