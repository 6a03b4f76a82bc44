"""methods, metrics, families, explain: what there is, from the registries, plug-ins included."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from gendistill.cli.command import Command
from gendistill.cli.completion import complete_name
from gendistill.cli.shared import DESCRIBE, AsJson, app, show

if TYPE_CHECKING:
    from gendistill.settings.explanation import SettingExplanation

LINE = 320  # columns of a line that is not printed to a terminal: a name, a sentence and an address


@app.command(cls=Command, rich_help_panel=DESCRIBE, epilog="[bold]Example[/]: gendistill methods")
def methods(as_json: AsJson = False) -> None:
    """List the distillation methods, for distill --method."""
    _list("methods", as_json)


@app.command(cls=Command, rich_help_panel=DESCRIBE, epilog="[bold]Example[/]: gendistill metrics")
def metrics(as_json: AsJson = False) -> None:
    """List the metrics, for evaluate --metrics and compare --metrics."""
    _list("metrics", as_json)


@app.command(cls=Command, rich_help_panel=DESCRIBE, epilog="[bold]Example[/]: gendistill families")
def families(as_json: AsJson = False) -> None:
    """List the families of diffusion models that can be distilled, with their pipeline classes."""
    _list("families", as_json)


def _list(kind: str, as_json: bool) -> None:
    """Name, summary and page of everything of a kind, one a line."""
    from gendistill.cli.catalogue import catalogue

    entries = getattr(catalogue(), kind)
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries]))
        return
    table = Table.grid(padding=(0, 2))
    for entry in entries:
        table.add_row(f"[bold]{escape(entry.name)}[/]", escape(entry.summary), entry.docs or "")
    show(table, LINE)


@app.command(
    cls=Command,
    rich_help_panel=DESCRIBE,
    epilog="[bold]Examples[/]: gendistill explain trainer.learning_rate\n\n"
    "gendistill explain progressive\n\n"
    "gendistill explain ema_decay",
)
def explain(
    setting: Annotated[
        str | None,
        typer.Argument(
            help="A setting, a section, or the last name of settings; default: list the sections", autocompletion=complete_name
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain a setting of distill: its meaning, type, unit, default, range, and the paper that it is from."""
    from gendistill.cli.catalogue import catalogue
    from gendistill.settings.explanation import find
    from gendistill.settings.kinds import written

    settings = catalogue().settings
    if setting is None:
        _show_sections(settings, as_json)
        return
    found = find(settings, setting)
    if as_json:
        print(json.dumps([asdict(each) for each in found]))
    elif len(found) == 1:
        _show_setting(found[0])
    else:
        table = Table.grid(padding=(0, 2))
        for each in found:
            table.add_row(f"[bold]{each.name}[/]", escape(written(each.default)), escape(each.meaning))
        show(table, LINE)


def _show_sections(settings: Sequence[SettingExplanation], as_json: bool) -> None:
    """Each section with the number of its settings, and the settings that are in none."""
    from gendistill.settings.explanation import sections

    names = {section: [each.name for each in settings if each.name.startswith(f"{section}.")] for section in sections(settings)}
    alone = [each.name for each in settings if "." not in each.name]
    if as_json:
        print(json.dumps({"sections": names, "settings": alone}))
        return
    table = Table.grid(padding=(0, 2))
    for section, inside in names.items():
        table.add_row(f"[bold]{section}[/]", f"{len(inside)} settings, such as {inside[0]}")
    table.add_row("", f"and {', '.join(alone)}")
    show(table, LINE)


def _show_setting(setting: SettingExplanation) -> None:
    from gendistill.settings.kinds import written

    rows = {
        "accepts": setting.kind,
        "unit": setting.unit,
        "default": written(setting.default),
        "by method": ", ".join(f"{method} {written(value)}" for method, value in setting.defaults_by_method.items()),
        "range": setting.range,
        "paper": setting.paper,
        "set it by": f"--set {setting.name}=VALUE, or in a YAML file for --config",
    }
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        if text:
            table.add_row(f"  {name}", escape(text))
    print(f"{setting.name}: {setting.meaning}.")
    show(table)
