"""Requests that wait are answered together: one call of the model, one write, one sync for all.

It takes requests from an event loop, and the function that answers several of them at once. It
gives each its own result; while one group is being written, the next one gathers, so that groups
grow with the load and a lone request waits for nobody.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

import structlog

from homeostat.errors import BusyError

T = TypeVar("T")
R = TypeVar("R")

TOGETHER = 1_000  # rows after which a group is full, so that the first need not wait for the last

_log = structlog.get_logger("homeostat.group")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[T, R]):
    request: T
    rows: int
    since: float  # seconds of the monotonic clock
    future: asyncio.Future[R | Exception]


class Group(Generic[T, R]):
    """The line of one event loop. `answer` runs in one thread of its own, never twice at a time.

    No more than `max_rows` rows wait, but one request of any size; none longer than `timeout`
    seconds.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[T]], Sequence[R | Exception]],
        *,
        max_rows: int,
        timeout: float,
    ) -> None:
        self._answer = answer
        self._max_rows = max_rows
        self._timeout = timeout
        self._line: SimpleQueue[_Waiting[T, R] | None] = SimpleQueue()
        self._rows = 0
        self._oldest: float | None = None
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def rows(self) -> int:
        """How many rows wait or are being answered."""
        return self._rows

    @property
    def lag(self) -> float:
        """Since when, in seconds, the group that is being answered has been at it."""
        oldest = self._oldest
        return 0.0 if oldest is None else time.monotonic() - oldest

    async def ask(self, request: T, rows: int) -> R:
        """The result for `request`, which has so many rows.

        Raises BusyError when too many wait already, or when it waited for too long; what it asked
        for may still be done then. Raises the exception that `answer` gave as its result.
        """
        if self._rows and self._rows + rows > self._max_rows:
            raise BusyError("busy", f"{self._rows} rows wait already.")
        if self._thread is None:
            self._start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R | Exception] = loop.create_future()
        self._rows += rows
        self._line.put(_Waiting(request, rows, time.monotonic(), future))
        timer = loop.call_later(self._timeout, _expire, future)
        try:
            result = await future
        finally:
            timer.cancel()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._line.put(None)
            thread.join()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="group", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        going = True
        while going:
            together, going = self._gathered()
            if not together:
                continue
            self._oldest = together[0].since
            results: Sequence[R | Exception]
            try:
                results = self._answer([waiting.request for waiting in together])
            except Exception as error:  # noqa: BLE001 - fails closed: told to each that waits
                _log.error("group failed", error=type(error).__name__)
                results = [error] * len(together)
            self._oldest = None
            with suppress(RuntimeError):  # the loop has ended, and with it all that waited
                loop = together[0].future.get_loop()
                loop.call_soon_threadsafe(self._deliver, together, results)

    def _gathered(self) -> tuple[list[_Waiting[T, R]], bool]:
        """Those that wait, at least one; whether the thread goes on."""
        together: list[_Waiting[T, R]] = []
        rows = 0
        waiting = self._line.get()
        while waiting is not None:
            together.append(waiting)
            rows += waiting.rows
            if rows >= TOGETHER:
                return together, True
            try:
                waiting = self._line.get_nowait()
            except Empty:
                return together, True
        return together, False

    def _deliver(
        self, together: Sequence[_Waiting[T, R]], results: Sequence[R | Exception]
    ) -> None:
        for waiting, result in zip(together, results, strict=True):
            self._rows -= waiting.rows
            if not waiting.future.done():
                waiting.future.set_result(result)


def _expire(future: asyncio.Future[R | Exception]) -> None:
    if not future.done():
        future.set_result(BusyError("timeout", "the answer took too long."))
