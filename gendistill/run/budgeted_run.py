"""`gendistill distill --budget`: a run planned so that it ends within a time, its export and its evaluation included."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gendistill.evaluation.student_report import StudentComparison
from gendistill.methods import RunConfig, outline_of, recipe_of
from gendistill.run.budget_evaluation import EvaluationSize, evaluate_sized, evaluation_seconds, evaluation_sizes, time_limit
from gendistill.run.budget_forecast import embedded_name, forecast
from gendistill.run.budget_memory import fitting_memory
from gendistill.run.budget_probe import Rates, probe
from gendistill.run.budget_rules import BATCHES, Facts, chosen_rules, chosen_settings
from gendistill.run.budget_timetable import END, Timetable, scheduled, validation_seconds
from gendistill.run.config import load_config
from gendistill.run.denoisers import DenoiserRun, count_parameters
from gendistill.run.distill import DistillResult, distill
from gendistill.run.resuming import require_free
from gendistill.runtime.device import usable_device
from gendistill.runtime.files import atomic_write
from gendistill.samplers.families import Family, family_called
from gendistill.samplers.loading import configs_of

ANY_STEPS = (4, 2, 1)
PURPOSE = re.compile(r"(\d+) steps?")
DECIDED = ("method", "steps", "trainer.max_minutes", "trainer.max_steps")  # which other settings cannot change
REPORTED = "budget.json"
FEWEST = 50  # images of an evaluation at the end of a time that was too short
LARGER = 1.25  # times the expected time, that an evaluation larger than planned has to fit into


@dataclass(frozen=True)
class BudgetPlan:
    """The run that fits a budget.

    Attributes:
        seconds: the budget.
        reasons: the rules that applied, each with its case.
        forecast: one sentence.
        guided: whether the teacher has classifier-free guidance.
    """

    config: RunConfig
    seconds: float
    timetable: Timetable
    evaluation: EvaluationSize
    rates: Rates
    reasons: list[str]
    forecast: str
    guided: bool

    def lines(self) -> Iterator[str]:
        """A description for the terminal, one line each."""
        for reason in self.reasons:
            yield f"rule:        {reason}"
        yield f"evaluation:  {self.evaluation.describe()}"
        yield f"time:        {self.timetable.describe()}"
        yield f"forecast:    {self.forecast}"


@dataclass(frozen=True)
class BudgetResult:
    """What a run with a budget made; `comparison` is None where the time was over before the evaluation ended."""

    distilled: DistillResult
    comparison: StudentComparison | None
    seconds: float


def steps_for(purpose: str) -> list[int]:
    """The step counts of `4 steps`, `1 step` or `any steps`; raises ValueError for anything else."""
    if purpose.strip() == "any steps":
        return list(ANY_STEPS)
    found = PURPOSE.fullmatch(purpose.strip())
    if found is None or int(found[1]) < 1:
        raise ValueError(f"--for {purpose!r}: expects a number of steps, such as '4 steps' or '1 step', or 'any steps'")
    return [int(found[1])]


def plan_budget(
    settings: dict[str, Any],
    seconds: float,
    *,
    memory: float | None = None,
    purpose: str = "any steps",
    started: float | None = None,
) -> BudgetPlan:
    """Plan a run by `budget_rules.RULES` and the measured speed of this machine. Writes nothing but the measurement.

    Args:
        settings: teacher, data, run folder and further settings by dotted name, which take precedence over the rules.
        seconds: from the start of the command to the end of the evaluation.
        memory: GiB; what is free if None.
        purpose: see `steps_for`.
        started: `time.monotonic()` at the start of the command; now if None.

    Raises:
        ValueError: the budget is too short, nothing fits the memory, or a setting, the teacher or the data cannot be used.
    """
    started = time.monotonic() if started is None else started
    for name in DECIDED:
        if name in settings:
            raise ValueError(f"{name} {settings[name]}: --budget chooses it; expects --for, or a run without --budget")
    purposeful = {"steps": steps_for(purpose), **settings}
    config = load_config(None, purposeful)
    DenoiserRun.require_teacher(config)
    if len(outline_of(config)) > 1 or os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("--budget plans one training in one process; expects no --compress, and no accelerate launch")
    require_free(Path(config.out).expanduser(), resume=False)
    family, parameters = teacher_of_files(config)
    device = usable_device(config.device)
    facts = Facts(
        steps=tuple(config.steps),
        device=device,
        bf16=has_bf16(device),
        transformer=family.network_part == "transformer",
        guided=family.guided,
        embedded=embedded_name(config.teacher) is not None,
        parameters=parameters,
    )
    needs = {**chosen_settings(facts), "method": "consistency", "trainer.batch_size": BATCHES[0], **purposeful}
    saving, memory_reason = fitting_memory(needs, family, device, memory)
    parts = saving.get("trainer.gradient_accumulation_steps", 1)
    lora = bool((saving | settings).get("lora.enabled"))

    def configured(trajectories: float, changes: dict[str, Any]) -> tuple[RunConfig, list[str]]:
        known = replace(facts, trajectories=trajectories, lora=lora)
        reasons = [f"{rule.decides}: {rule.case}" for rule in chosen_rules(known)]
        return load_config(None, {**chosen_settings(known), **saving, **changes, **purposeful}), reasons

    batch = {"trainer.batch_size": BATCHES[0], "trainer.gradient_accumulation_steps": parts}
    candidates = {each.method: each for each in (configured(count, batch)[0] for count in (0, math.inf))}
    rates = probe(list(candidates.values()), started)
    config, table, evaluation, reasons = scheduled(seconds, rates, family.guided, parts, configured)
    aligns = recipe_of(config).data_needs(config) == "trajectories"
    steps = table.training / (rates.steps[config.method] * config.trainer.batch_size)
    length = config.align.trajectories if aligns else int(min(steps, config.trainer.max_steps)) * config.trainer.batch_size
    quality = forecast(config.teacher, config.method, length, config.steps)
    return BudgetPlan(config, seconds, table, evaluation, rates, [*reasons, memory_reason], quality, family.guided)


def distill_in_budget(plan: BudgetPlan, started: float) -> BudgetResult:
    """Run a plan: distill, export and evaluate, in what is left of the budget.

    Training ends sooner where the parts before it took longer than planned, and the evaluation has fewer images where the
    machine became slower. The run folder receives `budget.json`, with what was planned and what it took.

    Args:
        started: `time.monotonic()` at the start of the command.

    Raises:
        ValueError: as `distill`.
    """
    deadline = started + plan.seconds
    ends = deadline - plan.timetable.after_training - plan.timetable.margin / 2
    distilled = distill(plan.config, minutes_left=lambda: (ends - time.monotonic()) / 60)
    trained = time.monotonic()
    size = _affordable(plan, deadline - trained, slowdown(plan, distilled))
    comparison, made = None, None
    try:
        for each in _smallest_first(plan.config, size):
            with time_limit(deadline - time.monotonic() - END):
                comparison = evaluate_sized(each, plan.config, distilled.student_folder, plan.rates.extractor, plan.rates.texts)
            made = each
    except TimeoutError:
        pass  # what was made before stays
    if comparison is None:
        command = f"gendistill evaluate {distilled.student_folder}"
        print(f"the time was over before the evaluation ended; to evaluate the student, run: {command}", file=sys.stderr)
    ended = time.monotonic()
    report = {
        "budget": plan.seconds,
        "seconds": round(ended - started, 1),
        "before_evaluation": round(trained - started, 1),
        "training": round(distilled.training.seconds, 1),
        "planned": {name: round(value, 1) for name, value in asdict(plan.timetable).items()},
        "evaluation": None if made is None else asdict(made),
        "rates": {name: value for name, value in asdict(plan.rates).items() if name != "teacher_calls"},
    }
    with atomic_write(Path(plan.config.out).expanduser() / REPORTED) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    return BudgetResult(distilled, comparison, ended - started)


def slowdown(plan: BudgetPlan, distilled: DistillResult) -> float:
    """How much slower than in the probe the machine was in training, at least 1."""
    config, training = plan.config, distilled.training
    validations = 2 + training.steps // config.trainer.validate_every
    expected = training.steps * config.trainer.batch_size * plan.rates.steps[config.method]
    expected += validations * validation_seconds(config.trainer.num_validation, plan.rates, config.steps)
    return max(1.0, training.seconds / expected)


def _affordable(plan: BudgetPlan, left: float, slower: float) -> EvaluationSize:
    """The most informative evaluation that fits into what is left, if need be on fewer images than any plan has.

    One that is larger than planned has to fit with room to spare, since its time was not reserved; the smallest has some spare
    time in its plan.
    """
    sizes = evaluation_sizes(plan.config)
    planned = sizes.index(plan.evaluation)
    for number, size in enumerate(sizes):
        spare = LARGER * slower if number < planned else min(slower, LARGER) if size == sizes[-1] else slower
        needed = spare * evaluation_seconds(size, plan.rates, plan.config, plan.guided)
        if needed <= left - END:
            return size
    return replace(sizes[-1], num=max(FEWEST, int(sizes[-1].num * (left - END) / needed)))


def _smallest_first(config: RunConfig, size: EvaluationSize) -> Iterator[EvaluationSize]:
    """The smallest evaluation, whose images are part of any larger one, and then the larger one: there is always a result."""
    smallest = evaluation_sizes(config)[-1]
    if size.num >= smallest.num and size != smallest:
        yield smallest
    yield size


def teacher_of_files(config: RunConfig) -> tuple[Family, int]:
    """The family of a teacher on this machine and the number of parameters of its denoiser, from its configs.

    Raises:
        ValueError: it is not on this machine.
    """
    folder = configs_of(config.teacher, config=config.teacher_config, revision=config.teacher_revision)
    if folder is None:
        raise ValueError(
            f"teacher {config.teacher}: is not on this machine, and the time of a download is not known; --budget "
            "expects a folder or file"
        )
    family = family_called(json.loads((folder / "model_index.json").read_text())["_class_name"])
    return family, count_parameters(folder, family, config)[0]


def has_bf16(device: str) -> bool:
    """Whether a device computes in bfloat16 by instructions of its own."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in names)
