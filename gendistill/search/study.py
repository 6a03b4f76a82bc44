"""`gendistill search`: trials of a few minutes that find better settings of a run, by any number of workers on one study."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from gendistill.run.config import config_text, load_config
from gendistill.run.distill import distill
from gendistill.run.located_paths import located
from gendistill.runtime.device import best_device, make_folder
from gendistill.sampling.costs import measure_costs
from gendistill.sampling.load import Opening, open_sampler
from gendistill.search.minutes import timed_config
from gendistill.search.space import SearchSpace, read_space
from gendistill.search.study_storage import RESUMED, RUN, described, open_storage, requeue, storage_errors
from gendistill.training.state import TrainState, Validation

OBJECTIVES = {
    "quality": "distance of the best validation",
    "latency": "milliseconds of an image",
    "memory": "weights and peak memory of an image in MB",
}
SAMPLERS = ("tpe", "random", "grid")
FIRST_RUNG, REDUCTION = 10, 3  # ASHA compares trials after 10, 30 and 90 per cent of their time
# Attributes of a trial: the sentence with which its run failed, and that it was one too many.
FAILURE, SURPLUS = "failure", "surplus"
MAX_FAILURES = 3  # of the first trials, after which the search ends
PROMPT = "a photo"


@dataclass(frozen=True)
class SearchOptions:
    """The options of a search; all workers of a study have the same ones, but for `storage`, `device` and `trials`.

    Attributes:
        config, settings: the run that is searched around, as for `load_config`.
        space: the YAML file of the space.
        trials: number of trials of the study, of all workers together.
        minutes: time limit of the training of each trial.
        out: folder of the study, with a run folder for each trial.
        sampler: one of `SAMPLERS`.
        storage: see `open_storage`.
        objectives: one or more of `OBJECTIVES`, the first one `quality`.
    """

    config: Path | None
    space: Path
    out: Path
    trials: int = 20
    minutes: float = 2.0
    settings: dict[str, Any] = field(default_factory=dict)
    sampler: str = "tpe"
    storage: str | None = None
    objectives: tuple[str, ...] = ("quality",)

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler {self.sampler}: expects one of {', '.join(SAMPLERS)}")
        unknown = [name for name in self.objectives if name not in OBJECTIVES]
        if unknown or self.objectives[:1] != ("quality",) or len(set(self.objectives)) < len(self.objectives):
            raise ValueError(
                f"objective {','.join(self.objectives)}: expects quality, alone or followed by latency, memory or both"
            )


class InOrder(BaseSampler):
    """Every point of a grid once, whatever the number of workers: trial k is the k-th point."""

    def __init__(self, points: list[dict[str, Any]]) -> None:
        self.points = points

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        earlier = study.get_trials(deepcopy=False)[: trial.user_attrs.get(RUN, trial.number)]
        number = sum(RESUMED not in each.user_attrs and SURPLUS not in each.user_attrs for each in earlier)
        return self.points[number % len(self.points)][param_name]


class StudyWorker:
    """Runs trials of a study until it has as many as requested. Several workers, on any machines, may share a study.

    Args:
        report: called with a line on each trial.

    Raises:
        ValueError: the config, the space or the storage cannot be used, or the study was begun with other options.
    """

    def __init__(self, options: SearchOptions, report: Callable[[str], None] = print) -> None:
        self.options, self.report = options, report
        self.base = load_config(options.config, dict(options.settings))
        self.space: SearchSpace = read_space(options.space, options.config, options.settings)
        self.own = self.space.own_parameters(self.base)
        self.points = self._points() if options.sampler == "grid" else []
        self.trials = min(options.trials, len(self.points)) if self.points else options.trials
        self.folder = make_folder(options.out.expanduser())
        self.runs = make_folder(self.folder / "trials")
        self.lock = FileLock(self._lock_of(0))
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.location = described(options.storage, self.folder)
        with FileLock(self.folder / ".search.lock"):  # two workers that start at once make one study
            storage = open_storage(options.storage, self.folder)
            with storage_errors(self.location):
                self.study = self._study(storage)

    def run(self) -> optuna.Study:
        """Run trials until the study is complete.

        Raises:
            ValueError: the first trial cannot be run, or the storage fails.
            Stopped: SIGTERM or Ctrl-C; another worker, or the same command, resumes the trial.
        """
        with storage_errors(self.location):
            try:
                while self._is_open():
                    self.study.optimize(self._objective, n_trials=1, catch=(ValueError,), callbacks=[self._report_ended])
                    self.lock.release()
            except ConfigError as error:
                raise ValueError(str(error)) from error
            finally:
                self.lock.release()
        return self.study

    def best_config(self) -> Any:
        """The config with the settings of the trial of the best quality; None if no trial has ended."""
        best = best_trial(self.study)
        if best is None:
            return None
        values = {name: self.space.value_of(value) for name, value in best.params.items()}
        return located(load_config(self.options.config, {**self.options.settings, **values}))

    def _points(self) -> list[dict[str, Any]]:
        """The grid, with the config's own values first."""
        return sorted(self.space.grid(), key=lambda point: point != self.own)

    def _study(self, storage: optuna.storages.BaseStorage) -> optuna.Study:
        options = self.options
        name, directions = self.folder.resolve().name, [StudyDirection.MINIMIZE] * len(options.objectives)
        shared = {
            "config": config_text(self.base.model_copy(update={"out": "", "device": None})),
            "space": {name: repr(each) for name, each in self.space.distributions.items()},
            "minutes": options.minutes,
            "sampler": options.sampler,
            "objectives": list(options.objectives),
        }
        try:
            study = optuna.create_study(storage=storage, study_name=name, directions=directions, pruner=self._pruner())
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(study_name=name, storage=storage, pruner=self._pruner())
            changed = [key for key, value in shared.items() if study.user_attrs.get(key, value) != value]
            if changed:
                raise ValueError(
                    f"out {self.folder}: the study {name} was begun with another {changed[0]}; expects the same options for "
                    "all its workers, or another folder"
                ) from None
            return study
        for key, value in shared.items():
            study.set_user_attr(key, value)
        if self.own is not None and options.sampler != "grid":
            study.enqueue_trial(self.own)
        return study

    def _pruner(self) -> BasePruner:
        if len(self.options.objectives) > 1:
            return NopPruner()  # a front of several objectives has no order to prune by
        return SuccessiveHalvingPruner(min_resource=FIRST_RUNG, reduction_factor=REDUCTION)

    def _sampler(self, number: int) -> BaseSampler:
        """The sampler of a trial: no two trials have the same random numbers, whichever workers run them."""
        seed = self.base.seed + number
        if self.options.sampler == "grid":
            return InOrder(self.points)
        if self.options.sampler == "random":
            return RandomSampler(seed)
        return TPESampler(seed=seed, constant_liar=True, n_startup_trials=min(10, max(3, self.trials // 3)))

    def _is_open(self) -> bool:
        """Whether there is a trial for this worker; trials of workers that have ended go to it, too."""
        self._requeue_dead()
        trials = self.study.get_trials(deepcopy=False)
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        return waiting or sum(map(_counts, trials)) < self.trials

    def _requeue_dead(self) -> None:
        """Put trials back whose worker holds the lock of its run folder no more: the system frees it when a process ends."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            file = self._lock_of(trial.user_attrs.get(RUN, trial.number))
            if not file.exists():  # it is just starting, or is of another machine, with heartbeats
                continue
            with suppress(Timeout), FileLock(file, timeout=0):
                if self.study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
                    self.study.tell(trial.number, state=TrialState.FAIL)  # words: allowed
                    requeue(self.study, trial)

    def _hold(self, run: int) -> None:
        """Hold the lock of a run folder until the study has the result: by it, other workers know that this one is alive."""
        self.lock = FileLock(self._lock_of(run))
        try:
            self.lock.acquire(timeout=5)
        except Timeout as error:
            raise ValueError(f"{self.runs / str(run)} is in use by another worker") from error

    def _lock_of(self, run: int) -> Path:
        return self.runs / f".{run}.lock"

    def _objective(self, trial: Trial) -> tuple[float, ...]:
        run = trial.user_attrs.get(RUN, trial.number)
        self._hold(run)
        earlier = self.study.get_trials(deepcopy=False)[: trial.number]
        if RESUMED not in trial.user_attrs and sum(map(_counts, earlier)) >= self.trials:
            trial.set_user_attr(SURPLUS, True)
            raise ValueError("another worker has begun the last trial")
        trial.set_user_attr(RUN, run)
        self.study.sampler = self._sampler(trial.number)
        values = self.space.suggest(trial)
        try:
            return self._trained(trial, self.runs / str(run), values)
        except KeyboardInterrupt as stop:
            requeue(self.study, trial)
            stop.args = ("stopped; the trial is kept. To resume it, repeat the command",)
            raise
        except ValueError as error:
            failed = sum(FAILURE in each.user_attrs for each in earlier)
            if trial.params == self.own or (failed >= MAX_FAILURES and best_trial(self.study) is None):
                requeue(self.study, trial)
                raise ConfigError(str(error)) from error
            trial.set_user_attr(FAILURE, str(error))
            raise

    def _trained(self, trial: Trial, run: Path, values: dict[str, Any]) -> tuple[float, ...]:
        settings = {**self.options.settings, **values, "out": str(run)}
        config = timed_config(self.options.config, settings, self.options.minutes)

        def on_validation(state: TrainState, validation: Validation) -> None:
            if len(self.options.objectives) > 1 or not math.isfinite(validation.score):
                return
            trial.report(validation.score, round(100 * state.fraction))
            if state.step > 0 and trial.should_prune():
                raise optuna.TrialPruned(f"at {state.fraction:.0%} of its time")

        result = distill(config, resume=RESUMED in trial.user_attrs, on_validation=on_validation)
        best = result.training.best
        if best is None:
            raise ValueError("the training ended before its first validation; expects more minutes per trial")
        trial.set_user_attr("steps", result.training.steps)
        costs = self._costs(result.student_folder, config.steps[0]) if len(self.options.objectives) > 1 else {}
        return tuple({"quality": best.score, **costs}[name] for name in self.options.objectives)

    def _costs(self, student: Path, steps: int) -> dict[str, float]:
        sampler = open_sampler(student, Opening(self.base.device or best_device()))
        costs = measure_costs(sampler, [PROMPT], steps=steps, batch_sizes=(1,), min_seconds=1, energy_seconds=0)
        return {"latency": 1000 * costs.latency, "memory": (costs.parameter_bytes + costs.peak_memory.working) / 1e6}

    def _report_ended(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Report a trial that has ended. Its checkpoints are removed unless it failed: its student, log and images stay."""
        run = trial.user_attrs.get(RUN)
        if run is None:
            return
        if trial.state != TrialState.FAIL:
            for folder in (self.runs / str(run)).rglob("checkpoints"):
                shutil.rmtree(folder, ignore_errors=True)
        best = best_trial(study)
        so_far = "" if best is None else f"; best so far {best.values[0]:.4g}, trial {best.user_attrs[RUN]}"
        if trial.state == TrialState.FAIL:
            outcome = f"failed: {trial.user_attrs.get(FAILURE, 'it was stopped')}"
        elif trial.state == TrialState.PRUNED:
            outcome = f"pruned after {max(trial.intermediate_values)} % of its time"
        else:
            outcome = ", ".join(
                f"{name} {value:.4g}" for name, value in zip(self.options.objectives, trial.values, strict=True)
            )
        self.report(f"trial {run}: {outcome}{so_far}")


class ConfigError(Exception):
    """A run that cannot be trained at all: the search ends with its sentence."""


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial of the best quality."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return min(complete, key=lambda trial: trial.values[0], default=None)


def counted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have ended, without those that another trial resumed."""
    return [trial for trial in study.get_trials(deepcopy=False) if _counts(trial) and trial.state.is_finished()]


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the requested number: a failed one is, unless its worker was stopped."""
    return trial.state != TrialState.FAIL or FAILURE in trial.user_attrs
