"""Runs of denoisers: a diffusers pipeline in, the same pipeline with a few-step or smaller network out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import PartialState, init_empty_weights

from gendistill.data.batches import LatentData
from gendistill.data.cached import image_source
from gendistill.data.encode import NOTHING_TO_LEARN_ON, prepare_data, training_texts
from gendistill.data.regularized import regularized
from gendistill.data.sources.prompts import Prompts
from gendistill.data.trajectories import TrajectoryData, generate_trajectories
from gendistill.diffusion.added_loras import AddedLoras
from gendistill.diffusion.denoiser import Denoiser
from gendistill.diffusion.teacher import Teacher, load_teacher
from gendistill.diffusion.trained_networks import GUIDANCE_EMBEDDING, lora_config
from gendistill.export.student_folder import export_student
from gendistill.gan.gan_folder import is_gan_folder
from gendistill.methods import RunConfig, Stage, denoiser_stages, recipe_of
from gendistill.methods.compression import compressed_config, macs_fraction, pruning_for
from gendistill.methods.denoiser_method import DenoiserContext, DenoiserMethod
from gendistill.methods.lora_checks import exports_lora
from gendistill.methods.method_registry import compresses
from gendistill.networks.classes import is_class_path
from gendistill.run.located_paths import located
from gendistill.run.prior_prompts import prior_prompts
from gendistill.run.student_outputs import lora_student, require_output
from gendistill.run.student_provenance import provenance_of
from gendistill.run.validation import Validator, scheduler_of, validation_evaluator, validation_prompts
from gendistill.runtime.progress import advancing_bar
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import StudentSpec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families import Family, family_called, network_of
from gendistill.samplers.loading import configs_of, open_student
from gendistill.samplers.offload.released import ReleasedEncoders
from gendistill.samplers.provenance import weights_fingerprint
from gendistill.samplers.weighted_lora import WeightedLora
from gendistill.schedulers import solver_eta
from gendistill.training.log import RunLog
from gendistill.training.state import Validation
from gendistill.training.trainer import TrainingResult, Validate

NUM_EXAMPLES = 8  # rows of the training data on which pruning measures importance


class DenoiserRun:
    """A run that distills a denoiser; see `run.distill.RunOfKind`."""

    def __init__(self, config: RunConfig, processes: PartialState) -> None:
        self.processes = processes
        self.loras = tuple(WeightedLora.parse(text) for text in config.teacher_loras)
        self.teacher = load_teacher(
            config.teacher,
            config=config.teacher_config,
            revision=config.teacher_revision,
            size=config.data.size,
            dtype=getattr(torch, config.dtype),
            device=processes.device,
            quantization=config.lora.quantization,
            loras=self.loras,
        )
        self.config = fitting(config, self.teacher.family, type(self.teacher.pipeline).__name__)
        for part in recipe_of(config).parts(self.config):
            fitting(part, self.teacher.family, type(self.teacher.pipeline).__name__)
        recipe_of(config).check(self.config, self.teacher)
        if compresses(config):
            pruning = pruning_for(self.teacher.network, self.teacher.family)
            compressed_config(pruning, config.compress)  # raises ValueError before the data are encoded
        self.start, self.start_spec = starting_denoiser(self.config, self.teacher)
        recipe_of(config).check_start(self._context(Conditioning()))
        require_output(self.config, self.teacher, self.loras)
        self.added_loras = AddedLoras.from_folder(self.teacher.pipeline, config.compatible)

    @staticmethod
    def require_teacher(config: RunConfig) -> None:
        if is_gan_folder(config.teacher) or is_class_path(config.teacher):
            raise ValueError(
                f"teacher {config.teacher}: is a GAN, which --method {config.method} cannot distill; expects --method gan"
            )

    @staticmethod
    def describe(config: RunConfig) -> tuple[str, str, str]:
        teacher, trained, texts = describe_networks(config)
        return teacher, trained, describe_data(config, texts)

    def prepare(self) -> None:
        config, teacher = self.config, self.teacher
        synthetic = config.data.num_synthetic if config.data.path is None else None
        with advancing_bar("encoding" if synthetic is None else "generating data (data.num_synthetic)", synthetic) as progress:
            self.latents = prepare_data(config.data, teacher, config.seed, progress)
        if config.data.prior_fraction:
            prompts = prior_prompts(config, teacher)
            with advancing_bar("generating prior images (data.num_prior)", config.data.num_prior) as progress:
                self.latents = regularized(self.latents, config.data, teacher, prompts, config.seed, progress)
        self.training_data: LatentData | TrajectoryData = self.latents
        if recipe_of(config).data_needs(config) == "trajectories":
            with advancing_bar("generating trajectories (align.trajectories)", config.align.trajectories) as progress:
                texts = partial(training_texts, config.data, teacher, self.latents, config.seed)
                self.training_data = generate_trajectories(
                    teacher,
                    self.latents,
                    config.guidance,
                    config.data.cache,
                    count=config.align.trajectories,
                    steps=config.align.trajectory_steps,
                    teachers=config.align.teachers,
                    texts=texts,
                    progress=progress,
                )
        with self.processes.local_main_process_first():  # the main process of each machine reads the reference first
            self.evaluator = validation_evaluator(config, teacher, self.latents)
        self.unconditional = teacher.unconditional()
        self.encoders = ReleasedEncoders(teacher.pipeline, validation_prompts(config, self.evaluator, max(teacher.size)))

    def stages(self) -> Iterator[Stage]:
        config, device = self.config, self.processes.device
        rows = self.latents.rows_of_step(config.seed, 0, NUM_EXAMPLES)
        examples = self.latents.batch(rows, PerSampleRandom(config.seed, 0, 0, NUM_EXAMPLES), device)
        for stage in denoiser_stages(replace(self._context(self.unconditional), examples=examples, data=self.latents)):
            if isinstance(stage.method, DenoiserMethod):
                stage.method.added_loras = self.added_loras
            yield stage

    def _context(self, unconditional: Conditioning) -> DenoiserContext:
        teacher = self.teacher
        return DenoiserContext(
            self.config,
            teacher.family,
            teacher.denoiser,
            unconditional,
            start=self.start,
            start_spec=self.start_spec,
            opened=teacher,
        )

    def data(self, stage: Stage) -> LatentData | TrajectoryData:
        return self.training_data if stage.data is None else stage.data(self.training_data)

    def validator(self, stage: Stage, samples: Path) -> Validate:
        self.validating = Validator(
            stage.config or self.config, self.teacher, stage, self.evaluator, samples, self.encoders.encoded
        )
        return self.validating

    def export(self, stage: Stage, training: TrainingResult, folder: Path) -> tuple[StudentSpec, str]:
        """Write the student with the solver that validation chooses."""
        assert training.best is not None  # the validator has evaluated at least step 0
        average = stage.method.networks.average
        if average.fraction < 1:
            raise ValueError(
                f"{folder.name}: training ended at step {training.steps}, before its change from epsilon to "
                f"{average.prediction_type} was complete; expects a higher limit (trainer.max_minutes, trainer.max_steps) with "
                "--resume, or a smaller progressive.prediction_type_steps"
            )
        validation = self.validating.choose_solver(training.best)
        spec, scheduler = describe_student(
            stage.config or self.config, self.teacher, stage, validation.figures["solver"], validation
        )
        described = f"{spec.method} student, sampled by {spec.solver}"
        if self.processes.is_main_process:
            provenance, networks = self._provenance(stage, training), stage.method.networks
            lora = lora_student(self.config, self.teacher, networks)
            if lora is not None and lora.relative_error is not None:
                error = f"relative error {lora.relative_error:.3f}"
                provenance["low-rank weights"] = f"rank {self.config.lora.rank}, {error} of the change of all weights"
                RunLog(self.validating.samples.parent / "log.jsonl").write({"lora_relative_error": lora.relative_error})
                described += f", a LoRA of rank {self.config.lora.rank} with a {error} of its weights"
            with nullcontext() if spec.lora else self.encoders.restored():
                export_student(folder, self.teacher, networks, spec, scheduler, provenance, lora=lora)
        return spec, described

    def _provenance(self, stage: Stage, training: TrainingResult) -> dict[str, Any]:
        teacher, network = self.teacher, stage.method.networks.average.network
        rows: dict[str, Any] = {"teacher commit": teacher.commit} if teacher.commit else {}
        if teacher.not_in_student:
            rows["not in the student"] = "; ".join(teacher.not_in_student)
        if compresses(self.config):
            fraction = macs_fraction(teacher.family, teacher.network, network)
            rows["multiply-accumulates of a call"] = f"{fraction:.3f} of the teacher's"
        return {
            **rows,
            "teacher network": f"sha256 {weights_fingerprint(teacher.network)}",
            **({} if self.config.start is None else {"trained from": "/".join(Path(self.config.start).parts[-2:])}),
            "data": self.training_data.described,
            **provenance_of(self.config, stage, training),
        }


def describe_student(
    config: RunConfig, teacher: Teacher, stage: Stage, solver: str, validation: Validation | None = None
) -> tuple[StudentSpec, Any]:
    """The `gendistill.json` of a stage's student for sampling with `solver`, and the diffusers scheduler of its pipeline.

    Args:
        validation: the validation that chose the solver, if any.
    """
    scheduler, config = scheduler_of(solver, config, teacher, stage), located(config)
    of_student = config.lora.enabled and config.start is not None
    base = config.start if config.start is not None and of_student else config.teacher
    family, (height, width) = teacher.family, teacher.size
    is_lora = exports_lora(config)
    in_folder = family.stores_size and not (is_lora and config.data.size)
    in_folder = in_folder and family.size(teacher.pipeline) == teacher.size
    spec = StudentSpec(
        method=config.method,
        teacher=base,
        num_inference_steps=tuple(stage.steps),
        solver=solver,
        scheduler_class=type(scheduler).__name__,
        scheduler_config={name: value for name, value in scheduler.config.items() if not name.startswith("_")},
        guidance=config.guidance.mode,
        guidance_scale=config.guidance.scale,
        guidance_range=config.guidance.range if config.guidance.mode == "embedded" else None,
        neutral_guidance=teacher.family.neutral_guidance,
        prediction_type=stage.method.networks.average.prediction_type,
        lora=is_lora,
        quantization=config.quantization,
        eta=solver_eta(solver) if teacher.family.accepts_eta else 0.0,
        teacher_config=None if of_student else config.teacher_config,
        teacher_revision=None if of_student else teacher.commit or config.teacher_revision,
        resolution=None if in_folder else height if height == width else (height, width),
        teacher_loras=tuple(WeightedLora.parse(text) for text in config.teacher_loras),
        lora_on_original=config.output == "base-lora",
        figures={} if validation is None else {"validation": validation.score},
        validation_network="" if validation is None else validation.figures.get("network", ""),
    )
    return spec, scheduler


def starting_denoiser(config: RunConfig, teacher: Teacher) -> tuple[Denoiser | None, StudentSpec | None]:
    """The student at `config.start`, which may have another prediction type than the teacher, and its spec; None if `start`
    is not set. A LoRA is fused into its network where the method continues one.

    Raises:
        ValueError: the student cannot be opened, or its network does not match the teacher's.
    """
    if config.start is None:
        return None, None
    dtype = getattr(torch, config.dtype) if config.lora.enabled else torch.float32  # that of an adapter's base is the teacher's
    pipeline, spec = open_student(config.start, dtype=dtype)
    if spec is not None and spec.lora:
        if not recipe_of(config).supports.student_lora:
            raise ValueError(f"start {config.start}: is a LoRA; expects a student with full weights")
        network_of(pipeline).fuse_lora()
        network_of(pipeline).unload_lora()
    network, expected = network_of(pipeline), teacher.network.config
    actual = network.config
    for name in ("in_channels", "out_channels", "cross_attention_dim", "num_class_embeds"):
        if actual.get(name) != expected.get(name):
            raise ValueError(
                f"start {config.start}: its network has {name} {actual.get(name)}; expects {expected.get(name)}, the teacher's"
            )
    if actual.get("time_cond_proj_dim") and config.guidance.mode != "embedded":
        raise ValueError(f"start {config.start}: its guidance scale is an input; expects guidance.mode=embedded")
    if teacher.family.size(pipeline) != teacher.size:
        teacher.family.set_size(pipeline, teacher.size)
    started = teacher.denoiser.with_network(network.to(teacher.pipeline.device))
    return started.with_prediction_type(teacher.family.prediction_type(pipeline.scheduler)), spec


def fitting(config: RunConfig, family: Family, pipeline_class: str) -> RunConfig:
    """The config adapted to its teacher: without guidance every scale is 1; as an input its default is the pipeline's.

    Raises:
        ValueError: the settings request guidance from a teacher without it, a guidance scale as an input that the network does
            not have, or a LoRA for a pipeline into which diffusers loads none.
    """
    kind = f"teacher {config.teacher} ({pipeline_class})"
    if config.lora.enabled and not family.lora:
        raise ValueError(f"lora.enabled: diffusers loads no LoRA into {kind}; expects false")
    if exports_lora(config) and not family.lora:
        raise ValueError(f"output {config.output}: diffusers loads no LoRA into {kind}; expects output=folder")
    if (config.lora.enabled or exports_lora(config)) and config.guidance.mode == "embedded" and family.guided:
        raise ValueError(
            "guidance.mode 'embedded' adds an input that a LoRA file cannot store; expects 'baked' or 'cfg' with a LoRA"
        )
    if config.guidance.mode == "cfg" and family.guidance_input:
        raise ValueError(f"guidance.mode cfg: guidance is an input of the network of {kind}; expects baked or embedded")
    if config.guidance.mode == "embedded" and family.guided and not family.embeds_guidance:
        raise ValueError(f"guidance.mode embedded: the network of {kind} has no guidance scale input; expects baked or cfg")
    if family.guided:
        return config
    explicit = config.guidance.model_fields_set
    if family.guidance_input:
        scale = config.guidance.scale if "scale" in explicit else family.default_guidance
        return config.model_copy(update={"guidance": config.guidance.model_copy(update={"scale": scale})})
    if (config.guidance.scale > 1 and "scale" in explicit) or config.guidance.mode != "baked":
        raise ValueError(f"guidance: {kind} has no guidance; expects the mode 'baked' with a scale of 1")
    return config.model_copy(update={"guidance": config.guidance.model_copy(update={"scale": 1.0})})


def describe_networks(config: RunConfig) -> tuple[str, str, bool]:
    """Descriptions of the teacher and of the trained weights, and whether the teacher's prompts are texts."""
    pruned = " of a pruned network" if compresses(config) else ""
    trained = f"a LoRA of rank {config.lora.rank}{pruned}" if config.lora.enabled else f"all weights{pruned}"
    folder = configs_of(config.teacher, config=config.teacher_config, revision=config.teacher_revision)
    if folder is None:
        return f"{config.teacher}, on the hub", trained, True
    index = json.loads((folder / "model_index.json").read_text())
    family = family_called(index["_class_name"])
    fitting(config, family, index["_class_name"])
    total, num_trained = count_parameters(folder, family, config)
    loras = [WeightedLora.parse(text) for text in config.teacher_loras]
    merged = f", with {'; '.join(lora.describe() for lora in loras)}" if loras else ""
    return (
        f"{config.teacher}, a {index['_class_name']} of {total / 1e6:,.2f} M parameters{merged}",
        f"{trained}, {num_trained / 1e6:,.2f} M parameters",
        family.texts,
    )


def count_parameters(folder: Path, family: Family, config: RunConfig) -> tuple[int, int]:
    """Numbers of parameters of the network in a pipeline folder, and of trained parameters of the student or its adapter."""
    component = family.network_part
    network_class = getattr(diffusers, json.loads((folder / "model_index.json").read_text())[component][1])
    embedded = (
        {"time_cond_proj_dim": GUIDANCE_EMBEDDING} if config.guidance.mode == "embedded" and family.embeds_guidance else {}
    )
    with init_empty_weights():
        network: Any = network_class.from_config(network_class.load_config(folder / component))
        pruned = compresses(config)
        student_config = compressed_config(pruning_for(network, family), config.compress) if pruned else network.config
        student: Any = network_class.from_config(student_config, **embedded)
        if config.lora.enabled:
            student.requires_grad_(False).add_adapter(lora_config(family.lora_targets, config.lora.rank, config.lora.alpha))
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    return network.num_parameters(), trained


def describe_data(config: RunConfig, texts: bool) -> str:
    """A description of the training data.

    Args:
        texts: whether the teacher's prompts are texts, so that the settings must provide prompts or images.
    """
    data = config.data
    if (data.path and data.prompts) or (texts and not data.path and not data.prompts):
        raise ValueError(NOTHING_TO_LEARN_ON)
    if data.path is not None:
        source = image_source(data, config.seed)
        if texts:
            source.require_captions()
        description = source.describe()
    else:
        prompts = Prompts(Path(data.prompts)).describe() if data.prompts else "all of its prompts"
        description = f"{data.num_synthetic} images that the teacher generates from {prompts}"
    if recipe_of(config).data_needs(config) == "trajectories":
        description += (
            f" and {config.align.trajectories} trajectories of {config.align.trajectory_steps} steps that the teacher generates"
        )
    return f"{description}; encoded into {data.cache}"
