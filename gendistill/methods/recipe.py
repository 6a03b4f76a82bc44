"""A recipe: everything that the rest of the house wants to know of a method. One a method, in the method's own file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from gendistill.data.data_config import DataConfig
from gendistill.diffusion.guidance import GuidanceConfig
from gendistill.diffusion.trained_networks import LoraSettings
from gendistill.gan.generator_config import GeneratorConfig
from gendistill.networks.pruning.compress_config import CompressConfig
from gendistill.settings.section import Section
from gendistill.training.method import Method
from gendistill.training.trainer_config import TrainerConfig


class RunConfig(Section):
    """The settings of a run that belong to no single method. `run.config.DistillConfig` adds a section for each method."""

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
    method: str = "consistency"
    out: str = Field("runs/distill", description="run folder")
    start: str | None = Field(None, description="student folder to initialise from instead of the teacher; full weights only")
    quantization: Literal["none", "int8"] = Field(
        "none", description="int8: the student learns to compute in 8 bits, as it then does on a CPU; its teacher is as it is"
    )
    steps: list[int] = Field([4, 2, 1], description="step counts that the student is validated at, the main one first")
    solvers: list[Literal["ddim", "lcm", "tcd"]] = Field(["ddim", "tcd"], description="solvers to choose from by validation")
    validation_reference: str | None = Field(None, description="real images to validate against; data.path where not given")
    validation_extractor: str | None = Field(
        None, description="feature network of the validation: emoji, inception, a .pth of Inception's weights, a folder"
    )
    seed: int = Field(0, ge=0)
    device: str | None = Field(None, description="cuda, mps, cpu; the best that is there where not given")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="of the frozen teacher")
    data: DataConfig = DataConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    generator: GeneratorConfig = GeneratorConfig()
    compress: CompressConfig = CompressConfig()
    lora: LoraSettings = LoraSettings()
    trainer: TrainerConfig = TrainerConfig()

    if TYPE_CHECKING:  # the sections of the methods

        def __getattr__(self, name: str) -> Any: ...

    @property
    def compression_options(self) -> set[str]:
        """Names of the settings of `compress` that were given."""
        default = CompressConfig()
        return {name for name, value in self.compress if value != getattr(default, name)}


@dataclass(frozen=True)
class Supports:
    """Options of a run that a method can be combined with.

    Attributes:
        lora: training an adapter (`lora.enabled`).
        compression: distilling a smaller network first (`--compress` of a denoiser).
        full_weights: `start` and `quantization`, which train all weights of a denoiser.
        auxiliary_losses: alignment with the teacher's trajectories beside the method's own loss (`align.weight`).
        gradient_checkpointing: networks that know it, and a teacher in half precision.
        planning: a training step on the meta device, for `plan --train`.
    """

    lora: bool = True
    compression: bool = True
    full_weights: bool = True
    auxiliary_losses: bool = False
    gradient_checkpointing: bool = True
    planning: bool = True


@dataclass(frozen=True)
class Stage:
    """One training: a method's networks, trained by one trainer until its limits, then handed to the next stage.

    Attributes:
        method: with its networks; the average that validates best is loaded in them once the stage is trained.
        trainer: its settings.
        student: the folder of the run that the student is written to; None where it is only the next stage's teacher.
        folder: of the run, for checkpoints and log; "" is the run's own.
        steps: step counts of a few-step student to validate at, the main one first.
        solvers: solvers to choose from.
        grids: timesteps that its student is sampled at where they are not the trailing ones.
        data: makes the data of this stage from the run's; None where it is these.
    """

    method: Method
    trainer: TrainerConfig
    student: str | None = "student"
    folder: str = ""
    steps: list[int] = field(default_factory=list)
    solvers: list[str] = field(default_factory=list)
    grids: list[list[int]] = field(default_factory=list)
    data: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class StageOutline:
    """What is known of a stage before anything is loaded.

    Attributes:
        name: of a stage of several; "" of the only one.
        trainer: its limits.
        student: the folder of the run that its student is written to, if any.
    """

    name: str
    trainer: TrainerConfig
    student: str | None = "student"


class Recipe(ABC):
    """A method, as the rest of the house sees it. Stateless; one instance is registered in `methods.method_registry`.

    Attributes:
        name: what `--method` takes.
        section: the name of its settings in the config, usually the same.
        Config: its settings.
        summary: one line for help texts.
        teaches: the kind of teacher: it decides how that is opened, how students are validated, how they are exported.
        data: what a method of this kind learns on, in words of `data_needs`.
        supports: options that it can be combined with.
        default_teacher: what is distilled where no teacher is named.
        student: what comes out, in words for errors.
        size_settings: what decides the student's size where `compress` does not.
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
        """Raise ValueError, in one sentence that names a setting, for settings that do not go together.

        Called when a config is made, without a teacher, and again once the teacher is opened (a `diffusion.teacher.Teacher`,
        or a `gan.gan_folder.Gan`).
        """
        if config.lora.enabled and not self.supports.lora:
            raise ValueError(f"lora.enabled: {self.student} has weights of its own; expects false")

    def data_needs(self, config: RunConfig) -> Literal["latents", "trajectories", "images", "decoded"]:
        """What the method learns on: encoded images, the teacher's trajectories, images for a GAN, or latents with their
        images and the teacher's reconstructions."""
        return "latents"

    @abstractmethod
    def stages(self, context: Any) -> Iterator[Stage]:
        """The stages in order. Each begins where the one before has ended, which has been trained before the next is asked
        for. `context` is the `DenoiserContext`, `GeneratorContext` or `AutoencoderContext` of the kind that it teaches."""

    def outline(self, config: RunConfig) -> list[StageOutline]:
        """The stages that `stages` will yield, known from the settings alone: for `--dry-run` and `plan`."""
        return [StageOutline("", config.trainer)]
