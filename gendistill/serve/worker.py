"""One thread that draws, whoever asks: a queue that has an end, requests that go together in one batch, a clean end."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from gendistill.serve.picture_request import PictureRequest


class BusyError(RuntimeError):
    """The queue is full, or the server is about to end."""


@dataclass(frozen=True)
class Drawn:
    """Pictures uint8 (N, H, W, 3), the seconds that their batch took, and how many pictures were in it."""

    pictures: Tensor
    seconds: float
    together: int


@dataclass
class _Waiting:
    request: PictureRequest
    drawn: Future[Drawn] = field(default_factory=Future)


class Worker:
    """Draws requests in the order in which they came, those that go together at once.

    Args:
        draw: pictures uint8 (N, H, W, 3) of requests that go together, those of each one after the other.
        most_waiting: requests in the queue; the next one is refused.
        most_pictures: of one batch.
    """

    def __init__(
        self,
        draw: Callable[[list[PictureRequest]], Tensor],
        *,
        most_waiting: int = 64,
        most_pictures: int = 16,
    ) -> None:
        self._draw, self._most_waiting, self._most_pictures = draw, most_waiting, most_pictures
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._ending, self._drawing = False, 0
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)
        self._thread.start()

    def submit(self, request: PictureRequest) -> Future[Drawn]:
        """What will be drawn of a request; cancel it where nobody waits any more.

        Raises:
            BusyError: too many wait already.
        """
        with self._changed:
            if self._ending:
                raise BusyError("the server is about to end")
            if len(self._queue) >= self._most_waiting:
                raise BusyError(f"{self._most_waiting} requests wait already; try again in a moment")
            waiting = _Waiting(request)
            self._queue.append(waiting)
            self._changed.notify()
            return waiting.drawn

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def drawing(self) -> int:
        """Pictures of the batch that is being drawn."""
        return self._drawing

    def end(self) -> None:
        """Finish what is being drawn and begin nothing; what waits is refused."""
        with self._changed:
            self._ending = True
            for waiting in self._queue:
                if waiting.drawn.set_running_or_notify_cancel():
                    waiting.drawn.set_exception(BusyError("the server ended before it was drawn"))
            self._queue.clear()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            requests = [waiting.request for waiting in batch]
            self._drawing, started = sum(request.count for request in requests), time.perf_counter()
            try:
                pictures = self._draw(requests)
            except Exception as error:  # of any kind: who asked is told, and the next ones are drawn
                for waiting in batch:
                    waiting.drawn.set_exception(error)
                continue
            finally:
                self._drawing = 0
            seconds = time.perf_counter() - started
            for waiting, part in zip(batch, pictures.split([request.count for request in requests]), strict=True):
                waiting.drawn.set_result(Drawn(part, seconds, len(pictures)))

    def _next(self) -> list[_Waiting] | None:
        """The first that waits, and those behind it that go with it, as many as fit into a batch; None at the end."""
        with self._changed:
            while True:
                while not self._queue and not self._ending:
                    self._changed.wait()
                if self._ending:
                    return None
                batch: list[_Waiting] = []
                kept: deque[_Waiting] = deque()
                room = self._most_pictures
                for waiting in self._queue:
                    fits = not batch or (
                        waiting.request.goes_with == batch[0].request.goes_with and waiting.request.count <= room
                    )
                    if not fits:
                        kept.append(waiting)
                    elif waiting.drawn.set_running_or_notify_cancel():
                        batch.append(waiting)
                        room -= waiting.request.count
                self._queue = kept
                if batch:
                    return batch
