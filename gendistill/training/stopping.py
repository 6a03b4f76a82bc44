"""SIGTERM and Ctrl-C stop a run between two steps, with a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

PATIENCE = 1.0  # seconds: a launcher forwards the Ctrl-C that the terminal has already sent to all processes


class Stopped(KeyboardInterrupt):
    """A run that was stopped by a signal. `exit_code` is the shell's: 130 after Ctrl-C, 143 after SIGTERM."""

    def __init__(self, message: str, number: int | None) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + (number or signal.SIGTERM)  # None: another process of the run got the signal


class StopSignals:
    """In the context of `StopSignals() as stop` the first signal only sets `stop.number`; the second one raises `Stopped`.

    Python delivers signals to the main thread: in another thread the context has no effect.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0
        self._interruptible = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A context of work that can be repeated: the first signal raises `Stopped` immediately."""
        self._interruptible = True
        try:
            if self.number is not None:
                raise Stopped("stopped", self.number)
            yield
        finally:
            self._interruptible = False

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            if self._interruptible:
                raise Stopped("stopped", number)
        elif time.monotonic() - self._since > PATIENCE:
            raise Stopped("stopped immediately, without a checkpoint of this step", number)
