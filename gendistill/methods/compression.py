"""A smaller network that says what its teacher says, at every time and as often as it is asked: before steps, size.

The student is cut out of the teacher (`diffusion.smaller`) and learns its output, what its blocks say, and how the pictures of
a batch lie to one another there (Kim et al. 2023, BK-SDM, section 3.2, with regressors where channels differ). It is sampled in
as many steps as its teacher; another method may then make these fewer, from where this one ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.data.batches import Batch
from gendistill.diffusion.blocks import paired_blocks, reading
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.guidance import Guidance
from gendistill.diffusion.settings import CompressionConfig
from gendistill.diffusion.trained_networks import GUIDANCE_EMBEDDING, Networks, full_networks
from gendistill.gan.settings import CompressConfig
from gendistill.losses.pixel import l2
from gendistill.losses.terms import FEATURE_LOSSES, RELATION_LOSSES, Term, feature_terms, relation_terms
from gendistill.methods.diffusion import DiffusionMethod
from gendistill.methods.stage import Stage
from gendistill.networks.classes import read_arguments
from gendistill.networks.hints import Hint, Regressors
from gendistill.networks.pruning.unet import fewer_blocks_config, matching_config, most_layers, on_meta, smaller_config
from gendistill.networks.pruning.unet_importance import example_inputs
from gendistill.run.config import DistillConfig
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning
from gendistill.schedulers import Prediction
from gendistill.settings.schedule import in_steps, weight_at


class Compression(DiffusionMethod):
    """A smaller student beside its teacher, at any time of the noise.

    Args:
        hints: blocks of both that are matched; none where no loss looks at them.
    """

    name = "compression"

    def __init__(self, networks: Networks, guidance: Guidance, config: CompressionConfig, hints: Sequence[Hint]) -> None:
        self.networks, self.guidance, self.config, self.hints = networks, guidance, config, list(hints)
        self.regressors: Any = Regressors(self.hints).to(next(iter(networks.trained.values())).device)
        learned = dict(self.regressors.named_parameters())
        self._learned = {"regressors": learned} if learned else {}
        self.with_student = tuple(self._learned)

    def trained_modules(self) -> dict[str, nn.Module]:
        return {**super().trained_modules(), **dict.fromkeys(self._learned, self.regressors)}

    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        super().replace_modules(wrapped)
        self.regressors = wrapped.get("regressors", self.regressors)

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        return {**super().trained_parameters(), **self._learned}

    def loss_of(self, batch: Batch, random: PerSampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        terms = list(self.terms(batch, random))
        total = sum((weight * term for _, weight, term in terms), batch.latents.new_zeros(()))
        return total, {name: term.detach() for name, _, term in terms}

    def terms(self, batch: Batch, random: PerSampleRandom) -> Iterator[Term]:
        """Name, weight and loss (0-d) of each that counts in this step, of noisy data at times drawn evenly."""
        config, networks, step = self.config, self.networks, random.step
        latents = batch.latents
        schedule = networks.teacher.schedule
        noise = random.normal(latents.shape[1:]).to(latents.device)
        t = (random.uniform() * schedule.num_train_timesteps).long().to(latents.device)
        x_t = schedule.add_noise(latents, noise, t)
        conditioning, scale = self.guidance.draw(batch.conditioning, random)
        with torch.no_grad(), reading(networks.teacher.network, [hint.teacher_path for hint in self.hints]) as theirs:
            said = self.guidance.predict(networks.teacher, x_t, t, conditioning, scale)
        with reading(networks.student.network, [hint.student_path for hint in self.hints]) as ours:
            prediction = networks.student(x_t, t, conditioning)
        output = networks.student.output_of(prediction, t)
        if weight := weight_at(config.output, step):
            yield "output", weight, l2(output, networks.student.output_of(said, t))
        if weight := weight_at(config.task, step):
            yield "task", weight, l2(output, networks.student.output_of(Prediction(latents, noise), t))
        if self.hints:  # the guided teacher has been called on both branches; the first is that of the prompt
            of_teacher = [theirs[hint.teacher_path][: len(latents)] for hint in self.hints]
            of_student = self.regressors([ours[hint.student_path] for hint in self.hints])
            yield from feature_terms(config.features, step, of_student, of_teacher)
            deepest = min(range(len(self.hints)), key=lambda number: of_teacher[number][0, 0].numel())
            of_pictures = (maps[deepest].float().mean((2, 3)) for maps in (of_student, of_teacher))
            yield from relation_terms(config.relations, step, *of_pictures)

    def after_step(self, step: int) -> None:
        self.networks.update_average(min(self.config.ema_decay, (1 + step) / (10 + step)))


def compression_stage(config: DistillConfig, teacher: Denoiser, unconditional: Conditioning) -> Stage:
    """All of a run of this method; of another method's the first stage, whose student is kept beside in `compressed`."""
    small, _ = matching_config(teacher.network, compressed_config(teacher.network.config, config.compress))
    settings, alone = config.compression, config.method == "compression"
    embedded = config.guidance.mode == "embedded"
    networks = full_networks(teacher, GUIDANCE_EMBEDDING if embedded else None, small)
    trainer = config.trainer if alone else config.trainer_of("compression")
    asked = any(getattr(settings.features, name) != 0 for name in FEATURE_LOSSES)
    asked |= any(getattr(settings.relations, name) != 0 for name in RELATION_LOSSES)
    hints = matched_blocks(teacher.network.config, small.config, settings.features.layers) if asked else []
    method = Compression(networks, Guidance(unconditional, config.guidance), in_steps(settings, trainer.max_steps), hints)
    steps = config.steps if alone else [settings.steps]
    return Stage(method, steps, ["ddim"], "student" if alone else "compressed", trainer, "" if alone else "stages/compression")


def compressed_config(teacher: Mapping[str, Any], compress: CompressConfig) -> dict[str, Any]:
    """The diffusers config of the student that `compress` describes, from its teacher's.

    Raises:
        ValueError: it cannot be as small as that, the user's config is none, or the teacher is no `UNet2DConditionModel`.
    """
    if "cross_attention_dim" not in teacher:
        raise ValueError("compress: takes a teacher whose network is a UNet2DConditionModel, such as Stable Diffusion's")
    if compress.student_config is not None:
        return {**teacher, **read_arguments(compress.student_config, "compress.student_config")}
    if compress.factor is not None:
        return smaller_config(teacher, compress.factor, blocks=compress.blocks)
    return fewer_blocks_config(teacher, mid=most_layers(teacher) > 1)


def matched_blocks(
    teacher: Mapping[str, Any], student: Mapping[str, Any], chosen: Mapping[str, str] | None = None
) -> list[Hint]:
    """Blocks of two configs that are to say the same: by size and depth (`paired_blocks`), or as `chosen`.

    Raises:
        ValueError: a block that is not there, or two of different sizes.
    """
    theirs, ours = shapes_of_blocks(teacher), shapes_of_blocks(student)
    pairs = paired_blocks(*({name: shape[1:] for name, shape in of.items()} for of in (theirs, ours)))
    for one, other in (chosen or {}).items():
        for name, known, whose in ((one, theirs, "teacher"), (other, ours, "student")):
            if name not in known:
                raise ValueError(f"compression.features.layers {name}: takes a block of the {whose}, one of {', '.join(known)}")
        if theirs[one][1:] != ours[other][1:]:
            raise ValueError(f"compression.features.layers {one}: {other} has maps of another size; takes blocks of one size")
    return [Hint(one, other, theirs[one], ours[other]) for one, other in (pairs if chosen is None else chosen.items())]


def shapes_of_blocks(config: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """What each block of a config says of one sample, (C, h, w); no weights are made."""
    network = on_meta(config)
    with torch.no_grad(), reading(network) as maps:
        network(*example_inputs(config))
    return {name: (of.shape[1], of.shape[2], of.shape[3]) for name, of in maps.items()}
