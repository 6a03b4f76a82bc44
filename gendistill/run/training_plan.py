"""`gendistill plan --train`: predicted memory and time of a training step, before weights are loaded.

The method computes a training step on the meta device, where tensors have shapes but no values. The plan counts the peak
memory and the samples that pass through the networks. A probe measures the time per sample on networks with random weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from gendistill.data.batches import Batch, Trajectories
from gendistill.diffusion.denoiser import Denoiser
from gendistill.methods import RECIPES, RunConfig, denoiser_stages, recipe_of
from gendistill.methods.denoiser_method import DenoiserContext, DenoiserMethod
from gendistill.methods.method_registry import compresses, may_be_lora
from gendistill.metrics.cost.components import synchronise
from gendistill.run.denoisers import fitting
from gendistill.runtime.device import usable_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import images_at_once
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families import Family
from gendistill.samplers.offload.live_memory import bytes_of, peak_bytes
from gendistill.samplers.offload.memory_model import CUDA_CONTEXT, MetaNetworks
from gendistill.samplers.quantization.small_weights import quantize_weights
from gendistill.settings.schedule import Step
from gendistill.training.method import Method
from gendistill.training.preparation import checkpoint_gradients

AS_IT_IS = "as it is"
MOMENTS = {"adamw": 8, "adamw_8bit": 2}  # bytes of Adam's moments per trained parameter


@dataclass
class Calls:
    """Samples that pass through the denoisers in a step: `plain` without gradients, `learning` with gradients."""

    plain: float = 0
    learning: float = 0


@dataclass(frozen=True)
class StepNeeds:
    """Memory in bytes and computation of an optimizer step.

    Attributes:
        encoding: peak bytes while prompts are encoded, before the text encoders are released: all weights of the teacher's
            pipeline, and activations.
        weights: bytes of the teacher's denoiser and decoder, the student and its EMA.
        optimizer: bytes of the optimizer state.
        step: peak bytes of activations and gradients.
        trained: number of trained parameters.
        rows: samples that pass through the denoisers in one forward and backward pass, the mean of a cycle of steps.
        passes: forward and backward passes of an optimizer step (gradient accumulation).
    """

    encoding: int
    weights: int
    optimizer: int
    step: int
    trained: int
    rows: Calls
    passes: int = 1

    @property
    def peak(self) -> int:
        """Peak bytes of the run, which encodes first and then trains."""
        return max(self.encoding, self.weights + self.optimizer + self.step)


@dataclass(frozen=True)
class TrainingPlan:
    """The needs of a run with its settings, and with successive settings that save memory.

    Attributes:
        needs: by setting, each in addition to the settings before it; the first, `AS_IT_IS`, is the run without changes.
        memory: available memory in GiB; None if not specified.
        seconds: time of an optimizer step without changes; None if not measured.
        measured_on: the device of the measurement.
        context: bytes of the libraries of the device (CUDA context).
    """

    teacher: str
    method: str
    needs: dict[str, StepNeeds]
    memory: float | None = None
    seconds: float | None = None
    measured_on: str | None = None
    context: int = CUDA_CONTEXT

    def to_dict(self) -> dict[str, Any]:
        rows = {name: {**asdict(needs), "peak": needs.peak + self.context} for name, needs in self.needs.items()}
        return {**asdict(self), "needs": rows, "fits": self.fitting()}

    def fitting(self) -> list[str] | None:
        """The fewest settings with which the run fits into `memory`; None if none suffice, or if `memory` is None."""
        names = list(self.needs)
        for count, needs in enumerate(self.needs.values()):
            if self.memory is not None and needs.peak + self.context <= self.memory * 2**30:
                return names[1 : count + 1]
        return None

    def table(self) -> Table:
        table = Table(title=f"{self.method} from {self.teacher}: predicted", title_justify="left", box=SIMPLE_HEAD)
        table.add_column("settings")
        for name in ("encoding", "weights", "optimizer", "step", "peak, GiB"):
            table.add_column(name, justify="right")
        table.add_column("trained parameters", justify="right")
        for name, needs in self.needs.items():
            sizes = (needs.encoding, needs.weights, needs.optimizer, needs.step, needs.peak + self.context)
            cells = (f"{size / 2**30:.2f}" for size in sizes)
            table.add_row(name if name == AS_IT_IS else f"and {name}", *cells, f"{needs.trained / 1e6:,.1f} M")
        return table

    def sentences(self) -> Iterator[str]:
        context = f"{self.context / 2**30:.1f} GiB for the libraries of the device"
        yield f"predicted from tensor shapes, including {context}, without validation"
        if self.seconds is not None:
            yield f"{self.seconds:.2f} s per optimizer step, measured on {self.measured_on} with random weights"
        if self.memory is None:
            return
        fitting = self.fitting()
        if fitting is None:
            yield f"{self.memory:g} GiB: no combination fits; a smaller data.resolution or a smaller teacher needs less"
        elif fitting:
            yield f"{self.memory:g} GiB: does not fit as it is; fits with --set {' --set '.join(fitting)}"
        else:
            yield f"{self.memory:g} GiB: fits as it is"


def plan_training(config: RunConfig, *, memory: float | None = None, probe: bool = False, cpu: bool = False) -> TrainingPlan:
    """The memory and time of a training step of `distill(config)`.

    Args:
        memory: available memory in GiB.
        probe: measure the time of a step on `config.device`.
        cpu: predict for a CPU instead of a GPU.

    Raises:
        ValueError: the method or one of its loss terms cannot be planned, or the teacher does not exist.
    """
    for part in recipe_of(config).parts(config):
        _require_planning(part)
    needs = {AS_IT_IS: step_needs(config, cpu=cpu)}
    family = MetaNetworks.from_configs(config.teacher, config=config.teacher_config).family
    for name, changed in _memory_savings(config, family):
        needs[name] = step_needs(changed, cpu=cpu)
    seconds = device = None
    if probe:
        seconds, device = measured_seconds(config, needs[AS_IT_IS])
    context = 0 if cpu else CUDA_CONTEXT
    return TrainingPlan(config.teacher, config.method, needs, memory, seconds, device, context)


def _require_planning(config: RunConfig) -> None:
    """Raise ValueError where the method or one of its loss terms cannot be planned."""
    recipe = recipe_of(config)
    if not recipe.supports.planning or compresses(config):
        option = "--compress" if compresses(config) else f"method {config.method}"
        planned = ", ".join(name for name, known in RECIPES.items() if known.supports.planning)
        raise ValueError(f"{option}: plan --train expects one of {planned}; distill --dry-run describes other runs")
    if config.feature_matching.weight != 0:
        raise ValueError("feature_matching.weight: plan --train does not cover feature matching; expects 0")
    distribution, semantic = config.align.distribution, config.align.semantic
    if recipe.data_needs(config) == "trajectories" and (distribution.adversarial != 0 or semantic.clip != 0):
        raise ValueError("align.distribution.adversarial, align.semantic.clip: plan --train does not cover them; expects 0")


def _memory_savings(config: RunConfig, family: Family) -> Iterator[tuple[str, RunConfig]]:
    """Settings that save memory, each added to the settings before it; the smallest cost in time comes first."""
    changes: dict[str, dict[str, Any]] = {}
    if not config.trainer.gradient_checkpointing:
        changes["trainer.gradient_checkpointing=true"] = {"trainer": {"gradient_checkpointing": True}}
    if config.trainer.batch_size > config.trainer.gradient_accumulation_steps and not _keeps_all_parts(config):
        count = config.trainer.batch_size
        changes[f"trainer.gradient_accumulation_steps={count}"] = {"trainer": {"gradient_accumulation_steps": count}}
    if not config.lora.enabled and may_be_lora(config) and family.lora:
        changes["lora.enabled=true"] = {"lora": {"enabled": True}}
    if config.dtype == "float32":
        changes["dtype=float16"] = {"dtype": "float16"}
    if (config.lora.enabled or "lora.enabled=true" in changes) and config.lora.quantization == "none":
        changes["lora.quantization=nf4-weights"] = {"lora": {"quantization": "nf4-weights"}}
    for name, change in changes.items():
        for section, values in change.items():
            value = getattr(config, section).model_copy(update=values) if isinstance(values, dict) else values
            config = config.model_copy(update={section: value})
        yield name, config


def step_needs(config: RunConfig, *, cpu: bool = False) -> StepNeeds:
    """The needs of an optimizer step of the method that needs most memory, in its first stage, computed on the meta device."""
    parts = recipe_of(config).parts(config)
    return max((_needs_of_method(part, cpu=cpu) for part in parts), key=lambda needs: needs.peak)


def _needs_of_method(config: RunConfig, *, cpu: bool) -> StepNeeds:
    networks = MetaNetworks.from_configs(config.teacher, config=config.teacher_config)
    config, dtype = fitting(config, networks.family, networks.family.pipelines[0]), getattr(torch, config.dtype)
    for module in (*networks.text, networks.network, networks.decoder):
        module.to(dtype)
    if config.lora.quantization != "none":
        quantize_weights(networks.network, config.lora.quantization)
    latents = _latents(config, networks)
    resolution = max(latents) * networks.factor
    encoding = bytes_of([*networks.text, networks.network, networks.decoder]) + networks.encoding(images_at_once(resolution))
    passes = 1 if _keeps_all_parts(config) else config.trainer.gradient_accumulation_steps
    rows = config.trainer.batch_size // passes
    family, network = networks.family, networks.network
    schedule = family.noise_schedule(networks.scheduler, network.config, latents)
    prediction_type = family.prediction_type(networks.scheduler)
    guidance = family.default_guidance if family.guidance_input else None
    teacher = Denoiser(network, schedule, prediction_type, family.call, guidance_input=guidance)
    unconditional = family.example_conditioning(network.config, 1, dtype) if family.guided else Conditioning()
    method = next(denoiser_stages(DenoiserContext(config, family, teacher, unconditional))).method
    assert isinstance(method, DenoiserMethod)
    trained = [parameter for group in method.trained_parameters().values() for parameter in group.values()]
    if config.trainer.gradient_checkpointing:
        checkpoint_gradients(method.trained_modules())
    calls = Calls()
    modules = _modules_in_memory(method, networks)
    _count_calls(modules, type(network), calls)
    batch = _batch(config, networks, rows, latents, dtype)
    step = peak_bytes(lambda: _steps(method, batch, rows, calls), copies_of_convolutions=cpu)
    num_trained = sum(parameter.numel() for parameter in trained)
    return StepNeeds(
        encoding,
        bytes_of(modules),
        num_trained * MOMENTS[config.trainer.optimizer],
        step,
        num_trained,
        calls,
        passes,
    )


def _keeps_all_parts(config: RunConfig) -> bool:
    """Whether the activations of all parts of a batch are kept: those of two students, until each of them has stepped."""
    parts = recipe_of(config).parts(config)
    return any(recipe_of(part).data_needs(part) == "trajectories" and part.align.peer == "mutual" for part in parts)


def _steps(method: Method, batch: Batch, rows: int, calls: Calls) -> None:
    """The first step of a cycle, which stands for all but the last, and the last; `calls` become the mean of the cycle."""
    for step, fraction in {0: 1 - 1 / method.cycle, method.cycle - 1: 1 / method.cycle}.items():
        before = replace(calls)
        for update in method.updates(batch, Step(step, 0.0), PerSampleRandom(0, step, 0, rows)):
            update.loss.backward()
            for name in update.optimizers:
                for parameter in method.trained_parameters()[name].values():
                    parameter.grad = None  # as after the step of an optimizer
        calls.plain = before.plain + fraction * (calls.plain - before.plain)
        calls.learning = before.learning + fraction * (calls.learning - before.learning)


def _latents(config: RunConfig, networks: MetaNetworks) -> tuple[int, int]:
    """Height and width of the training latents."""
    height, width = config.data.size or networks.size
    return height // networks.factor, width // networks.factor


def _batch(config: RunConfig, networks: MetaNetworks, rows: int, latents: tuple[int, ...], dtype: torch.dtype) -> Batch:
    network_config = networks.network.config
    conditions = networks.family.example_conditioning(network_config, rows, dtype)
    shape = (networks.family.channels(network_config)[0], *latents)
    trajectories = None
    if recipe_of(config).data_needs(config) == "trajectories":
        count = config.align.trajectory_steps
        points = torch.empty(rows, count + 1, *shape, device="meta")
        trajectories = Trajectories(points, torch.empty(count + 1, dtype=torch.long, device="meta"), conditions)
    return Batch(torch.empty(rows, *shape, device="meta"), conditions, trajectories)


def _modules_in_memory(method: DenoiserMethod, networks: MetaNetworks) -> list[nn.Module]:
    """All modules that are in memory during training; the text encoders are released before it."""
    return [networks.decoder, *method.held_networks()]


def _count_calls(modules: list[nn.Module], denoiser: type, calls: Calls) -> None:
    """Count the samples that pass through the modules of class `denoiser`, from now on."""

    def count(module: nn.Module, args: Any, kwargs: Any) -> None:
        sample = args[0] if args else next(iter(kwargs.values()))
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters()):
            calls.learning += len(sample)
        else:
            calls.plain += len(sample)

    bases = (getattr(module, "base", module) for module in modules)
    denoisers: dict[int, Any] = {id(base): base for base in bases if isinstance(base, denoiser)}
    for base in denoisers.values():
        base.register_forward_pre_hook(count, with_kwargs=True)


def measured_seconds(config: RunConfig, needs: StepNeeds) -> tuple[float, str]:
    """Seconds of an optimizer step, and the device, from a forward pass and a forward and backward pass on random weights.

    All weights get gradients, even if only a LoRA is trained: then the result is an upper bound.
    """
    device = usable_device(config.device)
    networks = MetaNetworks.from_configs(config.teacher, config=config.teacher_config)
    network = networks.network.to_empty(device=device)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    network.to(getattr(torch, config.dtype) if device != "cpu" else torch.float32).train()
    if config.trainer.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    rows = config.trainer.batch_size // config.trainer.gradient_accumulation_steps
    family, (channels, _) = networks.family, networks.family.channels(network.config)
    x_t, t = torch.rand(rows, channels, *_latents(config, networks), device=device), torch.rand(rows, device=device)
    example = family.example_conditioning(network.config, rows, network.dtype)
    conditioning = Conditioning(**{name: _random_like(value, device) for name, value in example.items()})

    def forward() -> None:
        with torch.no_grad():
            family.call(network, x_t, t, conditioning)

    def forward_and_backward() -> None:
        family.call(network, x_t, t, conditioning).sum().backward()

    plain = _median_seconds(forward, device) / rows
    network.requires_grad_(True)
    learning = _median_seconds(forward_and_backward, device) / rows
    seconds = needs.passes * (needs.rows.plain * plain + needs.rows.learning * learning)
    return seconds, device


def _random_like(value: Tensor, device: str) -> Tensor:
    return torch.rand(value.shape, device=device).to(value.dtype)


def _median_seconds(work: Callable[[], None], device: str, times: int = 3) -> float:
    seconds = []
    for _ in range(times + 1):
        started = time.perf_counter()
        work()
        synchronise(torch.device(device))
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[times // 2]
