"""Does it still fit? A student held against its teacher in latent space, layer by layer, and by what was made for the teacher.

LoRAs, ControlNets and decoders made for a teacher go on working where its student keeps to the teacher's latent space and to
what the teacher's layers say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.diffusion.blocks import blocks_of, paired_blocks, reading, sizes_of
from gendistill.evaluation.add_ons import AddOn, AddOnFit, SampledModel, add_on_fit
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
from gendistill.schedulers import NoiseSchedule

MIN_PROMPTS = 4  # of the unbiased CKA
CKA_IMAGES = 32  # all layers of so many are in memory at once: 1.5 GB each of SD 1.5's teacher and student
NOISE_LEVELS = (0.1, 0.5, 0.9)  # shares of the teacher's timesteps
OTHER_NOISE = 2**32  # added to an image's seed: noise that its latents were not sampled from


@dataclass(frozen=True)
class LatentDrift:
    """How far the student's final latents are from the teacher's of the same noise and prompts.

    Means, covariances and rotations are of the channels: every place of every image is a sample of C features, as a decoder
    sees it.

    Attributes:
        moments: of the channels, over all places.
        procrustes: what is left of the squared distance after the best rotation of the channels, in [0, 2].
        unrotated: the same before it; much larger where the student's space is the teacher's, rotated.
        cosine: between an image's latents, on average.
        psnr: in dB, of the latents, whose peak is the teacher's range; infinite where they are equal.
    """

    moments: MomentDrift
    procrustes: float
    unrotated: float
    cosine: float
    psnr: float


@dataclass(frozen=True)
class LayerFit:
    """A layer of the teacher and that of the student it is paired with, as modules are called: `down_blocks.0`.

    Attributes:
        size: height and width of their maps.
        cka: by timestep, the unbiased linear CKA of their maps over images; 1 is the same up to rotation and scale.
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
    """All figures of a student beside its teacher.

    Attributes:
        images: how many were sampled of each, and how many of them the layers were compared on.
        ways: how the teacher's were sampled and how the student's: steps and guidance scale.
        unpaired: layers of the teacher that the student has none for.
        add_ons: what was made for the teacher, as far as it was given.
        extractor: the network whose features the add-ons' effects are in; empty without any.
    """

    images: tuple[int, int]
    trajectories: dict[str, tuple[int, float]]
    latents: LatentDrift
    layers: tuple[LayerFit, ...]
    unpaired: tuple[str, ...]
    add_ons: tuple[AddOnFit, ...]
    extractor: str

    @property
    def mean_cka(self) -> float | None:
        """Of all layers; None where no two are comparable."""
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
    """Sample from both and compare. Both pipelines are afterwards as they were.

    The teacher is sampled at the guidance scale that the student imitates; layers are compared at `NOISE_LEVELS`.

    Args:
        prompts, seeds: one an image, the same for both models; at least 4.
        teacher_steps, student_steps: those that each is sampled in by default where None.
        guidance_scale: of the student; its default where None.
        add_ons: LoRAs and ControlNets that were made for the teacher.
        extractor: what the effects of add-ons are measured in; the embedded `emoji` network where None.
        progress: called with the number of images sampled, again and again.

    Raises:
        ValueError: fewer than 4 prompts, not a seed a prompt, models of different latent spaces or with prompts of different
            kinds, a file that is not there.
    """
    if len(prompts) < MIN_PROMPTS or len(seeds) != len(prompts):
        raise ValueError(
            f"prompts: got {len(prompts)} with {len(seeds)} seeds, expects at least {MIN_PROMPTS} and a seed for each"
        )
    _require_one_space(*(_latent_shape(of) for of in (teacher, student)))
    for add_on in add_ons:
        add_on.require(teacher.size)
    scale = student.default_guidance_scale if guidance_scale is None else guidance_scale
    imitated = distilled_scale(student, scale) if teacher.family.guided else 1.0
    models = [
        SampledModel(name, sampler, steps or sampler.default_steps, at, list(prompts), list(seeds), progress)
        for name, sampler, steps, at in (
            ("teacher", teacher, teacher_steps, imitated),
            ("student", student, student_steps, scale),
        )
    ]
    latents = [model.latents() for model in models]
    layers, unpaired = _layer_fits([model.first(CKA_IMAGES) for model in models], latents[0])
    found: list[AddOnFit] = []
    if add_ons:
        extractor = extractor or load_extractor("emoji", teacher.device)
        plain = [model.features(extractor) for model in models]
        found = [add_on_fit(models, add_on, extractor, plain) for add_on in add_ons]
    return Fit(
        (len(prompts), min(len(prompts), CKA_IMAGES)),
        {model.name: (model.steps, model.guidance_scale) for model in models},
        latent_drift(*latents),
        tuple(layers),
        tuple(unpaired),
        tuple(found),
        extractor.name if extractor is not None and add_ons else "",
    )


def latent_drift(teacher: Tensor, student: Tensor) -> LatentDrift:
    """Of latents (N, C, h, w) of the same noise and prompts.

    Raises:
        ValueError: shapes differ, or as `gendistill.metrics.pairs.drift` says.
    """
    _require_one_space(tuple(teacher.shape[1:]), tuple(student.shape[1:]))
    places = [latents.movedim(1, -1).flatten(0, -2) for latents in (teacher, student)]
    images = [latents.flatten(1) for latents in (teacher, student)]
    rotated = orthogonal_procrustes(*places)
    return LatentDrift(
        moment_drift(*places),
        rotated.distance,
        rotated.unrotated,
        mean_cosine(*images),
        latent_psnr(*images),
    )


def _latent_shape(sampler: FewStepSampler) -> tuple[int, ...]:
    """Channels, height and width."""
    config = network_of(sampler.pipeline).config
    return config.in_channels, config.sample_size, config.sample_size


def _require_one_space(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    if teacher != student:
        raise ValueError(f"student: diffuses {student} and the teacher {teacher}; expects models of one latent space")


def _layer_fits(models: Sequence[SampledModel], latents: Tensor) -> tuple[list[LayerFit], list[str]]:
    """CKA of the paired layers on the teacher's own latents (N or more, C, h, w), noised; and the teacher's other layers."""
    teacher, count = models[0], len(models[0].prompts)
    schedule = NoiseSchedule.from_scheduler(teacher.sampler.pipeline.scheduler)
    noise = torch.stack(
        [torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed + OTHER_NOISE)) for seed in teacher.seeds]
    )
    found: dict[tuple[str, str], dict[int, float]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for share in NOISE_LEVELS:
        time = round(share * schedule.num_train_timesteps) - 1
        x_t = schedule.add_noise(latents[:count], noise, torch.full((count,), time)).float()
        maps = [_maps(model, x_t, time) for model in models]
        sizes = sizes_of(maps[0])
        for one, other in paired_blocks(sizes, sizes_of(maps[1])):
            a, b = maps[0][one].flatten(1), maps[1][other].flatten(1)
            found.setdefault((one, other), {})[time] = linear_cka(a, b, unbiased=True)
    layers = [LayerFit(one, other, sizes[one], cka) for (one, other), cka in found.items()]
    paired = {layer.teacher for layer in layers}
    return layers, [name for name in sizes if name not in paired]


@torch.no_grad()
def _maps(generating: SampledModel, x_t: Tensor, time: int) -> dict[str, Tensor]:
    """What the network's blocks give at x_t (N, C, h, w): float32 maps (N, C', h', w') on the CPU, by the blocks' names.

    A network that takes its guidance scale as an input is given that of the sampling; of others it is the branch of the prompt.
    """
    sampler, pipeline, family = generating.sampler, generating.sampler.pipeline, generating.sampler.family
    network, size = network_of(pipeline), images_at_once(sampler.resolution)
    maps: dict[str, list[Tensor]] = {name: [] for name in blocks_of(network)}
    with reading(network) as found:
        for start in range(0, len(x_t), size):
            part = x_t[start : start + size].to(sampler.device)
            encoded = family.encode(pipeline, list(generating.prompts[start : start + size]))
            conditioning = family.conditioning(encoded, sampler.size)
            if network.config.get("time_cond_proj_dim") is not None:
                scale = torch.full((len(part),), float(generating.guidance_scale), device=part.device)
                conditioning = conditioning.with_guidance(scale)
            family.call(network, part, torch.full((len(part),), time, device=part.device), conditioning)
            for name, of in found.items():
                maps[name].append(of.float().cpu())
    return {name: torch.cat(batches) for name, batches in maps.items()}
