"""Standard input, output and error where they are closed, or where nobody reads them."""

from __future__ import annotations

import io
import os
import sys

NAMES = ("stdin", "stdout", "stderr")


def open_standard_streams() -> None:
    """Open closed streams (`>&-`) on the null device, so that no other file gets their number and what is printed to
    them; bytes that are no text are printed as escapes."""
    for number, name in enumerate(NAMES):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            stream = os.fdopen(number, "r" if name == "stdin" else "w", closefd=False, encoding="utf-8")
            setattr(sys, name, stream)
    for output in (sys.stdout, sys.stderr):  # names of files need not be text
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Drop what standard output does not accept: the interpreter would write the rest when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
