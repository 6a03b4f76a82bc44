"""The command line, `gendistill`."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import warnings
from contextlib import suppress

from rich.markup import escape

from gendistill.cli import (
    demo,
    describing,
    distilling,
    evaluating,
    finetuning,
    overview,
    planning,
    sampling,
    searching,
    serving,
)
from gendistill.cli.shared import PANELS, app, console
from gendistill.cli.standard_streams import discard_output, open_standard_streams
from gendistill.runtime.allocator import keep_freed_memory
from gendistill.runtime.extras import MissingExtraError, missing_extras_named
from gendistill.runtime.files import DISK, as_os_error
from gendistill.runtime.plugins import load_plugins

__all__ = [
    "demo",
    "describing",
    "distilling",
    "evaluating",
    "finetuning",
    "main",
    "overview",
    "planning",
    "sampling",
    "searching",
    "serving",
]

app.registered_commands.sort(key=lambda command: PANELS.index(str(command.rich_help_panel)))


def main() -> None:
    """Run the command line; a mistake of the user is one sentence and exit code 2."""
    open_standard_streams()
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
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _end)
    try:
        with missing_extras_named():
            load_plugins()
            _run()
    except (ValueError, MissingExtraError) as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of the output has ended, as `head` does
        discard_output()
        sys.exit(1)
    except Exception as error:
        of_disk = as_os_error(error)
        if of_disk is None or of_disk.errno not in (*DISK, errno.EACCES, errno.EPERM):
            raise
        discard_output()
        file = of_disk.filename or "a file"
        _fail(f"{file} cannot be read or written: {(of_disk.strerror or str(of_disk)).lower()}")


def _run() -> None:
    """Run the command and write all of its output."""
    try:
        app()
    finally:
        sys.stdout.flush()


def _fail(sentence: str) -> None:
    console.print(f"[red]error[/]: {escape(sentence)}", soft_wrap=True, highlight=False)
    sys.exit(2)


def _end(number: int, _: object) -> None:
    """SIGTERM ends the command as Ctrl-C does: nothing temporary is left."""
    sys.exit(128 + number)
