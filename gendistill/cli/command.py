"""A command: its help lists what is registered, old names of options still work, and Ctrl-C ends it with one sentence."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import typer
from typer.core import TyperCommand

from gendistill.cli.shared import print_line, warn

OLD_OPTIONS = {
    "--most-pictures": "--max-images",  # words: allowed
    "--most-steps": "--max-steps",
    "--most-waiting": "--max-waiting",
}


class Command(TyperCommand):
    """A command of `gendistill`; in the help of its options `{methods}`, `{planned}` and `{metrics}` are replaced."""

    def get_help(self, ctx: Any) -> str:
        parameter: Any
        for parameter in self.params:
            text = getattr(parameter, "help", None) or ""
            if "{" in text:
                parameter.help = text.format_map(_Registered())
        return super().get_help(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accept old names of options, with a warning that has the new name."""
        current = []
        for argument in args:
            name, equals, value = argument.partition("=")
            if name in OLD_OPTIONS:
                warn([f"{name} is now {OLD_OPTIONS[name]}"])
            current.append(f"{OLD_OPTIONS.get(name, name)}{equals}{value}")
        return super().parse_args(ctx, current)

    def invoke(self, ctx: Any) -> Any:
        """Run it. Ctrl-C is exit code 130 and a sentence; what is in a cache folder is not computed again."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            print_line(str(stop) or f"stopped{_resuming(ctx.params)}")
            raise typer.Exit(getattr(stop, "exit_code", 130)) from stop


def _resuming(options: dict[str, Any]) -> str:
    """How a command that was stopped continues: by the same command, if it has a cache."""
    if "cache" not in options:
        return ""
    command = shlex.join(["gendistill", *sys.argv[1:]])
    return f"; finished work is kept in {options['cache']}; to continue, run: {command}"


class _Registered(dict[str, str]):
    """Registered names by kind, read only when a help text has them."""

    def __missing__(self, kind: str) -> str:
        from gendistill.cli.catalogue import catalogue

        found = catalogue()
        names = found.planned if kind == "planned" else [entry.name for entry in getattr(found, kind)]
        return ", ".join(names)
