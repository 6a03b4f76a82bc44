"""Settings of GAN distillation: what the teacher is, how small the student, which losses between them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gendistill.settings.schedule import Temperature, Weight
from gendistill.settings.section import Section


class GeneratorConfig(Section):
    """What a GAN teacher is, where its folder does not say so."""

    weights: str | None = Field(None, description="of a teacher module:Class: a .safetensors or a state_dict's .pth")
    kind: Literal["noise", "image"] | None = Field(None, description="what goes in; found where not given")
    input_shape: list[int] | None = Field(None, description="of one sample: [128] numbers of noise, [3, 64, 64] of a picture")
    num_classes: int | None = Field(None, ge=0, description="found where not given; 0 is none")
    output_range: tuple[float, float] | None = Field(None, description="of its pictures; [-1, 1] where not given")
    discriminator: str | None = Field(
        None,
        description="the teacher's own: module:Class or a folder; `fresh` does not use it; that of the folder where not given",
    )
    discriminator_weights: str | None = Field(None, description="of a discriminator module:Class")
    discriminator_config: str | None = Field(None, description="JSON file with its arguments")


class CompressConfig(Section):
    """How small the student is (`--compress 4`), and what it is made of."""

    factor: float | None = Field(None, description="both multiply-accumulates and parameters are divided by it")
    params: int | None = Field(None, ge=1, description="parameters of the student, instead")
    macs: int | None = Field(None, ge=1, description="multiply-accumulates of a picture of the student, instead or besides")
    blocks: bool = Field(False, description="of a diffusion model: one layer a block first, as BK-SDM")
    depthwise: bool = Field(False, description="depthwise-separable convolutions where they cost less")
    keep: list[str] = Field([], description="modules of the teacher whose channels are all kept, by path")
    student: str | None = Field(None, description="a class of your own instead, as module:Class")
    student_config: str | None = Field(
        None, description="JSON file with its arguments; of a diffusion model, what differs from the teacher's config"
    )
    student_weights: str | None = Field(None, description=".safetensors or a state_dict's .pth that it starts from")

    @model_validator(mode="after")
    def _one_way(self) -> CompressConfig:
        if self.factor is not None and self.factor <= 1:
            raise ValueError(f"compress {self.factor:g}: takes a factor above 1, such as 4")
        if self.factor is not None and (self.params or self.macs):
            raise ValueError("compress.factor: takes no compress.params or compress.macs beside it")
        if self.student is not None and (self.factor or self.params or self.macs):
            raise ValueError(
                f"compress.student {self.student}: takes no compress factor beside it; the class says how small it is"
            )
        return self


class OutputConfig(Section):
    """How far the student's pictures are from the teacher's of the same noise: weights, 0 is off."""

    l1: Weight = 1.0
    l2: Weight = 0.0
    multiscale: Weight = Field(0.0, description="L1 at the full, half, quarter, ... resolution")
    perceptual: Weight = Field(1.0, description="distance of a feature network's maps")
    perceptual_network: str = Field(
        "discriminator",
        description="that network: the teacher's discriminator; emoji (which fd-emoji looks through too); torchvision:NAME",
    )


class FeatureConfig(Section):
    """How far inner layers are apart: weights, 0 is off."""

    hints: Weight = Field(1.0, description="squared error after a 1x1 convolution (FitNets)")
    attention: Weight = Field(0.0, description="attention transfer: where, not what")
    gram: Weight = Field(0.0, description="Gram matrices: what, not where")
    layers: dict[str, str] | None = Field(
        None, description="teacher's layer: student's layer, by path; matched by resolution and depth where not given"
    )


class RelationConfig(Section):
    """How far the relations between the pictures of a batch are apart: weights, 0 is off."""

    distance: Weight = Field(0.0, description="RKD, of pairs")
    angle: Weight = Field(0.0, description="RKD, of triplets")
    similarity: Weight = Field(0.0, description="similarity-preserving")
    correlation: Weight = Field(0.0, description="correlation congruence")
    contrastive: Weight = Field(0.0, description="InfoNCE between student and teacher pictures of the same noise")


class DistributionConfig(Section):
    """How far the pictures' patches are apart as sets, wherever in a picture they lie: weights, 0 is off."""

    patches: Weight = Field(
        {0: 0, 0.75: 0, 0.8: 6},
        description="of each picture and its teacher's, sliced Wasserstein: sharp as that one is",
        validate_default=True,
    )
    real_patches: Weight = Field(
        {0: 0, 0.75: 0, 0.8: 10},
        description="of all pictures and as many real ones, without their mean colours: sharp as these are",
        validate_default=True,
    )


class DiscriminatorConfig(Section):
    """What the discriminator learns: real from made, and the teacher's discriminator's opinion."""

    loss: Literal["hinge", "logistic", "least_squares", "wasserstein"] = "hinge"
    match: Weight = Field(0.1, description="of the teacher's discriminator's logits, where there is one")
    match_loss: Literal["mse", "bernoulli"] = "mse"
    temperature: Temperature = Field(1.0, description="of the Bernoulli loss, and of class heads; a schedule anneals it")
    inherit: bool = Field(True, description="start from the teacher's discriminator where there is one; fresh otherwise")
    real: Literal["data", "teacher", "both"] | None = Field(
        None, description="what is real: the data, the teacher's pictures, or half of each; the data where there are any"
    )
    steps: int = Field(1, ge=1, description="of the discriminator for one of the student")
    learning_rate_factor: float = Field(2.0, gt=0, description="its learning rate, times the student's: two time scales")
    r1: float = Field(0.0, ge=0, description="gradient penalty on real pictures (Mescheder et al. 2018)")
    gradient_penalty: float = Field(0.0, ge=0, description="gradient penalty between real and made (WGAN-GP)")
    penalty_every: int = Field(16, ge=1, description="steps; the penalty is multiplied by it")
    augment: list[Literal["color", "translation", "cutout"]] = Field(
        ["color", "translation", "cutout"], description="differentiable augmentation of all that it sees"
    )


class CodistillationConfig(Section):
    """GAN co-distillation (`--method gan`): the losses between teacher and student."""

    adversarial: Weight = Field(
        {0: 0, 0.9: 0, 0.92: 0.05},
        description="what the discriminator says; late, since a pruned student has to paint before it can be judged",
        validate_default=True,
    )
    output: OutputConfig = OutputConfig()
    features: FeatureConfig = FeatureConfig()
    relations: RelationConfig = RelationConfig()
    distribution: DistributionConfig = DistributionConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    pairs: int = Field(
        0,
        ge=0,
        description="pictures that the teacher paints once, of fixed noise; steps that ask for none of its layers go by "
        "them; 0 paints anew in each step",
    )
    partner: Literal["none", "teacher", "student"] = Field(
        "none", description="who else learns: the teacher goes on learning beside the student, or a second student does"
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the student's average, which is what is kept")
    betas: tuple[float, float] = Field((0.0, 0.99), description="of Adam, for all networks")
    collapse_diversity: float = Field(
        0.5, ge=0, lt=1, description="stop where the student's pictures are less diverse than so much of the teacher's; 0 never"
    )
    collapse_saturation: float = Field(
        0.98, gt=0, le=1, description="stop where the discriminator tells apart more than this share for long; 1 never"
    )
