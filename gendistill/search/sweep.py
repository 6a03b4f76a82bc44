"""`gendistill sweep`: students of falling size, each trained for the same minutes, measured at several step counts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gendistill.configs import preset_path
from gendistill.methods import RunConfig, recipe_of
from gendistill.run.config import config_text, load_config, save_config
from gendistill.run.distill import distill
from gendistill.run.located_paths import located
from gendistill.run.resuming import LOG
from gendistill.runtime.device import best_device, make_folder
from gendistill.runtime.files import folder_lock, read_json, write_json
from gendistill.samplers import NETWORK
from gendistill.sampling.costs import measure_costs
from gendistill.sampling.load import Opening, open_sampler
from gendistill.search.minutes import timed_config

PLAN, ROWS = "plan.json", "sweep-rows.json"
NO_LIMIT = 10**9  # steps: the minutes are the limit
PROMPT = "a photo"


@dataclass(frozen=True)
class SweepOptions:
    """The options of a sweep.

    Attributes:
        source: a YAML file of settings or a preset, or a teacher.
        sizes: fractions of the teacher's multiply-accumulates and parameters, at most 1.
        steps: step counts of each student.
        minutes: time limit of the training of each size, compression included.
        out: folder of the sweep, with a run folder for each size.
        jobs: number of sizes that are trained at once, each in a process of its own.
    """

    source: str
    out: Path
    sizes: tuple[float, ...] = (1.0, 0.7, 0.5, 0.35, 0.25)
    steps: tuple[int, ...] = (1, 2, 4)
    minutes: float = 10.0
    settings: dict[str, Any] = field(default_factory=dict)
    jobs: int = 1

    def __post_init__(self) -> None:
        if not self.sizes or len(set(self.sizes)) < len(self.sizes) or not all(0 < size <= 1 for size in self.sizes):
            raise ValueError(f"sizes {','.join(map(str, self.sizes))}: expects different numbers above 0 and at most 1")

    @property
    def config(self) -> Path | None:
        """The file of settings; None where the source is a teacher."""
        if Path(self.source).is_dir() or Path(self.source).suffix not in ("", ".yaml", ".yml"):
            return None
        try:
            return preset_path(self.source)
        except ValueError:
            if Path(self.source).suffix:
                raise
            return None

    @property
    def all_settings(self) -> dict[str, Any]:
        """The settings of all sizes, by dotted name."""
        teacher = {"teacher": self.source} if self.config is None else {}
        return {**teacher, "trainer.max_steps": NO_LIMIT, **self.settings, "steps": sorted(self.steps, reverse=True)}


@dataclass(frozen=True)
class SweepRow:
    """A student at a step count.

    Attributes:
        distance: of the validation with the most images; lower is better.
        milliseconds: median time of an image, all components included.
        megabytes: size of the denoiser's weights as float32.
        parameters: number of the denoiser's parameters.
    """

    size: float
    steps: int
    distance: float
    metric: str
    images: int
    milliseconds: float
    megabytes: float
    parameters: int


@dataclass(frozen=True)
class SweepResult:
    """The rows, the largest size first, and by size the sentence of a student that could not be trained."""

    rows: list[SweepRow]
    failures: dict[float, str]
    device: str


def sweep(options: SweepOptions, report: Callable[[str], None] = print) -> SweepResult:
    """Train the students that do not exist yet, then measure those that were not measured yet.

    Raises:
        ValueError: a setting or the teacher cannot be used, no size could be trained, or the folder holds another sweep.
        Stopped: SIGTERM or Ctrl-C; the same command continues.
    """
    base = load_config(options.config, options.all_settings)
    if recipe_of(base).teaches != "denoiser":
        raise ValueError(f"method {base.method}: sweep expects a method that distills a diffusion model")
    if base.compression_options:
        raise ValueError(f"compress.{min(base.compression_options)}: sweep chooses the size itself; expects it unset")
    folder = make_folder(options.out.expanduser())
    with folder_lock(folder, "out"):
        _require_same_plan(folder, options, base)
        configs = {size: _config_of(options, base, size, folder) for size in sorted(options.sizes, reverse=True)}
        unfinished = {size: each for size, each in configs.items() if not _is_finished(each)}
        for size in configs.keys() - unfinished.keys():
            report(f"size {size:g}: its student exists")
        failures = _trained(unfinished, options.jobs, report)
        if len(failures) == len(configs):
            raise ValueError(next(iter(failures.values())))
        device = base.device or best_device()
        rows = [row for size, each in configs.items() if size not in failures for row in _measured(size, each, device)]
    return SweepResult(rows, failures, device)


def _require_same_plan(folder: Path, options: SweepOptions, base: RunConfig) -> None:
    """Raise ValueError if the folder holds a sweep with other settings; sizes may be added."""
    text = config_text(located(base).model_copy(update={"out": "", "device": None}))
    plan, file = {"config": text, "minutes": options.minutes}, folder / PLAN
    if not file.exists():
        write_json(file, plan)
    elif changed := [name for name, value in read_json(file).items() if plan.get(name) != value]:
        raise ValueError(f"out {folder} holds a sweep with another {changed[-1]}; expects the same, or another folder")


def _config_of(options: SweepOptions, base: RunConfig, size: float, folder: Path) -> RunConfig:
    settings = {**options.all_settings, "out": str(folder / "students" / f"{size:g}")}
    if size < 1:
        kept = {name: value for name, value in base.compression.trainer.items() if name not in ("max_steps", "max_minutes")}
        settings |= {"compress.factor": 1 / size, "compression.trainer": kept}
    return timed_config(options.config, settings, options.minutes)


def _student(config: RunConfig, steps: int) -> Path:
    """The folder of the student for a step count."""
    own = Path(config.out) / f"student-{steps}"
    return own if own.exists() else Path(config.out) / "student"


def _is_finished(config: RunConfig) -> bool:
    return all(_student(config, steps).exists() for steps in config.steps)


def _trained(configs: dict[float, RunConfig], jobs: int, report: Callable[[str], None]) -> dict[float, str]:
    """Train the students; returns the sentences of those that failed."""
    if jobs > 1:
        return _trained_at_once(configs, jobs, report)
    failures = {}
    for size, config in configs.items():
        report(f"size {size:g}: training")
        try:
            distill(config, resume=True)
        except KeyboardInterrupt as stop:
            stop.args = ("stopped; to continue, repeat the command",)
            raise
        except ValueError as error:
            failures[size] = str(error)
            report(f"size {size:g}: {error}")
    return failures


def _trained_at_once(configs: dict[float, RunConfig], jobs: int, report: Callable[[str], None]) -> dict[float, str]:
    """Train `jobs` students at once, each in a process of its own, on the GPUs in turn."""
    failures: dict[float, str] = {}
    pending, running = list(configs.items()), dict[float, subprocess.Popen[bytes]]()
    try:
        while pending or running:
            while pending and len(running) < jobs:
                size, config = pending.pop(0)
                running[size] = _process(config, len(configs) - len(pending))
                report(f"size {size:g}: training")
            for size, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[size]
                if process.returncode:
                    failures[size] = _last_line(_output(configs[size]))
                    report(f"size {size:g}: {failures[size]}")
            time.sleep(0.1)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failures


def _process(config: RunConfig, number: int) -> subprocess.Popen[bytes]:
    out = make_folder(Path(config.out))
    if config.device is None and torch.cuda.device_count() > 1:
        config = config.model_copy(update={"device": f"cuda:{number % torch.cuda.device_count()}"})
    file = out.with_suffix(f"{out.suffix}.yaml")
    save_config(located(config), file)
    command = [sys.executable, "-m", "gendistill.cli", "distill", "--config", str(file), "--resume"]
    with _output(config).open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


def _output(config: RunConfig) -> Path:
    return Path(f"{config.out}.txt")


def _last_line(file: Path) -> str:
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "its process ended without a sentence"


def _measured(size: float, config: RunConfig, device: str) -> list[SweepRow]:
    """The rows of a student, from its folder if they were measured before."""
    file = Path(config.out) / ROWS
    if file.exists():
        return [SweepRow(**row) for row in read_json(file)["rows"]]
    rows = []
    for steps, (metric, distance, images) in sorted(distances_of(Path(config.out), config.steps).items()):
        sampler = open_sampler(_student(config, steps), Opening(device))
        costs = measure_costs(sampler, [PROMPT], steps=steps, batch_sizes=(1,), min_seconds=1, energy_seconds=0)
        network = costs.components[NETWORK]
        parameters = sum(network.parameters.values())
        rows.append(
            SweepRow(size, steps, distance, metric, images, 1000 * costs.latency, network.parameter_bytes / 1e6, parameters)
        )
    write_json(file, {"rows": [asdict(row) for row in rows]})
    return rows


def distances_of(run: Path, steps: list[int]) -> dict[int, tuple[str, float, int]]:
    """The metric, the distance and the number of images of the student of a run at each step count.

    They are those of the choice of its solver, which has the most images, or else of its best validation.
    """
    found: dict[int, tuple[str, float, int]] = {}
    for log in (run / LOG, *sorted(run.glob(f"stages/*/{LOG}"))):
        if not log.is_file() or log.parent.name == "compression":
            continue
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        chosen = [line["solvers"] for line in lines if "solvers" in line]
        validations = [line for line in lines if "validation" in line]
        trained = [line["validation"] for line in validations if line["step"]] or [each["validation"] for each in validations]
        if not trained:
            continue
        metric, figures = (chosen[-1:] and _by_steps(chosen[-1])) or min(map(_by_steps, trained), key=_mean)
        images = (chosen[-1] if chosen else trained[0])["images"]
        found |= {int(count): (metric, value, images) for count, value in figures.items() if int(count) in steps}
    return found


def _by_steps(figures: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The name of the metric, and the distances of the best solver by step count."""
    metric = next(name for name, value in figures.items() if isinstance(value, dict))
    return metric, figures[metric][figures["solver"]]


def _mean(by_steps: tuple[str, dict[str, float]]) -> float:
    return sum(by_steps[1].values()) / len(by_steps[1])
