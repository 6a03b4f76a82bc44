"""What alignment needs of a teacher's pipeline, made for a stage before it is trained."""

from __future__ import annotations

from gendistill.diffusion.latent_discriminator import LatentDiscriminator
from gendistill.diffusion.settings import AlignConfig
from gendistill.diffusion.teacher import Teacher
from gendistill.diffusion.trained_networks import Networks
from gendistill.methods.alignment import Alignment
from gendistill.methods.clip_distance import ClipDistance
from gendistill.methods.latent_adversary import LatentAdversary
from gendistill.methods.stage import Stage
from gendistill.metrics.distances.clip_score import load_scorer
from gendistill.settings.schedule import in_steps


def align_stage(stage: Stage, config: AlignConfig, teacher: Teacher) -> None:
    """Let the student of a stage learn from its teacher's ways too, by the settings' schedules over that stage."""
    settings = in_steps(config, stage.trainer.max_steps)
    device = teacher.pipeline.device
    clip = ClipDistance(teacher.codec, load_scorer(config.clip, device)) if config.semantic.clip != 0 else None

    def make(networks: Networks, name: str) -> Alignment:
        adversary = _adversary(teacher, name) if settings.distribution.adversarial != 0 else None
        return Alignment(networks, settings, stage.steps, adversary=adversary, clip=clip)

    stage.method.align(make)


def _adversary(teacher: Teacher, student: str) -> LatentAdversary:
    """A discriminator for the teacher's latents and conditions, of random weights."""
    example = teacher.encode_prompts((teacher.own_prompts or [""])[:1])
    classes = teacher.network.config.get("num_class_embeds") or 0
    network = LatentDiscriminator(teacher.codec.latent_shape(teacher.resolution), example, classes)
    return LatentAdversary(network.to(teacher.pipeline.device), teacher.denoiser.schedule, student)
