"""The command line: demo, distill, plan, sample, export, serve, grid, evaluate, compare, statistics."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from rich.markup import escape

from gendistill.cli import demo, distilling, drawing, judging, planning, serving
from gendistill.cli.shared import app, console
from gendistill.runtime.allocator import keep_freed_memory
from gendistill.runtime.extras import MissingExtraError, missing_extras_named
from gendistill.runtime.plugins import load_plugins

__all__ = ["demo", "distilling", "drawing", "judging", "main", "planning", "serving"]


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="huggingface_hub")  # what diffusers passes to it
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")  # that there are two adapters, which is meant
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # which warn of packages that we do without as soon as they are imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    keep_freed_memory()
    try:
        with missing_extras_named():
            load_plugins()
            app()
    except (ValueError, MissingExtraError) as error:
        console.print(f"[red]error[/]: {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
