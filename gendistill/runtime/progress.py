"""Progress bars for long work, on the terminal's error stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def advancing_bar(text: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """`with advancing_bar("encoding", 1000) as advance: ... advance(64)`; it appears with the first advance."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(text, total=total)

    def advance(count: int) -> None:
        if not bar.live.is_started:
            bar.start()
        bar.advance(task, count)

    try:
        yield advance
    finally:
        bar.stop()


@contextmanager
def training_bar(total: int, completed: int, shown: bool) -> Iterator[Callable[[int, str | None], None]]:
    """`with training_bar(1000, 0, True) as show: ... show(step, "loss 0.03")`, with rate and time left."""
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), disable=not shown)
    with bar:
        task = bar.add_task("", total=total, completed=completed)
        yield lambda step, text: bar.update(task, completed=step, description=text)
