"""`gendistill plan --train`: what a training step takes of memory and time, before anything is loaded.

The method itself does a step on the meta device, where tensors have shapes and no numbers: what it holds at most is counted,
and how many rows pass its networks. The time of a row is measured, on networks of random weights, where that is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from gendistill.data.batches import Batch, Trajectories
from gendistill.diffusion.denoiser import Denoiser
from gendistill.methods import RECIPES, RunConfig, denoiser_stages, recipe_of
from gendistill.methods.denoiser_method import DenoiserContext, DenoiserMethod
from gendistill.methods.method_registry import compresses, may_be_lora
from gendistill.metrics.cost.components import synchronise
from gendistill.runtime.device import usable_device
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.families import Family
from gendistill.samplers.offload.live_memory import bytes_of, peak_bytes
from gendistill.samplers.offload.memory_model import CUDA_CONTEXT, MetaNetworks
from gendistill.training.method import Method
from gendistill.training.preparation import checkpoint_gradients

AS_IT_IS = "as it is"
MOMENTS = {"adamw": 8, "adamw_8bit": 2}  # bytes of Adam's for each number that learns


@dataclass
class Calls:
    """Rows that pass a network in a step: where nothing is kept, and where a gradient is to come back."""

    plain: int = 0
    learning: int = 0


@dataclass(frozen=True)
class StepNeeds:
    """Bytes of an optimizer step, and what is computed in it.

    Attributes:
        weights: of the teacher's pipeline, the student and its average.
        optimizer: its state.
        step: of all that a step computes, gradients too, at its peak.
        trained: numbers that learn.
        rows: that pass the networks in a pass forwards and backwards; `passes`: of an optimizer step.
    """

    weights: int
    optimizer: int
    step: int
    trained: int
    rows: Calls
    passes: int = 1

    @property
    def peak(self) -> int:
        return self.weights + self.optimizer + self.step


@dataclass(frozen=True)
class TrainingPlan:
    """A run as it is and, after it, with more and more settings that take less.

    Attributes:
        needs: by the setting that comes to those before it; the first is `AS_IT_IS`.
        memory: GiB that there are; None where nobody says.
        seconds: of an optimizer step, as the settings are; None where it was not measured.
        context: bytes of the device's own libraries.
    """

    teacher: str
    method: str
    needs: dict[str, StepNeeds]
    memory: float | None = None
    seconds: float | None = None
    measured_on: str | None = None
    context: int = CUDA_CONTEXT

    def to_dict(self) -> dict[str, Any]:
        rows = {name: {**asdict(of), "peak": of.peak + self.context} for name, of in self.needs.items()}
        return {**asdict(self), "needs": rows, "fits": self.fitting()}

    def fitting(self) -> list[str] | None:
        """The fewest of the settings that fit into `memory`; None where none do, or nobody says how much there is."""
        names = list(self.needs)
        for count, of in enumerate(self.needs.values()):
            if self.memory is not None and of.peak + self.context <= self.memory * 2**30:
                return names[1 : count + 1]
        return None

    def table(self) -> Table:
        table = Table(title=f"{self.method} from {self.teacher}: predicted", title_justify="left", box=SIMPLE_HEAD)
        table.add_column("settings")
        for name in ("weights", "optimizer", "a step", "peak, GiB"):
            table.add_column(name, justify="right")
        table.add_column("learns", justify="right")
        for name, of in self.needs.items():
            sizes = (of.weights, of.optimizer, of.step, of.peak + self.context)
            cells = (f"{size / 2**30:.2f}" for size in sizes)
            table.add_row(name if name == AS_IT_IS else f"and {name}", *cells, f"{of.trained / 1e6:,.1f} M")
        return table

    def sentences(self) -> Iterator[str]:
        own = f"{self.context / 2**30:.1f} GiB for the device's own libraries"
        yield f"predicted from shapes, with {own}; validation is not in it"
        if self.seconds is not None:
            yield f"{self.seconds:.2f} s an optimizer step, measured on {self.measured_on} with random weights"
        if self.memory is None:
            return
        fitting = self.fitting()
        if fitting is None:
            yield f"{self.memory:g} GiB: nothing here fits; a smaller data.resolution or a smaller teacher take less"
        elif fitting:
            yield f"{self.memory:g} GiB: does not fit as it is; fits with --set {' --set '.join(fitting)}"
        else:
            yield f"{self.memory:g} GiB: fits as it is"


def plan_training(config: RunConfig, *, memory: float | None = None, probe: bool = False, cpu: bool = False) -> TrainingPlan:
    """What `distill(config)` takes in a step of its main stage.

    Args:
        memory: GiB that there are.
        probe: measure the time of a step, on `config.device`.
        cpu: count what a CPU takes, not a GPU.

    Raises:
        ValueError: the method or one of its terms is none that is planned, or the teacher is not there.
    """
    recipe = recipe_of(config)
    if not recipe.supports.planning or compresses(config):
        what = "--compress" if compresses(config) else f"method {config.method}"
        planned = ", ".join(name for name, known in RECIPES.items() if known.supports.planning)
        raise ValueError(f"{what}: plan --train takes {planned}; --dry-run of distill tells the rest")
    if recipe.data_needs(config) == "trajectories" and (
        config.align.distribution.adversarial != 0 or config.align.semantic.clip != 0
    ):
        raise ValueError("align.distribution.adversarial, align.semantic.clip: what these take is not planned; expects 0")
    needs = {AS_IT_IS: step_needs(config, cpu=cpu)}
    family = MetaNetworks.from_configs(config.teacher, config=config.teacher_config).family
    for name, changed in _lighter(config, family):
        needs[name] = step_needs(changed, cpu=cpu)
    seconds = where = None
    if probe:
        seconds, where = measured_seconds(config, needs[AS_IT_IS])
    context = 0 if cpu else CUDA_CONTEXT
    return TrainingPlan(config.teacher, config.method, needs, memory, seconds, where, context)


def _lighter(config: RunConfig, family: Family) -> Iterator[tuple[str, RunConfig]]:
    """Settings that take less memory, one added to those before; what costs the least time comes first."""
    changes: dict[str, dict[str, Any]] = {}
    if not config.trainer.gradient_checkpointing:
        changes["trainer.gradient_checkpointing=true"] = {"trainer": {"gradient_checkpointing": True}}
    if config.trainer.batch_size > config.trainer.gradient_accumulation_steps:
        count = config.trainer.batch_size
        changes[f"trainer.gradient_accumulation_steps={count}"] = {"trainer": {"gradient_accumulation_steps": count}}
    if not config.lora.enabled and may_be_lora(config) and family.lora:
        changes["lora.enabled=true"] = {"lora": {"enabled": True}}
    if config.dtype == "float32":
        changes["dtype=float16"] = {"dtype": "float16"}
    for name, change in changes.items():
        for section, values in change.items():
            value = getattr(config, section).model_copy(update=values) if isinstance(values, dict) else values
            config = config.model_copy(update={section: value})
        yield name, config


def step_needs(config: RunConfig, *, cpu: bool = False) -> StepNeeds:
    """Of one optimizer step of the first stage of `config`'s method, which runs on the meta device."""
    networks = MetaNetworks.from_configs(config.teacher, config=config.teacher_config)
    dtype = getattr(torch, config.dtype)
    for module in (*networks.text, networks.network, networks.decoder):
        module.to(dtype)
    latents = _latents(config, networks)
    rows = config.trainer.batch_size // config.trainer.gradient_accumulation_steps
    family, network = networks.family, networks.network
    schedule, prediction_type = family.noise_schedule(networks.scheduler), family.prediction_type(networks.scheduler)
    teacher = Denoiser(network, schedule, prediction_type, family.call)
    unconditional = family.example_conditioning(network.config, 1, dtype)
    method = next(denoiser_stages(DenoiserContext(config, family, teacher, unconditional))).method
    assert isinstance(method, DenoiserMethod)
    trained = [of for group in method.trained_parameters().values() for of in group.values()]
    if config.trainer.gradient_checkpointing:
        checkpoint_gradients(method.trained_modules())
    counted = Calls()
    held = _held(method, networks)
    _count(held, type(network), counted)
    batch = _batch(config, networks, rows, latents, dtype)
    step = peak_bytes(lambda: _step(method, batch, rows), copies_of_convolutions=cpu)
    numbers = sum(of.numel() for of in trained)
    return StepNeeds(
        bytes_of(held),
        numbers * MOMENTS[config.trainer.optimizer],
        step,
        numbers,
        counted,
        config.trainer.gradient_accumulation_steps,
    )


def _step(method: Method, batch: Batch, rows: int) -> None:
    for update in method.updates(batch, 0, PerSampleRandom(0, 0, 0, rows)):
        update.loss.backward()


def _latents(config: RunConfig, networks: MetaNetworks) -> tuple[int, int]:
    """Height and width of what is learned on; what a teacher generates has its own size."""
    resolution = config.data.resolution if config.data.path else None
    height, width = (resolution, resolution) if resolution else networks.size
    return height // networks.factor, width // networks.factor


def _batch(config: RunConfig, networks: MetaNetworks, rows: int, latents: tuple[int, ...], dtype: torch.dtype) -> Batch:
    config_of_network = networks.network.config
    conditions = networks.family.example_conditioning(config_of_network, rows, dtype)
    shape = (networks.family.channels(config_of_network)[0], *latents)
    trajectories = None
    if recipe_of(config).data_needs(config) == "trajectories":
        count = config.align.trajectory_steps
        points = torch.empty(rows, count + 1, *shape, device="meta")
        trajectories = Trajectories(points, torch.empty(count + 1, dtype=torch.long, device="meta"), conditions)
    return Batch(torch.empty(rows, *shape, device="meta"), conditions, trajectories)


def _held(method: DenoiserMethod, networks: MetaNetworks) -> list[nn.Module]:
    """All that is in memory."""
    return [*networks.text, networks.decoder, *method.held_networks()]


def _count(held: list[nn.Module], denoiser: type, counted: Calls) -> None:
    """Count rows that pass the denoisers among them, networks of that class."""

    def passing(module: nn.Module, args: Any, given: Any) -> None:
        sample = args[0] if args else next(iter(given.values()))
        if torch.is_grad_enabled() and any(of.requires_grad for of in module.parameters()):
            counted.learning += len(sample)
        else:
            counted.plain += len(sample)

    denoisers: dict[int, Any] = {id(base): base for of in held if isinstance(base := getattr(of, "base", of), denoiser)}
    for base in denoisers.values():
        base.register_forward_pre_hook(passing, with_kwargs=True)


def measured_seconds(config: RunConfig, needs: StepNeeds) -> tuple[float, str]:
    """Seconds of an optimizer step, and the device: one batch forwards, and forwards and backwards, on random weights.

    All weights get gradients, also where only a LoRA learns: of that it is at most so long.
    """
    device = usable_device(config.device)
    networks = MetaNetworks.from_configs(config.teacher, config=config.teacher_config)
    network = networks.network.to_empty(device=device)
    for of in network.parameters():
        nn.init.normal_(of, std=0.02)
    network.to(getattr(torch, config.dtype) if device != "cpu" else torch.float32).train()
    if config.trainer.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    rows = config.trainer.batch_size // config.trainer.gradient_accumulation_steps
    like = networks.family.example_inputs(network.config, rows, _latents(config, networks), network.dtype)
    given = {name: _filled(of, device) for name, of in like.items()}

    def forwards() -> None:
        with torch.no_grad():
            network(**given)

    def both() -> None:
        network(**given).sample.sum().backward()

    plain = _median(forwards, device) / rows
    network.requires_grad_(True)
    learning = _median(both, device) / rows
    seconds = needs.passes * (needs.rows.plain * plain + needs.rows.learning * learning)
    return seconds, device


def _filled(of: Any, device: str) -> Any:
    if isinstance(of, dict):
        return {name: _filled(part, device) for name, part in of.items()}
    return torch.rand(of.shape, device=device).to(of.dtype)


def _median(work: Callable[[], None], device: str, times: int = 3) -> float:
    seconds = []
    for _ in range(times + 1):
        started = time.perf_counter()
        work()
        synchronise(torch.device(device))
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[times // 2]
