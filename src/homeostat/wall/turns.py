"""Turns: the loop on its schedule, and between two steps what people ask for.

Takes a project and how its lock is taken. Gives, for the page, what the loop does at the moment; an
order waits no longer than for the turn that runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from homeostat.contracts import Clock
from homeostat.errors import HomeostatError
from homeostat.loop import Loop
from homeostat.notes import Notes, Order
from homeostat.orders import carry_out
from homeostat.records import Outcome

LONGEST = 86_400.0  # seconds that a thread can be told to wait at once, and more
AGAIN = 1.0  # seconds after which orders are tried again that another process keeps waiting


@dataclass(frozen=True, slots=True)
class Doing:
    """What the loop does."""

    what: str = ""  # "step" or "orders"; empty: it waits
    since: datetime | None = None
    next: datetime | None = None  # when it steps again
    problem: str = ""  # why the last turn did not come about


class Turns:
    """Steps and orders one after the other, in the thread that calls `run`."""

    def __init__(
        self,
        loop: Callable[[], AbstractContextManager[Loop]],
        orders: Notes[Order],
        clock: Clock,
        every: timedelta,
    ) -> None:
        self._loop = loop
        self._orders = orders
        self.clock = clock
        self._every = every
        self._wake = threading.Event()
        self._stop = threading.Event()
        self.doing = Doing()

    def wake(self) -> None:
        """An order waits; for any thread."""
        self._wake.set()

    def stop(self) -> None:
        """No further turn; for any thread and for signals."""
        self._stop.set()
        self._wake.set()

    def run(
        self,
        report: Callable[[Outcome], None],
        problem: Callable[[HomeostatError], None],
        waits: Callable[[timedelta], None],
    ) -> None:
        """Step at once and then on the schedule, until stopped; orders go before a step, so that
        none of them waits behind two, however long these take. Tells of each outcome, of each step
        that did not come about, and how long it waits for the next one.
        """
        due = self.clock.now()
        while not self._stop.is_set():
            if self._orders.found():
                self._turn("orders", lambda loop: carry_out(loop, self._orders), problem)
            if self.clock.now() >= due and not self._stop.is_set():
                due = self.clock.now() + self._every
                self._turn("step", lambda loop: report(loop.step()), problem)
                self.doing = Doing(next=due, problem=self.doing.problem)
                waits(self._every)
            left = (due - self.clock.now()).total_seconds()
            rest = min(left, AGAIN) if self._orders.found() else left
            self._wake.wait(max(0.0, min(rest, LONGEST)))
            self._wake.clear()

    def _turn(
        self, what: str, do: Callable[[Loop], object], problem: Callable[[HomeostatError], None]
    ) -> None:
        self.doing = replace(self.doing, what=what, since=self.clock.now())
        try:
            with self._loop() as loop:
                do(loop)
            told = ""
        except HomeostatError as error:
            told = str(error)
            if what == "step":
                problem(error)
        self.doing = replace(self.doing, what="", since=None, problem=told)
