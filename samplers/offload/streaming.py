"""Pictures as they come to be: what each step leaves, then the picture; stopped where nobody listens any more."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class StepDone:
    """`step` of `steps` of pictures `first` to `first + len(latents)` - 1; `latents` (B, C, h, w) are what it left."""

    first: int
    step: int
    steps: int
    latents: Tensor


@dataclass(frozen=True)
class PicturesDone:
    """Pictures (B, 3, H, W) in [0, 1], the first of them number `first`."""

    first: int
    pictures: Tensor


Event = StepDone | PicturesDone
Tell = Callable[[Event], None]


class StoppedError(Exception):
    """Raised inside of a drawing that nobody waits for any more."""


def streamed(draw: Callable[[Tell], None]) -> Iterator[Event]:
    """What `draw` tells, as it tells it, from a thread of its own that ends with its next step when the iterator is closed.

    Args:
        draw: calls what it is given with each event; an error of its own is raised here.
    """
    told: queue.Queue[Any] = queue.Queue(maxsize=2)  # a drawing does not run ahead of whoever looks
    gone = threading.Event()
    end = object()

    def tell(event: Any) -> None:
        while not gone.is_set():
            with suppress(queue.Full):
                told.put(event, timeout=0.1)
                return
        raise StoppedError

    def work() -> None:
        with suppress(StoppedError):
            try:
                draw(tell)
            except Exception as error:  # whatever it is, whoever listens is to know it
                failed.append(error)
            tell(end)

    failed: list[Exception] = []
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while (event := told.get()) is not end:
            yield event
        if failed:
            raise failed[0]
    finally:
        gone.set()
        worker.join()
