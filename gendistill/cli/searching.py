"""search, sweep: many runs that find better settings, and the smallest student that is still good."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from gendistill.cli.command import Command
from gendistill.cli.completion import complete_config, complete_setting
from gendistill.cli.shared import (
    DISTILL,
    AsJson,
    Device,
    app,
    parse_settings,
    parse_steps,
    print_line,
    quieten_libraries,
    report_files,
)

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting; can be repeated", autocompletion=complete_setting),
]


@app.command(
    cls=Command,
    rich_help_panel=DISTILL,
    epilog="[bold]Examples[/]: gendistill search demo --space space.yaml --trials 20 --minutes-per-trial 2 --out runs/mine\n\n"
    "gendistill search demo --space space.yaml --objective quality,latency,memory --out runs/front",
)
def search(
    config: Annotated[
        Path, typer.Argument(help="YAML file of settings, or a preset such as demo", autocompletion=complete_config)
    ],
    space: Annotated[Path, typer.Option(help="YAML file with the choices or the range of each setting")],
    trials: Annotated[int, typer.Option(min=1, help="Number of trials, of all workers together")] = 20,
    minutes: Annotated[
        float, typer.Option("--minutes-per-trial", min=0.01, help="Time limit of the training of each trial")
    ] = 2.0,
    out: Annotated[Path, typer.Option(help="Folder of the study, with a run folder for each trial")] = Path("runs/search"),
    sampler: Annotated[str, typer.Option(help="Choice of the trials: tpe, random or grid")] = "tpe",
    storage: Annotated[
        str | None, typer.Option(help="A .log file, or the URL of a database; default: SQLite in the folder of the study")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="Objectives: quality, or quality,latency,memory for a Pareto front")
    ] = "quality",
    set_: Settings = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Search for better settings of CONFIG. The same command continues a study, and adds a worker to it."""
    from optuna.exceptions import ExperimentalWarning

    from gendistill.search.study import SearchOptions, StudyWorker
    from gendistill.search.study_report import write_results

    quieten_libraries()
    warnings.filterwarnings("ignore", category=ExperimentalWarning)  # of Optuna: constant_liar, heartbeats
    settings = ({} if device is None else {"device": device}) | parse_settings(set_ or [])
    objectives = tuple(objective.split(","))
    worker = StudyWorker(SearchOptions(config, space, out, trials, minutes, settings, sampler, storage, objectives), print_line)
    try:
        worker.run()
    finally:
        files = write_results(worker)
    if as_json:
        print((out.expanduser() / "search.json").read_text())
        return
    report_files(files)


@app.command(
    cls=Command,
    rich_help_panel=DISTILL,
    epilog="[bold]Examples[/]: gendistill sweep demo --sizes 1.0,0.7,0.5,0.35,0.25 --steps 1,2,4 --minutes 10 --out runs/s\n\n"
    "gendistill sweep my-model --set data.path=my-images --minutes 60 --jobs 4 --out runs/sizes",
)
def sweep(
    source: Annotated[str, typer.Argument(help="YAML file of settings, a preset such as demo, or a teacher")],
    sizes: Annotated[
        str, typer.Option(help="Fractions of the teacher's multiply-accumulates and parameters: 1.0,0.5")
    ] = "1.0,0.7,0.5,0.35,0.25",
    steps: Annotated[str, typer.Option(help="Step counts: 1,2,4")] = "1,2,4",
    minutes: Annotated[
        float, typer.Option(min=0.01, help="Time limit of the training of each size, compression included")
    ] = 10.0,
    out: Annotated[Path, typer.Option(help="Folder of the sweep, with a run folder for each size")] = Path("runs/sweep"),
    jobs: Annotated[int, typer.Option(min=1, help="Sizes that are trained at once, each in a process of its own")] = 1,
    set_: Settings = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Train students of falling size for equal minutes, and find the size at which quality breaks. Repeat it to resume."""
    from gendistill.search.sweep import SweepOptions
    from gendistill.search.sweep import sweep as run
    from gendistill.search.sweep_report import write_sweep

    quieten_libraries()
    try:
        fractions = tuple(map(float, sizes.split(",")))
    except ValueError as error:
        raise ValueError(f"sizes {sizes!r}: expects numbers, such as 1.0,0.5") from error
    settings = ({} if device is None else {"device": device}) | parse_settings(set_ or [])
    result = run(SweepOptions(source, out, fractions, tuple(parse_steps(steps)), minutes, settings, jobs), print_line)
    files = write_sweep(result, out.expanduser(), minutes)
    if as_json:
        print((out.expanduser() / "sweep.json").read_text())
        return
    print((out.expanduser() / "sweep.md").read_text(), end="")
    report_files(files)
