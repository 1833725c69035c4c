"""Requests that come together are computed together: a bounded queue, and one thread that computes."""

import asyncio
import collections
import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable

import numpy as np

from vision_jax.serve.backends import Backend, Best

log = logging.getLogger(__name__)


class Overloaded(Exception):
    """As many images are waiting as may."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How requests are brought together.

    Attributes:
        max_batch: images of a batch, at most.
        max_delay: seconds that a batch which is not full waits for more images, at most, once the backend is idle.
        max_waiting: images that wait for a batch, at most.
    """

    max_batch: int = 32
    max_delay: float = 0.005
    max_waiting: int = 256


Observe = Callable[[int, float], None]


class Batcher:
    """Computes images in batches; all methods are called in one event loop.

    While a batch is computed, the next one gathers, so that batches fill by themselves under load. One that is not full
    when its turn comes waits for the delay: clients that have just been answered ask again in that time.

    Args:
        backend: what computes.
        limits: see there.
        observe: is called with the size of each batch and the seconds that it took.
    """

    def __init__(self, backend: Backend, limits: Limits, observe: Observe = lambda size, seconds: None):
        self._backend, self._limits, self._observe = backend, limits, observe
        self._waiting: collections.deque[tuple[np.ndarray, asyncio.Future[tuple[np.ndarray, np.ndarray]]]] = (
            collections.deque()
        )
        self._arrived = asyncio.Event()
        self._closing = False
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "compute")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many images wait for a batch."""
        return len(self._waiting)

    def start(self) -> None:
        """Starts to compute, in the event loop that runs."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Computes what waits, and ends."""
        self._closing = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def classify(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns probabilities and numbers of the best classes of an image, (k,) each.

        Args:
            image: (size, size, channels) uint8.

        Raises:
            Overloaded: if too many images wait.
        """
        if len(self._waiting) >= self._limits.max_waiting:
            raise Overloaded
        result: asyncio.Future[tuple[np.ndarray, np.ndarray]] = asyncio.get_running_loop().create_future()
        self._waiting.append((image, result))
        self._arrived.set()
        return await result

    async def _run(self) -> None:
        while True:
            while not self._waiting:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            await self._gather()
            count = min(len(self._waiting), self._limits.max_batch)
            await self._compute([self._waiting.popleft() for _ in range(count)])

    async def _gather(self) -> None:
        """Waits until there is a full batch, or its first image has waited for long enough."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.max_delay
        while len(self._waiting) < self._limits.max_batch and not self._closing:
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._arrived.wait()
            except TimeoutError:
                return

    async def _compute(self, batch: list[tuple[np.ndarray, asyncio.Future[tuple[np.ndarray, np.ndarray]]]]) -> None:
        images = np.stack([image for image, _ in batch])
        begun = time.perf_counter()
        try:
            best: Best = await asyncio.get_running_loop().run_in_executor(self._thread, self._backend, images)
        except Exception as error:  # whatever it is, it is these requests' and not the server's
            log.exception("A batch of %d images failed.", len(batch))
            for _, result in batch:
                if not result.done():
                    result.set_exception(RuntimeError(f"the model failed: {type(error).__name__}"))
            return
        self._observe(len(batch), time.perf_counter() - begun)
        for row, (_, result) in enumerate(batch):
            if not result.done():  # it is, if the client has left
                result.set_result((best.probabilities[row], best.classes[row]))
