"""Requests that wait are answered together: one call of the model, one write, one sync for all.

It takes requests from an event loop, and the function that answers several of them at once. It
gives each its own result. While one group is being written the next one gathers, so that groups
grow with the load, and a lone request waits for nobody.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
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
        self._rows = 0
        self._line: deque[_Waiting[T, R]] = deque()  # the event loop alone touches it
        self._idle = asyncio.Event()  # no group is being gathered or answered
        self._idle.set()
        self._since: float | None = None
        self._groups: SimpleQueue[list[_Waiting[T, R]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def rows(self) -> int:
        """How many rows wait or are being answered."""
        return self._rows

    @property
    def lag(self) -> float:
        """The age of the oldest request that is being answered, seconds."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    async def ask(self, request: T, rows: int) -> R:
        """The result for `request`, which has so many rows.

        Raises BusyError when too many wait already, or when it waited for too long; what it asked
        for may still be done then. Raises the exception that `answer` gave as its result.
        """
        if self._rows and self._rows + rows > self._max_rows:
            raise BusyError("busy", f"{self._rows} rows wait already.")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R | Exception] = loop.create_future()
        self._rows += rows
        self._line.append(_Waiting(request, rows, time.monotonic(), future))
        if self._idle.is_set():
            # All requests that the loop has read by now take their places before the group goes.
            self._idle.clear()
            loop.call_soon(self._go)
        timer = loop.call_later(self._timeout, _expire, future)
        try:
            result = await future
        finally:
            timer.cancel()
        if isinstance(result, Exception):
            raise result
        return result

    async def close(self) -> None:
        """Wait until all that waits is answered, and end the thread."""
        await self._idle.wait()
        thread, self._thread = self._thread, None
        if thread is not None:
            self._groups.put(None)
            await asyncio.to_thread(thread.join)

    def _go(self) -> None:
        """Send the next group off, as long as somebody waits."""
        together: list[_Waiting[T, R]] = []
        rows = 0
        while self._line and (not together or rows + self._line[0].rows <= TOGETHER):
            waiting = self._line.popleft()
            if waiting.future.done():  # given up: nobody would get the answer
                self._rows -= waiting.rows
                continue
            together.append(waiting)
            rows += waiting.rows
        if not together:
            self._idle.set()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="group", daemon=True)
            self._thread.start()
        self._since = together[0].since
        self._groups.put(together)

    def _work(self) -> None:
        while (together := self._groups.get()) is not None:
            results: Sequence[R | Exception]
            try:
                results = self._answer([waiting.request for waiting in together])
            except BaseException as error:  # noqa: BLE001 - fails closed: told to each that waits
                # A model may raise what ends a process; the thread and those after go on.
                _log.error("group failed", error=type(error).__name__)
                told = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
                results = [told] * len(together)
            with suppress(RuntimeError):  # the loop has ended, and with it all that waited
                loop = together[0].future.get_loop()
                loop.call_soon_threadsafe(self._deliver, together, results)

    def _deliver(
        self, together: Sequence[_Waiting[T, R]], results: Sequence[R | Exception]
    ) -> None:
        self._since = None
        for waiting, result in zip(together, results, strict=True):
            self._rows -= waiting.rows
            if not waiting.future.done():
                waiting.future.set_result(result)
        self._go()


def _expire(future: asyncio.Future[R | Exception]) -> None:
    if not future.done():
        future.set_result(BusyError("timeout", "the answer took too long."))
