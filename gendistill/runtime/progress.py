"""Progress of long work on standard error: a bar on a terminal, a line now and then elsewhere, with time left and memory."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINES_EVERY = 30.0  # seconds between the lines that stand for a bar


class WorkProgress:
    """The progress of one piece of work, shown from its first update on.

    Args:
        text: what is being done, such as `encoding`.
        total: the number of items or steps; None where it is not known.
        completed: those that were done before.
        shown: whether this process shows it; one of several on a machine does.
        lines_every: seconds between lines where standard error is no terminal.
        time_limit: seconds after which the work ends in any case; None sets none.
    """

    def __init__(
        self,
        text: str,
        total: int | None,
        completed: int = 0,
        *,
        shown: bool = True,
        console: Console | None = None,
        lines_every: float = LINES_EVERY,
        time_limit: float | None = None,
    ) -> None:
        self.text, self.total, self.completed, self.before = text, total, completed, completed
        self.console = console or Console(stderr=True)
        self.shown, self.lines_every, self.time_limit = shown, lines_every, time_limit
        self.started = self.line_at = time.monotonic()
        self.details = ""
        self.bar: Progress | None = None

    def update(self, completed: int, details: str | None = None) -> None:
        """So many are done; `details` are shown until there are others."""
        self.completed, self.details = completed, self.details if details is None else details
        if not self.shown:
            return
        if self.console.is_terminal:
            self._show_bar()
        elif time.monotonic() - self.line_at >= self.lines_every:
            self._show_line()

    def close(self) -> None:
        """Remove the bar, or print the last line."""
        if self.bar is not None:
            self.bar.stop()
        elif self.shown and self.completed > self.before and not self.console.is_terminal:
            self._show_line()

    def _show_bar(self) -> None:
        if self.bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[parts]}"),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task(self.text, total=self.total, completed=self.before, parts="")
            self.bar.start()
        parts = filter(None, [self._time_left(), memory_in_use(), self.details])
        self.bar.update(self.task, completed=self.completed, parts=escape("  ".join(parts)))

    def _show_line(self) -> None:
        self.line_at = time.monotonic()
        count = f"{self.completed}" if self.total is None else f"{self.completed}/{self.total}"
        parts = [f"{self.text} {count}", f"{_clock(self.line_at - self.started)} elapsed", self._time_left()]
        self.console.print(
            escape(", ".join(filter(None, [*parts, memory_in_use(), self.details]))), soft_wrap=True, highlight=False
        )

    def _time_left(self) -> str:
        """The time until all is done at this speed or until the limit, whichever is first; empty where it is unknown."""
        elapsed, done = time.monotonic() - self.started, self.completed - self.before
        left = math.inf if self.time_limit is None else max(self.time_limit - elapsed, 0.0)
        if self.total is not None and done > 0:
            left = min(left, elapsed / done * (self.total - self.completed))
        return f"{_clock(left)} left" if 0 < left < math.inf else ""


@contextmanager
def advancing_bar(text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """`with advancing_bar("encoding", 1000) as advance: ... advance(64)`."""
    progress = WorkProgress(text, total, shown=os.environ.get("LOCAL_RANK", "0") == "0")
    try:
        yield lambda count: progress.update(progress.completed + count)
    finally:
        progress.close()


@contextmanager
def training_bar(
    total: int, completed: int, shown: bool, time_limit: float | None = None
) -> Iterator[Callable[[int, str | None], None]]:
    """`with training_bar(1000, 0, True) as show: ... show(step, "loss 0.03")`; `time_limit` is in seconds."""
    progress = WorkProgress("training", total, completed, shown=shown, time_limit=time_limit)
    try:
        yield progress.update
    finally:
        progress.close()


def memory_in_use() -> str:
    """Memory that PyTorch holds on the current CUDA GPU, where it is used; else the resident memory of the process."""
    torch = sys.modules.get("torch")  # not imported for this
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{torch.cuda.memory_reserved() / 2**30:.1f} GiB on the GPU"
    import psutil

    return f"{psutil.Process().memory_info().rss / 2**30:.1f} GiB"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
