"""The page of a study: its history, the importance of the settings, slices, and the front of several objectives."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from gendistill.evaluation.reporting.curves import Point, on_front
from gendistill.evaluation.reporting.page import (
    Block,
    Card,
    Cards,
    Cell,
    Column,
    Details,
    Figure,
    Page,
    PageSection,
    Table,
    TableRow,
    Text,
    write_page,
)
from gendistill.evaluation.reporting.rows import PlottedValue, by_row
from gendistill.run.config import save_config
from gendistill.runtime.files import atomic_write
from gendistill.search.scatter import Dot, scatter
from gendistill.search.study import FAILURE, OBJECTIVES, StudyWorker, best_trial, counted_trials
from gendistill.search.study_storage import RUN, storage_errors
from gendistill.settings.kinds import written

REPORT, FIGURES, BEST = "report.html", "search.json", "best.yaml"
MIN_TRIALS = 4  # complete ones, for an importance


def write_results(worker: StudyWorker) -> list[Path]:
    """Write the page, the figures and the best config of a study into its folder; returns the files.

    Raises:
        ValueError: the storage fails, or a file cannot be written.
    """
    with storage_errors(worker.location):
        return _write_results(worker)


def _write_results(worker: StudyWorker) -> list[Path]:
    trials, folder = counted_trials(worker.study), worker.folder
    if not trials:
        return []
    files = [folder / FIGURES, folder / REPORT]
    with atomic_write(files[0]) as temporary:
        temporary.write_text(json.dumps({"objectives": worker.options.objectives, "trials": _rows(worker, trials)}, indent=1))
    write_page(_page(worker, trials), files[1])
    if (config := worker.best_config()) is not None:
        save_config(config, folder / BEST)
        files.append(folder / BEST)
    return files


def _rows(worker: StudyWorker, trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """The trials as plain data."""
    names = worker.options.objectives
    return [
        {
            "run": str(worker.runs / str(trial.user_attrs.get(RUN, trial.number))),
            "state": trial.state.name.lower(),
            "settings": {name: worker.space.value_of(value) for name, value in trial.params.items()},
            **(dict(zip(names, trial.values, strict=True)) if trial.state == TrialState.COMPLETE else {}),
            "validations": {str(percent): value for percent, value in trial.intermediate_values.items()},
            **({FAILURE: trial.user_attrs[FAILURE]} if FAILURE in trial.user_attrs else {}),
        }
        for trial in trials
    ]


def _page(worker: StudyWorker, trials: Sequence[FrozenTrial]) -> Page:
    study = worker.study
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    sections = [PageSection("Result", _summary(worker, trials, complete))]
    if complete:
        sections.append(PageSection("History", [_history(trials, complete)]))
    fronts = [_front(worker, complete, number) for number in range(1, len(worker.options.objectives)) if complete]
    if fronts:
        sections.append(PageSection("Pareto front", fronts, "Filled: no other trial is better in both."))
    if importance := _importance(study, complete):
        sections.append(PageSection("Importance", [importance]))
    if complete:
        lead = "Each setting against the quality of the trials: lower is better."
        sections.append(PageSection("Slices", [_slice(study, complete, name) for name in worker.space.distributions], lead))
    sections.append(PageSection("Trials", [_table(worker, trials)]))
    options = worker.options
    subtitle = f"{len(trials)} trials of {options.minutes:g} minutes, {options.sampler}; {', '.join(options.objectives)}"
    return Page(f"Search: {study.study_name}", sections, subtitle, "Written by gendistill search.")


def _summary(worker: StudyWorker, trials: Sequence[FrozenTrial], complete: Sequence[FrozenTrial]) -> list[Block]:
    states = {name: sum(trial.state == state for trial in trials) for name, state in STATES.items()}
    cards = [Card(str(count), f"{name} trials") for name, count in states.items()]
    best = best_trial(worker.study)
    if best is None:
        return [Cards(cards)]
    cards.insert(0, Card(f"{best.values[0]:.4g}", "best distance", f"trial {best.user_attrs[RUN]}; lower is better", 1))
    own = next((trial for trial in complete if trial.params == worker.own), None)
    if own is not None:
        cards.insert(1, Card(f"{own.values[0]:.4g}", "distance of the config", "with its own values, at equal minutes", 0))
    facts = [(name, written(worker.space.value_of(value))) for name, value in best.params.items()]
    return [Cards(cards), Details("Settings of the best trial", facts, opened=True)]


STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def _history(trials: Sequence[FrozenTrial], complete: Sequence[FrozenTrial]) -> Figure:
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.intermediate_values]
    dots = [Dot(trial.number, trial.values[0]) for trial in complete]
    dots += [Dot(trial.number, min(trial.intermediate_values.values()), filled=False) for trial in pruned]
    lowest, steps = math.inf, []
    for trial in complete:
        lowest = min(lowest, trial.values[0])
        steps.append((float(trial.number), lowest))
    caption = "The line is the best so far; hollow: pruned trials, with their best validation."
    return Figure(scatter(dots, "trial", OBJECTIVES["quality"], steps=steps), caption)


def _front(worker: StudyWorker, complete: Sequence[FrozenTrial], number: int) -> Figure:
    """The quality against another objective."""
    points = [Point(trial.values[number], trial.values[0]) for trial in complete]
    front = on_front(points)
    dots = [Dot(point.x, point.y, point in front) for point in points]
    steps = [(point.x, point.y) for point in front]
    x_label = OBJECTIVES[worker.options.objectives[number]]
    return Figure(scatter(dots, x_label, OBJECTIVES["quality"], steps=steps, height=400))


def _importance(study: optuna.Study, complete: Sequence[FrozenTrial]) -> Block | None:
    """The importance of each setting by PED-ANOVA (Watanabe et al. 2023)."""
    if len(complete) < MIN_TRIALS or len({trial.values[0] for trial in complete}) < 2:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its direction: distances are minimized, as it expects
            found = get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(), target=lambda trial: float(trial.values[0]), normalize=True
            )
    except (ValueError, RuntimeError):  # settings that all trials have in common
        return None
    if not found or not all(map(math.isfinite, found.values())):
        return None
    plot = by_row("importance", list(found), {"importance": [PlottedValue(value) for value in found.values()]}, [1])
    few = "" if len(complete) >= 20 else f" With {len(complete)} trials it is a hint."
    return Figure(plot, f"PED-ANOVA: how far the settings of the best tenth of the trials differ from those of all.{few}")


def _slice(study: optuna.Study, complete: Sequence[FrozenTrial], name: str) -> Block:
    chosen = sorted((trial for trial in complete if name in trial.params), key=lambda trial: str(trial.params[name]))
    if not chosen:
        return Text("no trial has it", name)
    distribution = chosen[0].distributions[name]
    named = isinstance(distribution, CategoricalDistribution)
    dots = [Dot(written(x) if named else x, trial.values[0]) for trial in chosen for x in [trial.params[name]]]
    log = isinstance(distribution, FloatDistribution | IntDistribution) and distribution.log
    return Figure(scatter(dots, name, OBJECTIVES["quality"], x_log=log))


def _table(worker: StudyWorker, trials: Sequence[FrozenTrial]) -> Table:
    objectives, settings = worker.options.objectives, list(worker.space.distributions)
    columns = [Column("trial", "Its run folder is trials/N.", align="left"), Column("outcome", align="left")]
    columns += [Column(name, OBJECTIVES[name], "lower") for name in objectives]
    columns += [Column(name, align="left") for name in settings]
    rows = []
    for trial in trials:
        ended = trial.state == TrialState.COMPLETE
        outcome = next(name for name, state in STATES.items() if state == trial.state)
        reached = f"at {max(trial.intermediate_values)} %" if outcome == "pruned" else trial.user_attrs.get(FAILURE, "")
        values = [Cell(f"{value:.4g}", value=value) for value in trial.values] if ended else [Cell("–")] * len(objectives)
        params = [written(worker.space.value_of(trial.params[name])) if name in trial.params else "–" for name in settings]
        run = str(trial.user_attrs.get(RUN, trial.number))
        rows.append(TableRow.from_cells(run, Cell(outcome, reached), *values, *params, highlight=trial.params == worker.own))
    caption = "Highlighted: the config's own values." if worker.own is not None else ""
    return Table(columns, rows, caption).with_best()
