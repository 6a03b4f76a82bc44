"""A recipe: the interface between a method and the rest of the package. Each method has one, in its own file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from gendistill.data.data_config import DataConfig
from gendistill.diffusion.added_loras import CompatibleSettings
from gendistill.diffusion.guidance import GuidanceConfig
from gendistill.diffusion.trained_networks import LoraSettings
from gendistill.gan.generator_config import GeneratorConfig
from gendistill.methods.watch_config import WatchConfig
from gendistill.networks.pruning.compress_config import CompressConfig
from gendistill.settings import papers
from gendistill.settings.explanation import about
from gendistill.settings.section import Section
from gendistill.training.method import Method
from gendistill.training.trainer_config import TrainerConfig


class RunConfig(Section):
    """The settings of a run that do not depend on the method. `run.config.DistillConfig` adds a section for each method."""

    teacher: str = Field(
        "assets/tiny-sd",
        description="Teacher: a diffusers folder, hub id or .safetensors checkpoint; for GANs a folder or module:Class",
        json_schema_extra=about(path=True),
    )
    teacher_config: str | None = Field(
        None,
        description="Architecture of a teacher without one: for a checkpoint sd1, sd2-v, sdxl, flux-dev, ... or a diffusers "
        "folder with its configs and the components that it lacks; for a module:Class a JSON file with its arguments",
        json_schema_extra=about(path=True),
    )
    teacher_revision: str | None = Field(None, description="Branch, tag or commit of a teacher on the hub")
    teacher_loras: list[str] = Field(
        [],
        description="LoRAs that are merged into the frozen teacher, each as FILE or FILE:WEIGHT",
        json_schema_extra=about(path=True),
    )
    method: str = Field("consistency", description="Distillation method; `gendistill methods` describes each")
    out: str = Field(
        "runs/distill",
        description="Run folder, which receives config, log, checkpoints and students",
        json_schema_extra=about(path=True),
    )
    start: str | None = Field(
        None,
        description="Student folder that training starts from instead of the teacher, with all weights trained",
        json_schema_extra=about(path=True),
    )
    quantization: Literal["none", "int8"] = Field(
        "none",
        description="Arithmetic that the student is trained for: none, or int8 for inference in 8 bits on a CPU",
        json_schema_extra=about(paper=papers.INT8, at="section 3"),
    )
    output: Literal["as-trained", "folder", "base-lora", "steps-lora"] = Field(
        "as-trained",
        description="Form of the student: as-trained; folder, a full pipeline; base-lora, one LoRA of rank lora.rank for the "
        "teacher without teacher_loras, which carries them and the few steps; steps-lora, the few steps alone",
    )
    steps: list[int] = Field(
        [4, 2, 1],
        description="Step counts that the student is validated at, the main one first",
        json_schema_extra=about("steps"),
    )
    solvers: list[Literal["ddim", "lcm", "tcd"]] = Field(
        ["ddim", "tcd"],
        description="Solvers of which validation chooses the best for the student",
        json_schema_extra=about(paper=papers.TCD),
    )
    validation_reference: str | None = Field(
        None,
        description="Real images that validation compares with; null uses data.path",
        json_schema_extra=about(path=True),
    )
    validation_extractor: str | None = Field(
        None,
        description="Feature network of validations: emoji, inception, dinov2, clip, pixels, a folder or a .pth of Inception's "
        "weights; null: emoji for the embedded models, else the first of inception, dinov2, clip on this machine, else pixels",
        json_schema_extra=about(path=True),
    )
    seed: int = Field(0, ge=0, description="Seed of all randomness of the run")
    device: str | None = Field(None, description="Device: cuda, mps or cpu; null uses the best available")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="Precision of the frozen teacher's weights; with float16 the losses are scaled"
    )
    data: DataConfig = DataConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    generator: GeneratorConfig = GeneratorConfig()
    compress: CompressConfig = CompressConfig()
    lora: LoraSettings = LoraSettings()
    compatible: CompatibleSettings = CompatibleSettings()
    trainer: TrainerConfig = TrainerConfig()
    watch: WatchConfig = WatchConfig()

    if TYPE_CHECKING:  # the sections of the methods

        def __getattr__(self, name: str) -> Any: ...

    @property
    def compression_options(self) -> set[str]:
        """Names of the settings of `compress` that differ from their defaults."""
        default = CompressConfig()
        return {name for name, value in self.compress if value != getattr(default, name)}


@dataclass(frozen=True)
class Supports:
    """Options of a run that a method supports.

    Attributes:
        lora: training of an adapter (`lora.enabled`).
        compression: compression of a denoiser as the first stage (`--compress`).
        full_weights: `start` and `quantization`, which train all weights of a denoiser.
        auxiliary_losses: alignment with the teacher's trajectories as an additional loss (`align.weight`).
        feature_matching: feature matching as an additional loss (`feature_matching.weight`), or as the method.
        adversary: a discriminator on features as an additional loss (`adversarial.weight`), or as the method.
        added_loras: teacher and student are called in the step, so that LoRAs can be added to both (`compatible.loras`).
        gradient_checkpointing: gradient checkpointing, and a teacher in half precision.
        planning: a training step on the meta device, for `plan --train`.
        student_lora: training of an adapter on the student at `start`, which may be a LoRA without.
    """

    lora: bool = True
    compression: bool = True
    full_weights: bool = True
    auxiliary_losses: bool = False
    feature_matching: bool = False
    adversary: bool = False
    added_loras: bool = False
    gradient_checkpointing: bool = True
    planning: bool = True
    student_lora: bool = False


@dataclass(frozen=True)
class Stage:
    """One training within a run: the networks of a method, trained to the limits of one trainer.

    Attributes:
        method: method and networks; after training, its EMA holds the best weights by validation.
        trainer: settings of the trainer.
        student: subfolder of the run that the student is saved to; None where it is only the teacher of the next stage.
        folder: subfolder of the run for checkpoints and log; "" is the run folder.
        steps: step counts to validate a few-step student at, the main one first.
        solvers: solvers to choose from by validation.
        grids: timesteps of the student's samplers where these are not the trailing grid.
        data: function from the data of the run to the data of this stage; None for the data of the run.
        config: the settings of the stage where these are not the run's.
        scheduler: the diffusers scheduler of the student where it is not made from the settings.
    """

    method: Method
    trainer: TrainerConfig
    student: str | None = "student"
    folder: str = ""
    steps: list[int] = field(default_factory=list)
    solvers: list[str] = field(default_factory=list)
    grids: list[list[int]] = field(default_factory=list)
    data: Callable[[Any], Any] | None = None
    config: RunConfig | None = None
    scheduler: Any = None


@dataclass(frozen=True)
class StageOutline:
    """The description of a stage before any network is loaded.

    Attributes:
        name: name of the stage; "" for the only stage of a run.
        trainer: settings of the trainer.
        student: subfolder of the run that the student is saved to, if any.
    """

    name: str
    trainer: TrainerConfig
    student: str | None = "student"


class Recipe(ABC):
    """The interface of a method. Stateless; one instance is registered in `methods.method_registry`.

    Attributes:
        name: the name for `--method`.
        section: the name of its section of settings in the config, usually the same.
        Config: the class of that section.
        summary: one sentence without a full stop, for help and `gendistill methods`.
        teaches: the kind of teacher, which decides how teachers are opened, and how students are validated and exported.
        supports: options of a run that the method supports.
        default_teacher: the teacher of runs that name none.
        student: the kind of student, for error messages.
        size_settings: the settings of the student's size where these are not `compress`.
    """

    name: ClassVar[str]
    section: ClassVar[str]
    Config: ClassVar[type[Section]]
    summary: ClassVar[str]
    teaches: ClassVar[Literal["denoiser", "generator", "autoencoder"]] = "denoiser"
    supports: ClassVar[Supports] = Supports()
    default_teacher: ClassVar[str] = "assets/tiny-sd"
    student: ClassVar[str] = "the student"
    size_settings: ClassVar[str] = ""

    def check(self, config: RunConfig, teacher: Any = None) -> None:
        """Raise ValueError, in one sentence that names a setting, for incompatible settings.

        Called without a teacher when a config is built, and again when the teacher (a `diffusion.teacher.Teacher` or a
        `gan.gan_folder.Gan`) is open.
        """
        if config.lora.enabled and not self.supports.lora:
            raise ValueError(f"lora.enabled: {self.student} has weights of its own; expects false")

    def check_start(self, context: Any) -> None:
        """Raise ValueError, in one sentence, if the student at `start` does not fit the method. `context` is a
        `DenoiserContext` with `start` and its `start_spec`, without data."""
        return

    def data_needs(self, config: RunConfig) -> Literal["latents", "trajectories", "images", "decoded"]:
        """The kind of training data: encoded images, the teacher's trajectories, images for a GAN, or latents with their
        images and the teacher's reconstructions."""
        return "latents"

    def parts(self, config: RunConfig) -> list[RunConfig]:
        """The settings of each method that is trained: those of the run, but for a sequence of methods."""
        return [config]

    @abstractmethod
    def stages(self, context: Any) -> Iterator[Stage]:
        """The stages in order. Each starts from the result of the one before, which is trained before the next stage is
        requested. `context` is a `DenoiserContext`, `GeneratorContext` or `AutoencoderContext`, by the kind of teacher."""

    def outline(self, config: RunConfig) -> list[StageOutline]:
        """The outlines of the stages that `stages` yields, from the settings alone, for `--dry-run` and `plan`."""
        return [StageOutline("", config.trainer)]
