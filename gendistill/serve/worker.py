"""A thread that samples the requests of all clients, with a bounded queue, batching of similar requests, and a clean end."""

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
    """The queue is full, or the server is stopping."""


@dataclass(frozen=True)
class Generated:
    """Images uint8 (N, H, W, 3) of a request, with the sampling time of their batch in seconds and its number of images."""

    images: Tensor
    seconds: float
    batch_size: int


@dataclass
class _Waiting:
    request: ImageRequest
    generated: Future[Generated] = field(default_factory=Future)


class Worker:
    """Samples requests in order of arrival, and requests with the same `batch_key` in one batch.

    Args:
        generate: images uint8 (N, H, W, 3) of requests with the same `batch_key`, in the order of the requests.
        max_waiting: maximum number of requests in the queue; further requests are rejected.
        max_images: maximum number of images in a batch.
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
        """The future images of a request; cancel the future if the client disconnects.

        Raises:
            BusyError: the queue is full, or the server is stopping.
        """
        with self._changed:
            if self._ending:
                raise BusyError("the server is stopping")
            if len(self._queue) >= self._max_waiting:
                raise BusyError(f"{self._max_waiting} requests are waiting already; try again in a moment")
            waiting = _Waiting(request)
            self._queue.append(waiting)
            self._changed.notify()
            return waiting.generated

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def generating(self) -> int:
        """Number of images in the current batch."""
        return self._generating

    def end(self) -> None:
        """Finish the current batch and reject the waiting requests."""
        with self._changed:
            self._ending = True
            for waiting in self._queue:
                if waiting.generated.set_running_or_notify_cancel():
                    waiting.generated.set_exception(BusyError("the server stopped before the request was sampled"))
            self._queue.clear()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            requests = [waiting.request for waiting in batch]
            self._generating, started = sum(request.count for request in requests), time.perf_counter()
            try:
                images = self._generate(requests)
            except Exception as error:  # of any kind: the clients get the error, and the worker continues
                for waiting in batch:
                    waiting.generated.set_exception(error)
                continue
            finally:
                self._generating = 0
            seconds = time.perf_counter() - started
            for waiting, part in zip(batch, images.split([request.count for request in requests]), strict=True):
                waiting.generated.set_result(Generated(part, seconds, len(images)))

    def _next(self) -> list[_Waiting] | None:
        """The first waiting request, and the later requests that fit into its batch; None at the end."""
        with self._changed:
            while True:
                while not self._queue and not self._ending:
                    self._changed.wait()
                if self._ending:
                    return None
                batch: list[_Waiting] = []
                remaining: deque[_Waiting] = deque()
                capacity = self._max_images
                for waiting in self._queue:
                    fits = not batch or (
                        waiting.request.batch_key == batch[0].request.batch_key and waiting.request.count <= capacity
                    )
                    if not fits:
                        remaining.append(waiting)
                    elif waiting.generated.set_running_or_notify_cancel():
                        batch.append(waiting)
                        capacity -= waiting.request.count
                self._queue = remaining
                if batch:
                    return batch
