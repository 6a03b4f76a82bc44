"""The settings of GAN co-distillation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from gendistill.methods.gan_distillation_loss import DistillationLossConfig
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.schedule import Temperature, Weight
from gendistill.settings.section import Section


class DiscriminatorConfig(Section):
    """The discriminator, which learns from real and generated images and from the teacher's discriminator."""

    loss: Literal["hinge", "logistic", "least_squares", "wasserstein"] = Field(
        "hinge", description="Adversarial loss of discriminator and generator", json_schema_extra=about(paper=papers.HINGE)
    )
    match: Weight = Field(
        0.1,
        description="Weight of the distance to the logits of the teacher's discriminator, where there is one",
        json_schema_extra=about(paper=papers.GAN_DISTILLATION, at="section 3.3"),
    )
    match_loss: Literal["mse", "bernoulli"] = Field(
        "mse",
        description="Distance of the logits: squared error, or Kullback-Leibler divergence of Bernoulli distributions",
        json_schema_extra=about(paper=papers.GAN_DISTILLATION, at="section 3.3"),
    )
    temperature: Temperature = Field(
        1.0,
        description="Temperature of the Bernoulli distributions and of class logits; a schedule anneals it",
        json_schema_extra=about(paper=papers.HINTON, at="section 2"),
    )
    inherit: bool = Field(
        True, description="Start from the teacher's discriminator where there is one, instead of from random weights"
    )
    real: Literal["data", "teacher", "both"] | None = Field(
        None,
        description="Real images of the discriminator: the data, the teacher's images, or half of each; null uses the data "
        "where there are any",
    )
    steps: int = Field(
        1, ge=1, description="Optimizer steps of the discriminator per step of the student", json_schema_extra=about("steps")
    )
    learning_rate_factor: float = Field(
        2.0,
        gt=0,
        description="Ratio of the discriminator's learning rate to the student's",
        json_schema_extra=about(paper=papers.TTUR),
    )
    r1: float = Field(
        0.0,
        ge=0,
        description="Weight of the R1 gradient penalty on real images",
        json_schema_extra=about(paper=papers.R1, at="equation 9"),
    )
    gradient_penalty: float = Field(
        0.0,
        ge=0,
        description="Weight of the gradient penalty between real and generated images",
        json_schema_extra=about(paper=papers.WGAN_GP, at="equation 3"),
    )
    penalty_every: int = Field(
        16,
        ge=1,
        description="Interval of the gradient penalties, whose weight is multiplied by it",
        json_schema_extra=about("steps", papers.STYLEGAN2, "section 3.1"),
    )
    augment: list[Literal["color", "translation", "cutout"]] = Field(
        ["color", "translation", "cutout"],
        description="Differentiable augmentations of all images that the discriminator receives",
        json_schema_extra=about(paper=papers.DIFF_AUGMENT),
    )


class CodistillationConfig(DistillationLossConfig):
    """GAN co-distillation (`--method gan`): the losses between teacher and student."""

    formerly: ClassVar[dict[str, str]] = {"partner": "peer"}
    adversarial: Weight = Field(
        {0: 0, 0.9: 0, 0.92: 0.05},
        description="Weight of the generator's adversarial loss; it is 0 until a pruned student generates recognisable images",
        validate_default=True,
        json_schema_extra=about(paper=papers.GAN_DISTILLATION),
    )
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    pairs: int | None = Field(
        None,
        ge=0,
        description="Number of teacher images of fixed noise that are cached, for steps without feature losses; 0 is none. "
        "null is 0 for noise; from input images, it caches the teacher's image of each, up to pairs_gib",
        json_schema_extra=about("images"),
    )
    pairs_gib: float = Field(
        4.0,
        ge=0,
        description="Maximum disk space of the teacher's images of the input images: 3 bytes a pixel; above it, the teacher "
        "generates them in each step",
        json_schema_extra=about("GiB"),
    )
    peer: Literal["none", "teacher", "student"] = Field(
        "none",
        description="Peer that is trained too: none, the teacher (online distillation), or a second student (mutual learning)",
        json_schema_extra=about(paper=papers.MUTUAL),
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="Decay per step of the moving average, which is exported as the student"
    )
    betas: tuple[float, float] = Field(
        (0.0, 0.99),
        description="Decay rates beta_1 and beta_2 of Adam, for all networks",
        json_schema_extra=about(paper=papers.ADAM, at="algorithm 1"),
    )
    collapse_diversity: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Ratio of the student's to the teacher's diversity below which training stops; 0 never stops it",
    )
    collapse_saturation: float = Field(
        0.98, gt=0, le=1, description="Discriminator accuracy above which training stops if it lasts; 1 never stops it"
    )
