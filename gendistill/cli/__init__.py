"""The command line, `gendistill`."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings

from rich.markup import escape

from gendistill.cli import demo, describing, distilling, evaluating, overview, planning, sampling, serving
from gendistill.cli.shared import PANELS, app, console
from gendistill.runtime.allocator import keep_freed_memory
from gendistill.runtime.extras import MissingExtraError, missing_extras_named
from gendistill.runtime.plugins import load_plugins

__all__ = ["demo", "describing", "distilling", "evaluating", "main", "overview", "planning", "sampling", "serving"]

app.registered_commands.sort(key=lambda command: PANELS.index(str(command.rich_help_panel)))


def main() -> None:
    """Run the command line; a mistake of the user is one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # names of files need not be text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings(
        "ignore", category=UserWarning, module="huggingface_hub"
    )  # from arguments that diffusers passes to it
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of metadata that describe no pixels
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")  # several adapters on one network are meant
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # they warn of missing packages of extras while they are imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    keep_freed_memory()
    try:
        with missing_extras_named():
            load_plugins()
            app()
    except (ValueError, MissingExtraError) as error:
        console.print(f"[red]error[/]: {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
