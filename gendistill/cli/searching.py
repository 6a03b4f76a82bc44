"""search, sweep: many runs that find better settings, and the smallest student that is still good."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gendistill.cli.command import Command
from gendistill.cli.completion import complete_config, complete_setting
from gendistill.cli.shared import DISTILL, AsJson, Device, app, parse_settings, print_line, quieten_libraries, report_files

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
    sampler: Annotated[str, typer.Option(help="tpe, random or grid")] = "tpe",
    storage: Annotated[
        str | None, typer.Option(help="A .log file, or the URL of a database; default: SQLite in the folder of the study")
    ] = None,
    objective: Annotated[str, typer.Option(help="quality, or quality,latency,memory for a Pareto front")] = "quality",
    set_: Settings = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Search for better settings of CONFIG. The same command continues a study, and adds a worker to it."""
    from gendistill.search.study import SearchOptions, Worker
    from gendistill.search.study_report import write_results

    quieten_libraries()
    settings = ({} if device is None else {"device": device}) | parse_settings(set_ or [])
    objectives = tuple(objective.split(","))
    worker = Worker(SearchOptions(config, space, out, trials, minutes, settings, sampler, storage, objectives), print_line)
    try:
        worker.run()
    finally:
        files = write_results(worker)
    if as_json:
        print((out.expanduser() / "search.json").read_text())
        return
    report_files(files)
