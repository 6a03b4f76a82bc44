"""GAN co-distillation: a small generator and its discriminator, trained together on data and on both networks of a teacher.

The generator is trained to match the teacher's images from the same noise (output: Aguinaldo et al. 2019; features: Li et al.
2020, Romero et al. 2015) and the relations between images (Park et al. 2019), and by an adversarial loss. Its discriminator is
trained to separate real from generated images, and to match the logits of the teacher's discriminator (Aguinaldo et al. 2019,
section 3.3; logits as in Hinton et al. 2015). Without data the teacher's images are the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.data.gan_batches import GanBatch
from gendistill.gan.augmentation import NUM_UNIFORM, augment
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
from gendistill.methods.gan_config import CodistillationConfig, DiscriminatorConfig
from gendistill.methods.gan_distillation_loss import (
    GanDistillationLoss,
    GeneratorOutput,
    TeacherTargets,
)
from gendistill.networks.hints import Hint
from gendistill.runtime.device import to_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.settings.schedule import weight_at
from gendistill.training.method import Method, OptimizerSettings, Update

DiscriminatorOutputs = tuple[Tensor, Tensor | None]  # real/fake logits, class logits
Labelled = tuple[Tensor, Tensor | None]  # images, class labels

SATURATED_LOGS = 30  # consecutive log lines of high accuracy for a saturated discriminator


@dataclass
class GanPair:
    """A trained generator and the discriminator that it is trained against.

    Attributes:
        name: name of the generator's optimizer.
        network: the generator, which returns images and features; wrapped for distributed training.
        discriminator: wrapped for distributed training; its parameters are trained through it. None without adversarial loss.
        unwrapped_generator, unwrapped_discriminator: the same, not wrapped. Gradients of the adversarial loss flow through the
            unwrapped discriminator to the generator.
        distils: whether the generator is distilled from the teacher; False for a teacher that is trained further.
    """

    name: str
    network: Any
    discriminator: Discriminator | None
    distils: bool = True

    def __post_init__(self) -> None:
        self.unwrapped_generator: nn.Module = self.network
        self.unwrapped_discriminator = self.discriminator

    @property
    def discriminator_name(self) -> str:
        return "discriminator" if self.name == "student" else f"{self.name}_discriminator"

    def modules(self) -> dict[str, nn.Module]:
        """The modules, not wrapped, by optimizer name."""
        modules = {self.name: self.unwrapped_generator}
        if self.unwrapped_discriminator is not None:
            modules[self.discriminator_name] = self.unwrapped_discriminator.network
        return modules

    def wrap(self, wrapped: dict[str, nn.Module]) -> None:
        """Train through the wrapped modules, by optimizer name."""
        self.network = wrapped[self.name]
        if self.unwrapped_discriminator is not None:
            self.discriminator = self.unwrapped_discriminator.with_network(wrapped[self.discriminator_name])


class GanCodistillation(Method):
    """Training of one or two pairs of generator and discriminator with the losses of co-distillation.

    Args:
        networks: the teacher, and the student with its EMA.
        hints: pairs of matched layers of teacher and student.
        pairs: the student's pair first; then that of a peer, see `CodistillationConfig.peer`.
        teacher_discriminator: the source of target logits; None where the teacher has no discriminator.
        perception: the perceptual network; None for losses in pixels only.
        real: the source of real images of the discriminators, see `DiscriminatorConfig.real`.
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
        self._state: dict[str, Any] = {"discriminator_accuracy": [], "diversity": None, "max_diversity": 0.0}

    def trained_modules(self) -> dict[str, nn.Module]:
        return {name: module for pair in self.pairs for name, module in pair.modules().items()}

    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        for pair in self.pairs:
            pair.wrap(wrapped)

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        return self._parameters

    def buffers(self) -> dict[str, Tensor]:
        modules = self.trained_modules().items()
        return {f"{name}.{path}": buffer for name, module in modules for path, buffer in persistent_buffers(module).items()}

    def optimizer_settings(self, name: str) -> OptimizerSettings:
        is_discriminator = name.endswith("discriminator")
        factor = self.config.discriminator.learning_rate_factor if is_discriminator else 1.0
        return OptimizerSettings(factor, self.config.betas)

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state.update(state)

    def updates(self, batch: GanBatch, step: int, random: PerSampleRandom) -> Iterator[Update]:
        inputs, labels = self._inputs(batch, random)
        generated = {pair.name: GeneratorOutput(*pair.network(inputs, labels)) for pair in self.pairs}
        if "teacher" in generated:
            teacher_output = generated["teacher"].detach()
        else:
            teacher_output = self._teacher_output(batch, inputs, labels, step)
        real = self._real(batch, teacher_output.images, labels)
        for pair in self.pairs if weight_at(self.config.adversarial, step) else []:
            if pair.discriminator is not None:
                fake = generated[pair.name].images.detach()
                for i in range(self.config.discriminator.steps):
                    if i > 0:
                        fake = self._generate_again(pair, batch, labels, random)
                    yield self._update_discriminator(pair, real, (fake, labels), step, random)
        targets = self.distillation_loss.targets(teacher_output, real[0], labels, step)
        for pair in self.pairs:
            peers = [generated[peer.name].detach() for peer in self.pairs if peer is not pair and peer.distils]
            yield self._update_generator(pair, generated[pair.name], targets, peers, labels, step, random)

    def report_diversity(self, relative_diversity: float) -> None:
        """Report the diversity of the student's images in a validation, relative to the teacher's."""
        self._state["diversity"] = relative_diversity
        self._state["max_diversity"] = max(relative_diversity, self._state["max_diversity"])

    def stop_reason(self, logs: dict[str, float]) -> str | None:
        """Mode collapse of the student, or saturation of its discriminator."""
        state, config = self._state, self.config
        if "discriminator_accuracy" in logs:
            accuracies = [*state["discriminator_accuracy"], logs["discriminator_accuracy"]]
            state["discriminator_accuracy"] = accuracies[-SATURATED_LOGS:]
        min_diversity, diversity = config.collapse_diversity, state["diversity"]
        if diversity is not None and diversity < min_diversity <= state["max_diversity"]:
            return (
                f"the student collapses, its images are {diversity:.2f} times as diverse as the teacher's and were "
                f"{state['max_diversity']:.2f} (gan.collapse_diversity {min_diversity:g}); a smaller trainer.learning_rate or "
                "gan.adversarial helps, or more weight on gan.output and gan.features"
            )
        accuracies, max_accuracy = state["discriminator_accuracy"], config.collapse_saturation
        if max_accuracy < 1 and len(accuracies) == SATURATED_LOGS and min(accuracies) > max_accuracy:
            return (
                f"the discriminator is saturated, its accuracy is {min(accuracies):.1%} or more for {SATURATED_LOGS} logs "
                f"(gan.collapse_saturation {max_accuracy:g}); a smaller gan.discriminator.learning_rate_factor or "
                "gan.discriminator.r1=0.1 helps"
            )
        return None

    def _inputs(self, batch: GanBatch, random: PerSampleRandom) -> tuple[Tensor, Tensor | None]:
        """The inputs of all generators: noise or images (B, ...), and class labels (B,)."""
        spec, device = self.networks.teacher.spec, batch.device
        labels = batch.labels
        if labels is None and spec.num_classes:
            labels = to_device((random.uniform() * spec.num_classes).long(), device)
        inputs = batch.inputs if batch.inputs is not None else to_device(random.normal(spec.input_shape), device)
        return inputs, labels

    @torch.no_grad()
    def _teacher_output(self, batch: GanBatch, inputs: Tensor, labels: Tensor | None, step: int) -> GeneratorOutput:
        """The teacher's images, and its features where a loss of this step needs them."""
        paths = self._teacher_paths if self.distillation_loss.needs_features(step) else []
        if batch.generated is not None and not paths:
            return GeneratorOutput(batch.generated)
        return GeneratorOutput(*tapped(self.networks.teacher, paths, inputs, labels))

    @torch.no_grad()
    def _generate_again(self, pair: GanPair, batch: GanBatch, labels: Tensor | None, random: PerSampleRandom) -> Tensor:
        """Images from new noise and the same class labels, for further steps of the discriminator on a batch."""
        images: Tensor = pair.network(self._inputs(batch, random)[0], labels)[0]
        return images

    def _real(self, batch: GanBatch, generated: Tensor, labels: Tensor | None) -> Labelled:
        """The real images of the discriminators, and their class labels."""
        if batch.real is None or self.real == "teacher":
            return generated, labels
        if self.real == "data":
            return batch.real, batch.real_labels
        from_data = torch.arange(len(generated), device=generated.device) % 2 == 0
        mixed = None if labels is None or batch.real_labels is None else torch.where(from_data, batch.real_labels, labels)
        return torch.where(from_data[:, None, None, None], batch.real, generated), mixed

    def _update_discriminator(
        self, pair: GanPair, real: Labelled, fake: Labelled, step: int, random: PerSampleRandom
    ) -> Update:
        """The adversarial loss, the match with the logits of the teacher's discriminator, and a penalty every few steps."""
        config = self.config.discriminator
        assert pair.discriminator is not None
        assert pair.unwrapped_discriminator is not None
        # two calls, since batch norms must not mix the statistics of real and generated images
        augmented = [(self._augment(images, random), labels) for images, labels in (real, fake)]
        outputs = [pair.discriminator.outputs(*labelled) for labelled in augmented]
        real_logits, fake_logits = (logits.float() for logits, _ in outputs)
        loss = discriminator_loss(real_logits, fake_logits, config.loss)
        logs = {f"{pair.discriminator_name}_loss": loss.detach()}
        if pair.name == "student":
            logs["discriminator_accuracy"] = discriminator_accuracy(real_logits, fake_logits).detach()
        if (weight := weight_at(config.match, step)) and self.teacher_discriminator is not None and pair.distils:
            with torch.no_grad():
                targets = [self.teacher_discriminator.outputs(*labelled) for labelled in augmented]
            losses = [_match_loss(output, target, config, step) for output, target in zip(outputs, targets, strict=True)]
            match = torch.stack(losses).mean()
            loss, logs[f"{pair.discriminator_name}_match"] = loss + weight * match, match.detach()
        if (config.r1 or config.gradient_penalty) and step % config.penalty_every == 0:
            loss = loss + config.penalty_every * self._penalty(pair.unwrapped_discriminator, real, fake[0], random)
        return Update(loss, (pair.discriminator_name,), logs, watch={pair.name: fake[0].detach().float().mean()})

    def _penalty(self, discriminator: Discriminator, real: Labelled, fake: Tensor, random: PerSampleRandom) -> Tensor:
        """The gradient penalties, at images without augmentation."""
        config, (images, labels) = self.config.discriminator, real
        penalty = images.new_zeros(())
        if config.r1:
            penalty = penalty + config.r1 * r1_penalty(lambda x: discriminator(x, labels), images)
        if config.gradient_penalty:
            real_fraction = to_device(random.uniform(), images.device)
            wgan_gp = gradient_penalty(lambda x: discriminator(x, labels), images, fake, real_fraction)
            penalty = penalty + config.gradient_penalty * wgan_gp
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
        """The weighted sum of the adversarial loss and the distillation losses of this step."""
        terms: list[tuple[str, float, Tensor]] = []
        weight = weight_at(self.config.adversarial, step)
        if weight and pair.unwrapped_discriminator is not None:
            adversarial = self._generator_loss(pair.unwrapped_discriminator, generated.images, labels, random)
            terms.append(("adversarial", weight, adversarial))
        if pair.distils:
            terms += self.distillation_loss.terms(generated, targets, peers, labels, step)
        total = sum((weight * loss for _, weight, loss in terms), generated.images.new_zeros(()))
        prefix = "" if pair.name == "student" else f"{pair.name}_"
        logs = {f"{prefix}{name}": loss.detach() for name, _, loss in [("loss", 1.0, total), *terms]}
        return Update(total, (pair.name,), logs)

    def _generator_loss(
        self, discriminator: Discriminator, images: Tensor, labels: Tensor | None, random: PerSampleRandom
    ) -> Tensor:
        """The adversarial loss of a generator, which gives the discriminator no gradient."""
        discriminator.network.requires_grad_(False)
        logits = discriminator(self._augment(images, random), labels)
        discriminator.network.requires_grad_(True)
        return generator_loss(logits, self.config.discriminator.loss)

    def _augment(self, images: Tensor, random: PerSampleRandom) -> Tensor:
        policy = tuple(self.config.discriminator.augment)
        return augment(images, to_device(random.uniform((NUM_UNIFORM,)), images.device), policy) if policy else images


def _match_loss(output: DiscriminatorOutputs, target: DiscriminatorOutputs, config: DiscriminatorConfig, step: int) -> Tensor:
    """The distance between the outputs of two discriminators for the same images.

    It compares the class logits where both have a class head of the same size, else the real/fake logits, and the means of
    these over the image where the two have patches of different sizes.
    """
    (logits, class_logits), (target_logits, target_class_logits) = output, target
    temperature = weight_at(config.temperature, step)
    if class_logits is not None and target_class_logits is not None and class_logits.shape == target_class_logits.shape:
        return kd(class_logits, target_class_logits, temperature)
    if logits.shape != target_logits.shape:
        logits, target_logits = logits.flatten(1).mean(1), target_logits.flatten(1).mean(1)
    return mse_logits(logits, target_logits) if config.match_loss == "mse" else bernoulli_kd(logits, target_logits, temperature)
