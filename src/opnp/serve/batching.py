"""Inputs of many requests, run by the model together: one batch at a time, on one thread."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from opnp.serve.limits import Refusal

__all__ = ["Batcher"]

_Input = TypeVar("_Input")
_Output = TypeVar("_Output")

_RETRY_SECONDS = 1


@dataclass(frozen=True, eq=False, slots=True)
class _Waiting(Generic[_Input, _Output]):
    """An input with the promise of its output."""

    content: _Input
    output: "asyncio.Future[_Output]"


class Batcher(Generic[_Input, _Output]):
    """Collects inputs into batches, in the order in which they come, and gives each its own output.

    A batch is run when it is full, when no request is being decoded that could still join it, or when its first input
    has waited long enough. All methods but `run` itself are called on one event loop.

    Args:
        run: From inputs to outputs, in their order; an exception in the place of an output is raised where that output
            is waited for. It is called on a thread of its own, never twice at a time.
        max_batch: Inputs a batch.
        max_wait: Seconds that a batch waits for requests that are being decoded.
        max_requests: Requests in work at once.
        observe: Called with the size of each batch that was run.

    """

    def __init__(
        self,
        run: Callable[[Sequence[_Input]], Sequence[_Output | Exception]],
        *,
        max_batch: int,
        max_wait: float,
        max_requests: int,
        observe: Callable[[int], object] | None = None,
    ) -> None:
        """Keep the arguments."""
        self._run = run
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_requests = max_requests
        self._observe = observe
        self._waiting: deque[_Waiting[_Input, _Output]] = deque()
        self._changed = asyncio.Event()
        self._requests = 0
        self._preparing = 0
        self._is_closing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether inputs are being taken."""
        return self._task is not None and not self._task.done() and not self._is_closing

    @property
    def requests(self) -> int:
        """Requests in work."""
        return self._requests

    async def __aenter__(self) -> "Batcher[_Input, _Output]":
        """Start to take inputs."""
        self._changed = asyncio.Event()  # of the loop that runs now
        self._is_closing = False
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give every output that is waited for, then stop."""
        self._is_closing = True
        self._changed.set()
        if self._task is not None:
            await self._task

    @contextmanager
    def request(self) -> Iterator["Request[_Input, _Output]"]:
        """Hold a place for a request, from when its body is there until it is answered.

        Raises:
            Refusal: With 503, if there is no place, or the service is stopping.

        """
        self.require_place()
        self._requests += 1
        self._preparing += 1
        place = Request(self)
        try:
            yield place
        finally:
            self._requests -= 1
            place.prepared()

    def require_place(self) -> None:
        """Raise if no request can be taken into work now.

        Raises:
            Refusal: With 503, if there is no place, or the service is stopping.

        """
        if self._requests >= self._max_requests or not self.is_ready:
            raise Refusal(
                503,
                "the service is stopping" if self._is_closing else f"{self._requests} requests are in work: come back",
                headers={"Retry-After": str(_RETRY_SECONDS)},
            )

    def put(self, contents: Sequence[_Input]) -> "list[asyncio.Future[_Output]]":
        """Append inputs to those that wait; return the promises of their outputs."""
        loop = asyncio.get_running_loop()
        entries: list[_Waiting[_Input, _Output]] = [_Waiting(content, loop.create_future()) for content in contents]
        self._waiting.extend(entries)
        self._changed.set()
        return [entry.output for entry in entries]

    def one_less(self) -> None:
        """Count a request as decoded."""
        self._preparing -= 1
        self._changed.set()

    async def _work(self) -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="opnp-model") as thread:
            while self._waiting or not self._is_closing:
                await self._gathered()
                size = min(self._max_batch, len(self._waiting))
                taken = [self._waiting.popleft() for _ in range(size)]
                batch = [entry for entry in taken if not entry.output.done()]
                if batch:
                    await self._answer(batch, thread)

    async def _gathered(self) -> None:
        """Wait until a batch is to be run, or the end has come."""
        while not self._waiting and not self._is_closing:
            self._changed.clear()
            await self._changed.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._max_wait):
                while len(self._waiting) < self._max_batch and self._preparing > 0 and not self._is_closing:
                    self._changed.clear()
                    await self._changed.wait()

    async def _answer(self, batch: Sequence[_Waiting[_Input, _Output]], thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        outputs: Sequence[_Output | Exception]
        try:
            outputs = await loop.run_in_executor(thread, self._run, [entry.content for entry in batch])
        except Exception as error:  # noqa: BLE001  # those who wait are told; the next batch is run all the same
            outputs = [error] * len(batch)
        if self._observe is not None:
            self._observe(len(batch))
        for entry, output in zip(batch, outputs, strict=True):
            if entry.output.done():  # who waited has gone
                continue
            if isinstance(output, Exception):
                entry.output.set_exception(output)
            else:
                entry.output.set_result(output)


class Request(Generic[_Input, _Output]):
    """The place of one request in a batcher."""

    def __init__(self, batcher: Batcher[_Input, _Output]) -> None:
        """Keep the batcher."""
        self._batcher = batcher
        self._is_preparing = True

    async def outputs(self, contents: Sequence[_Input]) -> list[_Output]:
        """Return the outputs of inputs, in their order.

        Raises:
            Exception: What came in the place of the first output that is one.

        """
        promises = self._batcher.put(contents)
        self.prepared()
        found = await asyncio.gather(*promises, return_exceptions=True)
        outputs: list[_Output] = []
        for output in found:
            if isinstance(output, BaseException):
                raise output
            outputs.append(output)
        return outputs

    def prepared(self) -> None:
        """Count the request as decoded, once."""
        if self._is_preparing:
            self._is_preparing = False
            self._batcher.one_less()
