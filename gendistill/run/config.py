"""Every setting of a run, typed and documented; the same from the command line, YAML and Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from gendistill.diffusion.settings import AlignConfig, CompressionConfig, DecoderConfig
from gendistill.gan.gan_settings import CodistillationConfig, CompressConfig, GeneratorConfig
from gendistill.run.settings_together import require_together
from gendistill.settings.section import Section


class DataConfig(Section):
    """What the student learns on."""

    path: str | None = Field(
        None, description="image folder, WebDataset shards or a dataset (parquet, saved folder, hf://) with captions"
    )
    prompts: str | None = Field(None, description="text file, one prompt a line: the teacher makes the pictures")
    caption: str | dict[str, float] | None = Field(
        None, description="caption field of the data; or several with their shares, e.g. {name: 0.3, subcategory: 0.7}"
    )
    missing_caption: Literal["empty", "skip", "error"] = Field(
        "empty", description="pictures without a caption: train them on the empty prompt, leave them out, or stop"
    )
    image_column: str | None = Field(None, description="of a dataset; found by its type or name where not given")
    split: str | None = Field(None, description="of a dataset; the only one, or train, where not given")
    resolution: int | None = Field(None, ge=8, description="pixels; the teacher's own where not given")
    crop: Literal["center", "random", "buckets"] = Field(
        "center",
        description="the centre square; one random square a picture, by the seed; or the nearest of several aspect ratios",
    )
    cache: str = Field(".cache/gendistill", description="folder for encoded latents and prompts, shared by runs")
    num_synthetic: int = Field(2048, ge=1, description="pictures to make with the teacher when only prompts are given")
    synthetic_steps: int = Field(20, ge=1, description="steps of the teacher for each of them (DPM-Solver++)")
    synthetic_guidance: float = Field(3.0, ge=1, description="guidance scale for them")


class GuidanceConfig(Section):
    """What becomes of classifier-free guidance in the student."""

    mode: Literal["embedded", "baked", "cfg"] = Field(
        "baked", description="embedded: the scale stays a slider; baked: one scale; cfg: both branches are kept"
    )
    scale: float = Field(3.0, ge=1, description="to bake in, or to sample with by default; 1 is none")
    range: tuple[float, float] = Field((1.0, 6.0), description="scales that an embedded student learns")
    prompt_dropout: float = Field(0.15, ge=0, le=1, description="share of empty prompts, for cfg students")

    @property
    def of_pipeline(self) -> float:
        """The `guidance_scale` that the student's pipeline is called with; 1 (off) where the scale is baked in."""
        return 1.0 if self.mode == "baked" else self.scale


class ConsistencyConfig(Section):
    """Consistency distillation (`--method consistency`)."""

    num_ddim_timesteps: int = Field(40, ge=2, description="K, points of the solver grid; 40 holds the 1-, 2-, 4-step grids")
    num_phases: int = Field(1, ge=1, description="phases of multi-step consistency; 1 is plain consistency")
    loss: Literal["pseudo_huber", "l2"] = "pseudo_huber"
    target: Literal["ema", "student"] = Field("ema", description="whose x_0 is the target, without gradient")
    ema_decay: float = Field(0.95, ge=0, lt=1, description="of the average, which is the target's and the student's")


def halvings(teacher_steps: int, student_steps: int) -> tuple[int, ...]:
    """The step counts of the students of all stages, from a teacher of `teacher_steps` down to `student_steps`.

    64 to 4: (32, 16, 8, 4). Odd counts are halved upwards, so that no step is longer than two of its teacher's, and the last
    stage may halve less: 50 to 4 is (25, 13, 7, 4). Where every count is half of the one before, each teacher is asked at
    the times that it was trained at and at no others; else at times between them.

    Raises:
        ValueError: not 1 <= student_steps < teacher_steps.
    """
    if not 1 <= student_steps < teacher_steps:
        raise ValueError(f"{student_steps} student steps: takes 1 to {teacher_steps - 1}, less than the teacher's")
    counts = []
    while teacher_steps > student_steps:
        teacher_steps = max((teacher_steps + 1) // 2, student_steps)
        counts.append(teacher_steps)
    return tuple(counts)


class ProgressiveConfig(Section):
    """Progressive step-halving (`--method progressive`); the trainer's limits are those of each stage."""

    start_steps: int = Field(64, ge=2, description="steps of the teacher before the first halving; 64 gives 32, 16, ..., 1")
    prediction_type: Literal["v_prediction", "sample", "epsilon"] = Field(
        "v_prediction", description="of the student where the teacher predicts the noise"
    )
    weighting: Literal["truncated_snr", "snr_plus_one", "snr", "uniform"] = Field(
        "truncated_snr", description="of the squared error of x_0"
    )
    ema_decay: float = Field(0.99, ge=0, lt=1, description="of the average, which is the student and the next stage's teacher")
    dialect_steps: int = Field(
        300, ge=0, description="optimizer steps over which a student of an epsilon teacher goes over to v; 0 jumps"
    )
    sampler: Literal["ddim", "stochastic"] = Field(
        "ddim", description="deterministic; or two steps forward, one back, whose students make steps twice as long"
    )
    grid: list[int] | None = Field(
        None, description="timesteps of one of the students, falling, as `gendistill grid` finds them; trailing where not given"
    )
    stages: dict[str, dict[str, Any]] = Field(
        {},
        description="settings of the trainer for single stages, by name: {imitation: {max_steps: 900}, 4: {patience: 3}}",
    )

    @field_validator("stages", mode="before")
    @classmethod
    def _names_are_texts(cls, stages: Any) -> Any:
        """Python writes the name of a stage of 4 steps as a number."""
        return {str(name): settings for name, settings in stages.items()} if isinstance(stages, dict) else stages

    @property
    def calls_a_step(self) -> int:
        """Network calls in which the sampler goes as far as one step of a student."""
        return 2 if self.sampler == "stochastic" else 1


class LoraSettings(Section):
    """Train a low-rank adapter on the frozen teacher instead of all weights."""

    enabled: bool = False
    rank: int = Field(64, ge=1)
    alpha: int | None = Field(None, ge=1, description="scale; the rank where not given")


class TrainerConfig(Section):
    """The optimisation, its checkpoints and its validation."""

    max_steps: int = Field(1000, ge=1, description="optimizer steps")
    max_minutes: float | None = Field(None, gt=0, description="stop after so many minutes of training, if sooner")
    batch_size: int = Field(32, ge=1, description="samples an optimizer step, over all processes")
    gradient_accumulation_steps: int = Field(1, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    warmup_steps: int = Field(20, ge=0)
    lr_schedule: Literal["constant", "cosine"] = Field("constant", description="after the warm-up; cosine falls to 0")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    log_every: int = Field(10, ge=1, description="steps; to read a loss is to wait for the device")
    checkpoint_every: int = Field(100, ge=1, description="steps")
    checkpoint_minutes: float | None = Field(None, gt=0, description="and where the last one is so many minutes old")
    validate_every: int = Field(100, ge=1, description="steps")
    num_validation: int = Field(256, ge=2, description="pictures drawn at a validation")
    patience: int | None = Field(None, ge=1, description="stop after so many validations without a better one")
    divergence_factor: float | None = Field(
        10.0, gt=1, description="stop where the loss stays so many times above its median; null lets it"
    )
    trackers: list[Literal["tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio"]] = (
        Field(["tensorboard"], description="those of accelerate; each but tensorboard has to be installed")
    )

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _yaml_says_no(cls, value: Any) -> Any:
        return "no" if value is False else value

    @model_validator(mode="after")
    def _accumulates_whole_passes(self) -> TrainerConfig:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"trainer.batch_size {self.batch_size}: takes a multiple of gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps})"
            )
        return self


class DistillConfig(Section):
    """One distillation run."""

    teacher: str = Field(
        "assets/tiny-sd",
        description="diffusers folder, hub id or .safetensors checkpoint; of a GAN its folder or module:Class",
    )
    teacher_config: str | None = Field(
        None,
        description="for a checkpoint: sd1, sd2-base, sd2-v, sdxl, or a diffusers folder with its configs; for a module:Class "
        "a JSON file with its arguments",
    )
    teacher_revision: str | None = Field(None, description="for a hub id: branch, tag or commit")
    method: Literal["consistency", "progressive", "latent_alignment", "compression", "decoder", "gan"] = "consistency"
    out: str = Field("runs/distill", description="run folder")
    start: str | None = Field(None, description="student folder to begin from in place of the teacher; all its weights")
    quantization: Literal["none", "int8"] = Field(
        "none", description="int8: the student learns to compute in 8 bits, as it then does on a CPU; its teacher is as it is"
    )
    steps: list[int] = Field([4, 2, 1], description="step counts that the student is validated at, the main one first")
    solvers: list[Literal["ddim", "lcm", "tcd"]] = Field(["ddim", "tcd"], description="ways of stepping to choose from")
    validation_reference: str | None = Field(None, description="real pictures to validate against; data.path where not given")
    validation_extractor: str | None = Field(
        None, description="feature network of the validation: emoji, inception, a .pth of Inception's weights, a folder"
    )
    seed: int = Field(0, ge=0)
    device: str | None = Field(None, description="cuda, mps, cpu; the best that is there where not given")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="of the frozen teacher")
    data: DataConfig = DataConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    consistency: ConsistencyConfig = ConsistencyConfig()
    progressive: ProgressiveConfig = ProgressiveConfig()
    align: AlignConfig = AlignConfig()
    decoder: DecoderConfig = DecoderConfig()
    generator: GeneratorConfig = GeneratorConfig()
    compress: CompressConfig = CompressConfig()
    compression: CompressionConfig = CompressionConfig()
    gan: CodistillationConfig = CodistillationConfig()
    lora: LoraSettings = LoraSettings()
    trainer: TrainerConfig = TrainerConfig()

    def trainer_of(self, stage: str) -> TrainerConfig:
        """The trainer's settings for a stage of several: those of all, and its own over them.

        Raises:
            ValueError: a setting that the trainer does not have, or does not take.
        """
        first = stage == "compression"
        own = self.compression.trainer if first else self.progressive.stages.get(stage, {})
        try:
            return TrainerConfig(**(self.trainer.model_dump() | own))
        except ValueError as error:
            raise ValueError(f"{'compression.trainer' if first else f'progressive.stages.{stage}'}: {error}") from error

    @property
    def compresses(self) -> bool:
        """Whether the student is a smaller denoiser than its teacher."""
        compress = self.compress
        asked = compress.blocks or compress.factor is not None or compress.student_config is not None
        return asked and self.method not in ("gan", "decoder")

    @property
    def may_be_lora(self) -> bool:
        """Whether the student could be a LoRA as well, by its other settings."""
        all_weights = self.compresses or self.start is not None or self.quantization != "none"
        return not all_weights and self.guidance.mode != "embedded" and self.method not in ("gan", "decoder")

    @property
    def aligns(self) -> bool:
        """Whether it learns from trajectories of the teacher."""
        return self.method == "latent_alignment" or self.aligns_beside

    @property
    def aligns_beside(self) -> bool:
        """Whether it does so beside the loss of another method."""
        return self.method in ("consistency", "progressive") and self.align.weight != 0

    def halved_to(self) -> list[int]:
        """Network calls of the students of all stages of progressive distillation.

        Raises:
            ValueError: it cannot be halved to the least of `steps`.
        """
        a_step, fewest = self.progressive.calls_a_step, min(self.steps)
        if fewest % a_step:
            raise ValueError(f"steps {self.steps}: takes even numbers for the stochastic sampler")
        return [a_step * count for count in halvings(self.progressive.start_steps, fewest // a_step)]

    @model_validator(mode="after")
    def _goes_together(self) -> DistillConfig:
        require_together(self)
        return self


def load_config(file: Path | None = None, overrides: dict[str, Any] | None = None) -> DistillConfig:
    """A config from a YAML file and overrides by dotted name (`{"trainer.max_steps": 500}`), overrides winning.

    Raises:
        ValueError: an unknown key or a wrong value, in one sentence that names it.
    """
    settings: dict[str, Any] = {}
    if file is not None:
        if not file.is_file():
            raise ValueError(f"config {file} does not exist")
        try:
            settings = yaml.safe_load(file.read_text()) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"config {file} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(settings, dict):
            raise ValueError(f"config {file} holds a {type(settings).__name__}; takes settings by name")
        settings = _named(settings)
    for name, value in (overrides or {}).items():
        *sections, last = name.split(".")
        inside = settings
        for section in sections:
            inside = inside.setdefault(section, {})
            if not isinstance(inside, dict):
                raise ValueError(f"setting {name}: {section} is a value, not a section")
        inside[last] = value
    return DistillConfig(**settings)


def _named(settings: dict[Any, Any]) -> dict[str, Any]:
    """The same with texts for names, throughout: YAML reads the name of a stage of 4 steps as a number."""
    return {str(name): _named(value) if isinstance(value, dict) else value for name, value in settings.items()}


def config_text(config: DistillConfig) -> str:
    """All settings as YAML that `load_config` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def save_config(config: DistillConfig, path: Path) -> None:
    """Write `config_text`, whole or not at all."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(config_text(config))
    os.replace(aside, path)
