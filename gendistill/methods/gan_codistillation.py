"""GAN co-distillation: a small generator and its discriminator learn together, from data and from a teacher's both networks.

The student generates what its teacher generates of the same noise (output: Aguinaldo et al. 2019; features: Li et al. 2020, Romero
et al. 2015), keeps the relations between images (Park et al. 2019), and is evaluated by a discriminator that learns real from
made, and the opinion of the teacher's discriminator (Aguinaldo et al. 2019, section 3.3; logits as in Hinton et al. 2015).
Where there are no data the teacher's images are the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gendistill.data.gan_batches import GanBatch
from gendistill.gan.augmentation import REPEATED_SAMPLES, augment
from gendistill.gan.discriminator import Discriminator
from gendistill.gan.gan_networks import GanNetworks, persistent_buffers, tapped
from gendistill.gan.perception import Perception
from gendistill.losses.adversarial import (
    discriminator_accuracy,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    r1_penalty,
)
from gendistill.losses.logits import bernoulli_kd, kd, mse_logits
from gendistill.methods.gan_distillation_loss import (
    DistillationLossConfig,
    GanDistillationLoss,
    GeneratorOutput,
    TeacherTargets,
)
from gendistill.networks.hints import Hint
from gendistill.runtime.random import PerSampleRandom
from gendistill.settings.schedule import Temperature, Weight, weight_at
from gendistill.settings.section import Section
from gendistill.training.method import Method, OptimizerSettings, Update


class DiscriminatorConfig(Section):
    """What the discriminator learns: real from made, and the teacher's discriminator's opinion."""

    loss: Literal["hinge", "logistic", "least_squares", "wasserstein"] = "hinge"
    match: Weight = Field(0.1, description="of the teacher's discriminator's logits, where there is one")
    match_loss: Literal["mse", "bernoulli"] = "mse"
    temperature: Temperature = Field(1.0, description="of the Bernoulli loss, and of class heads; a schedule anneals it")
    inherit: bool = Field(True, description="start from the teacher's discriminator where there is one; fresh otherwise")
    real: Literal["data", "teacher", "both"] | None = Field(
        None, description="what is real: the data, the teacher's images, or half of each; the data where there are any"
    )
    steps: int = Field(1, ge=1, description="of the discriminator for one of the student")
    learning_rate_factor: float = Field(2.0, gt=0, description="its learning rate, times the student's: two time scales")
    r1: float = Field(0.0, ge=0, description="gradient penalty on real images (Mescheder et al. 2018)")
    gradient_penalty: float = Field(0.0, ge=0, description="gradient penalty between real and made (WGAN-GP)")
    penalty_every: int = Field(16, ge=1, description="steps; the penalty is multiplied by it")
    augment: list[Literal["color", "translation", "cutout"]] = Field(
        ["color", "translation", "cutout"], description="differentiable augmentation of all that it sees"
    )


class CodistillationConfig(DistillationLossConfig):
    """GAN co-distillation (`--method gan`): the losses between teacher and student."""

    formerly: ClassVar[dict[str, str]] = {"partner": "peer"}
    adversarial: Weight = Field(
        {0: 0, 0.9: 0, 0.92: 0.05},
        description="what the discriminator says; late, since a pruned student has to generate before it can be evaluated",
        validate_default=True,
    )
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    pairs: int = Field(
        0,
        ge=0,
        description="images that the teacher generates once, of fixed noise; steps that ask for none of its layers go by "
        "them; 0 generates anew in each step",
    )
    peer: Literal["none", "teacher", "student"] = Field(
        "none", description="who else learns: the teacher goes on learning beside the student, or a second student does"
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the student's average, which is what is kept")
    betas: tuple[float, float] = Field((0.0, 0.99), description="of Adam, for all networks")
    collapse_diversity: float = Field(
        0.5, ge=0, lt=1, description="stop where the student's images are less diverse than so much of the teacher's; 0 never"
    )
    collapse_saturation: float = Field(
        0.98, gt=0, le=1, description="stop where the discriminator tells apart more than this share for long; 1 never"
    )


DiscriminatorOutputs = tuple[Tensor, Tensor | None]  # logits of real and made, and of classes
Labelled = tuple[Tensor, Tensor | None]  # images, and their classes

LASTING = 30  # logs in a row that tell of saturation


@dataclass
class GanPair:
    """A generator that learns, and the discriminator that it plays against.

    Attributes:
        name: of the generator's optimizer.
        network: gives images and features; wrapped by whatever the processes need.
        discriminator: wrapped too; None where nothing adversarial is asked for.
        evaluator: the same, not wrapped: what gradients pass through on their way to the generator.
        distils: whether it is held against the teacher; a teacher that goes on learning is not.
    """

    name: str
    network: Any
    discriminator: Discriminator | None
    distils: bool = True

    def __post_init__(self) -> None:
        self.learning: nn.Module = self.network
        self.plain_discriminator = self.discriminator

    @property
    def discriminator_name(self) -> str:
        return "discriminator" if self.name == "student" else f"{self.name}_discriminator"

    def modules(self) -> dict[str, nn.Module]:
        """By optimizer name."""
        modules = {self.name: self.learning}
        return (
            modules
            if self.plain_discriminator is None
            else {**modules, self.discriminator_name: self.plain_discriminator.network}
        )

    def wrap(self, wrapped: dict[str, nn.Module]) -> None:
        self.network = wrapped[self.name]
        if self.plain_discriminator is not None:
            self.discriminator = self.plain_discriminator.with_network(wrapped[self.discriminator_name])


class GanCodistillation(Method):
    """The players, wired by the loss functions.

    Args:
        networks: the teacher, and the student with its average.
        hints: the layers of the teacher that the student's regressors were made for.
        players: the student first; then who else learns, see `CodistillationConfig.peer`.
        teacher_discriminator: frozen; None where there is none.
        perception: what images look like to a network; None for pixels alone.
        real: what the discriminators are told is real, see `DiscriminatorConfig.real`.
    """

    name = "gan"
    networks: GanNetworks

    @property
    def monotone(self) -> bool:
        return False

    def __init__(
        self,
        networks: GanNetworks,
        hints: list[Hint],
        pairs: list[GanPair],
        config: CodistillationConfig,
        *,
        teacher_discriminator: Discriminator | None = None,
        perception: Perception | None = None,
        real: str = "data",
    ) -> None:
        self.networks, self.pairs, self.config, self.real = networks, pairs, config, real
        networks.decay = config.ema_decay
        self.teacher_discriminator = teacher_discriminator
        self.distillation_loss = GanDistillationLoss(config, perception)
        self._teacher_paths = [hint.teacher_path for hint in hints]
        self._parameters = {name: dict(module.named_parameters()) for name, module in self.trained_modules().items()}
        self._memory: dict[str, Any] = {"discriminator_accuracy": [], "diversity": None, "most_diverse": 0.0}

    def trained_modules(self) -> dict[str, nn.Module]:
        return {name: module for pair in self.pairs for name, module in pair.modules().items()}

    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        for pair in self.pairs:
            pair.wrap(wrapped)

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        return self._parameters

    def buffers(self) -> dict[str, Tensor]:
        modules = self.trained_modules().items()
        return {f"{name}.{at}": of for name, module in modules for at, of in persistent_buffers(module).items()}

    def optimizer_settings(self, name: str) -> OptimizerSettings:
        of_discriminator = name.endswith("discriminator")
        factor = self.config.discriminator.learning_rate_factor if of_discriminator else 1.0
        return OptimizerSettings(factor, self.config.betas)

    def state_dict(self) -> dict[str, Any]:
        return self._memory

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._memory.update(state)

    def updates(self, batch: GanBatch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        inputs, labels = self._asked(batch, random)
        generated = {pair.name: GeneratorOutput(*pair.network(inputs, labels)) for pair in self.pairs}
        teachers = generated["teacher"].detach() if "teacher" in generated else self._of_teacher(batch, inputs, labels, step)
        real = self._real(batch, teachers.images, labels)
        for pair in self.pairs if weight_at(self.config.adversarial, step) else []:
            if pair.discriminator is not None:
                fake = generated[pair.name].images.detach()
                for number in range(self.config.discriminator.steps):
                    if number:
                        fake = self._another(pair, batch, labels, random)
                    yield self._update_discriminator(pair, real, (fake, labels), step, random)
        targets = self.distillation_loss.targets(teachers, real[0], labels, step)
        for pair in self.pairs:
            peers = [generated[peer.name].detach() for peer in self.pairs if peer is not pair and peer.distils]
            yield self._update_generator(pair, generated[pair.name], targets, peers, labels, step, random)

    def saw_diversity(self, share: float) -> None:
        """How diverse the student's images are, as a share of the teacher's: a validation tells."""
        self._memory["diversity"] = share
        self._memory["most_diverse"] = max(share, self._memory["most_diverse"])

    def stop_reason(self, logs: dict[str, float]) -> str | None:
        """The images have become alike, or the discriminator has nothing left to learn."""
        memory, config = self._memory, self.config
        if "discriminator_accuracy" in logs:
            memory["discriminator_accuracy"] = [*memory["discriminator_accuracy"], logs["discriminator_accuracy"]][-LASTING:]
        least, diversity = config.collapse_diversity, memory["diversity"]
        if diversity is not None and diversity < least <= memory["most_diverse"]:
            return (
                f"the student collapses, its images are {diversity:.2f} times as diverse as the teacher's and were "
                f"{memory['most_diverse']:.2f} (gan.collapse_diversity {least:g}); a smaller trainer.learning_rate or "
                "gan.adversarial helps, or more weight on gan.output and gan.features"
            )
        seen, most = memory["discriminator_accuracy"], config.collapse_saturation
        if most < 1 and len(seen) == LASTING and min(seen) > most:
            return (
                f"the discriminator is saturated, it tells {min(seen):.1%} of pairs apart for {LASTING} logs "
                f"(gan.collapse_saturation {most:g}); a smaller gan.discriminator.learning_rate_factor or "
                "gan.discriminator.r1=0.1 helps"
            )
        return None

    def _asked(self, batch: GanBatch, random: PerSampleRandom) -> tuple[Tensor, Tensor | None]:
        """What all generators are asked for: noise or images (B, ...), and classes (B,)."""
        spec, device = self.networks.teacher.spec, batch.device
        labels = batch.labels
        if labels is None and spec.num_classes:
            labels = (random.uniform() * spec.num_classes).long().to(device)
        inputs = batch.inputs if batch.inputs is not None else random.normal(spec.input_shape).to(device)
        return inputs, labels

    @torch.no_grad()
    def _of_teacher(self, batch: GanBatch, inputs: Tensor, labels: Tensor | None, step: int) -> GeneratorOutput:
        """Its images, and its features where a loss of this step looks at them."""
        paths = self._teacher_paths if self.distillation_loss.needs_features(step) else []
        if batch.generated is not None and not paths:
            return GeneratorOutput(batch.generated)
        return GeneratorOutput(*tapped(self.networks.teacher, paths, inputs, labels))

    @torch.no_grad()
    def _another(self, pair: GanPair, batch: GanBatch, labels: Tensor | None, random: PerSampleRandom) -> Tensor:
        """Images of other noise and the same classes, of a batch's further steps of the discriminator."""
        images: Tensor = pair.network(self._asked(batch, random)[0], labels)[0]
        return images

    def _real(self, batch: GanBatch, generated: Tensor, labels: Tensor | None) -> Labelled:
        """What is real to the discriminators, and its classes."""
        if batch.real is None or self.real == "teacher":
            return generated, labels
        if self.real == "data":
            return batch.real, batch.real_labels
        data = torch.arange(len(generated), device=generated.device) % 2 == 0  # every second one
        mixed = None if labels is None or batch.real_labels is None else torch.where(data, batch.real_labels, labels)
        return torch.where(data[:, None, None, None], batch.real, generated), mixed

    def _update_discriminator(
        self, pair: GanPair, real: Labelled, fake: Labelled, step: int, random: PerSampleRandom
    ) -> Update:
        """Real from made, the teacher's discriminator's opinion, and a penalty every few steps."""
        config = self.config.discriminator
        assert pair.discriminator is not None
        assert pair.plain_discriminator is not None
        # one after the other: batch norms must not compare the two
        seen = [(self._augment(images, random), labels) for images, labels in (real, fake)]
        outputs = [pair.discriminator.outputs(*images) for images in seen]
        of_real, of_fake = (logits.float() for logits, _ in outputs)
        loss = discriminator_loss(of_real, of_fake, config.loss)
        logs = {f"{pair.discriminator_name}_loss": loss.detach()}
        if pair.name == "student":
            logs["discriminator_accuracy"] = discriminator_accuracy(of_real, of_fake).detach()
        if (weight := weight_at(config.match, step)) and self.teacher_discriminator is not None and pair.distils:
            with torch.no_grad():
                target_outputs = [self.teacher_discriminator.outputs(*images) for images in seen]
            matched = _mean([_match(ours, theirs, config, step) for ours, theirs in zip(outputs, target_outputs, strict=True)])
            loss, logs[f"{pair.discriminator_name}_match"] = loss + weight * matched, matched.detach()
        if (config.r1 or config.gradient_penalty) and step % config.penalty_every == 0:
            loss = loss + config.penalty_every * self._penalty(pair.plain_discriminator, real, fake[0], random)
        return Update(loss, (pair.discriminator_name,), logs, watch={pair.name: fake[0].detach().float().mean()})

    def _penalty(self, plain_discriminator: Discriminator, real: Labelled, fake: Tensor, random: PerSampleRandom) -> Tensor:
        config, (images, labels) = self.config.discriminator, real
        penalty = images.new_zeros(())
        if config.r1:
            penalty = penalty + config.r1 * r1_penalty(lambda x: plain_discriminator(x, labels), images)
        if config.gradient_penalty:
            share = random.uniform().to(images.device)
            penalty = penalty + config.gradient_penalty * gradient_penalty(
                lambda x: plain_discriminator(x, labels), images, fake, share
            )
        return penalty

    def _update_generator(
        self,
        pair: GanPair,
        generated: GeneratorOutput,
        targets: TeacherTargets,
        peers: list[GeneratorOutput],
        labels: Tensor | None,
        step: int,
        random: PerSampleRandom,
    ) -> Update:
        """All that a generator is told, each by its weight of this step."""
        terms: list[tuple[str, float, Tensor]] = []
        weight = weight_at(self.config.adversarial, step)
        if weight and pair.plain_discriminator is not None:
            terms.append(
                (
                    "adversarial",
                    weight,
                    self._generator_adversarial_loss(pair.plain_discriminator, generated.images, labels, random),
                )
            )
        if pair.distils:
            terms += self.distillation_loss.terms(generated, targets, peers, labels, step)
        total = sum((weight * loss for _, weight, loss in terms), generated.images.new_zeros(()))
        prefix = "" if pair.name == "student" else f"{pair.name}_"
        logs = {f"{prefix}{name}": loss.detach() for name, _, loss in [("loss", 1.0, total), *terms]}
        return Update(total, (pair.name,), logs)

    def _generator_adversarial_loss(
        self, plain_discriminator: Discriminator, images: Tensor, labels: Tensor | None, random: PerSampleRandom
    ) -> Tensor:
        """The adversarial loss; the discriminator takes no gradient from it."""
        plain_discriminator.network.requires_grad_(False)
        logits = plain_discriminator(self._augment(images, random), labels)
        plain_discriminator.network.requires_grad_(True)
        return generator_loss(logits, self.config.discriminator.loss)

    def _augment(self, images: Tensor, random: PerSampleRandom) -> Tensor:
        policy = tuple(self.config.discriminator.augment)
        return augment(images, random.uniform((REPEATED_SAMPLES,)).to(images.device), policy) if policy else images


def _match(ours: DiscriminatorOutputs, theirs: DiscriminatorOutputs, config: DiscriminatorConfig, step: int) -> Tensor:
    """How far two discriminators' opinions of the same images are apart.

    Class by class where both have a head for classes, else in the one logit; of discriminators that evaluator patches of different
    sizes, in its mean over the image.
    """
    (logits, classes), (target_logits, their_classes) = ours, theirs
    temperature = weight_at(config.temperature, step)
    if classes is not None and their_classes is not None and classes.shape == their_classes.shape:
        return kd(classes, their_classes, temperature)
    if logits.shape != target_logits.shape:
        logits, target_logits = logits.flatten(1).mean(1), target_logits.flatten(1).mean(1)
    return mse_logits(logits, target_logits) if config.match_loss == "mse" else bernoulli_kd(logits, target_logits, temperature)


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean()
