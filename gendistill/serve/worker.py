"""One thread that samples, whoever asks: a queue that has an end, requests that go together in one batch, a clean end."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from gendistill.serve.image_request import ImageRequest


class BusyError(RuntimeError):
    """The queue is full, or the server is about to end."""


@dataclass(frozen=True)
class Generated:
    """Images uint8 (N, H, W, 3), the seconds that their batch took, and how many images were in it."""

    images: Tensor
    seconds: float
    together: int


@dataclass
class _Waiting:
    request: ImageRequest
    generated: Future[Generated] = field(default_factory=Future)


class Worker:
    """Samples requests in the order in which they came, those that go together at once.

    Args:
        sample: images uint8 (N, H, W, 3) of requests that go together, those of each one after the other.
        max_waiting: requests in the queue; the next one is refused.
        max_images: of one batch.
    """

    def __init__(
        self,
        generate: Callable[[list[ImageRequest]], Tensor],
        *,
        max_waiting: int = 64,
        max_images: int = 16,
    ) -> None:
        self._generate, self._max_waiting, self._max_images = generate, max_waiting, max_images
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._ending, self._generating = False, 0
        self._thread = threading.Thread(target=self._work, name="sampling", daemon=True)
        self._thread.start()

    def submit(self, request: ImageRequest) -> Future[Generated]:
        """What will be sampled of a request; cancel it where nobody waits any more.

        Raises:
            BusyError: too many wait already.
        """
        with self._changed:
            if self._ending:
                raise BusyError("the server is about to end")
            if len(self._queue) >= self._max_waiting:
                raise BusyError(f"{self._max_waiting} requests wait already; try again in a moment")
            waiting = _Waiting(request)
            self._queue.append(waiting)
            self._changed.notify()
            return waiting.generated

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def generating(self) -> int:
        """Images of the batch that is being sampled."""
        return self._generating

    def end(self) -> None:
        """Finish what is being sampled and begin nothing; what waits is refused."""
        with self._changed:
            self._ending = True
            for waiting in self._queue:
                if waiting.generated.set_running_or_notify_cancel():
                    waiting.generated.set_exception(BusyError("the server ended before it was sampled"))
            self._queue.clear()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            requests = [waiting.request for waiting in batch]
            self._generating, started = sum(request.count for request in requests), time.perf_counter()
            try:
                images = self._generate(requests)
            except Exception as error:  # of any kind: who asked is told, and the next ones are sampled
                for waiting in batch:
                    waiting.generated.set_exception(error)
                continue
            finally:
                self._generating = 0
            seconds = time.perf_counter() - started
            for waiting, part in zip(batch, images.split([request.count for request in requests]), strict=True):
                waiting.generated.set_result(Generated(part, seconds, len(images)))

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
                room = self._max_images
                for waiting in self._queue:
                    fits = not batch or (
                        waiting.request.goes_with == batch[0].request.goes_with and waiting.request.count <= room
                    )
                    if not fits:
                        kept.append(waiting)
                    elif waiting.generated.set_running_or_notify_cancel():
                        batch.append(waiting)
                        room -= waiting.request.count
                self._queue = kept
                if batch:
                    return batch
