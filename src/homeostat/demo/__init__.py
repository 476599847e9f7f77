"""The demo: the whole loop over real HTTP on a year of real flights.

Takes a folder and a number of weeks; makes a project there, trains on January, starts a server,
and streams the year through it in event time with a step of the loop each week. It leaves the
project, `demo.json` and `demo.png`, and prints how the served model did beside January's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from homeostat import flights, project
from homeostat.build import load_project
from homeostat.contracts import Reporter
from homeostat.demo.result import Result, measure, plot
from homeostat.demo.server import Server
from homeostat.demo.stream import WEEK, Stream
from homeostat.demo.view import View
from homeostat.errors import HomeostatError
from homeostat.loop import Loop
from homeostat.records import Action, Decision, Evidence, Json, Outcome, Window
from homeostat.schema import Schema

DRAWN = 4  # weeks from one page of Evidently's to the next
START = datetime(2013, 2, 1, tzinfo=UTC)


class StreamClock:
    """The event time that the stream has reached."""

    def __init__(self, now: datetime) -> None:
        self.time = now

    def now(self) -> datetime:
        return self.time


class Sparing:
    """A reporter that has Evidently draw every fourth week and the last, to save a minute."""

    def __init__(self, reporter: Reporter, weeks: int) -> None:
        self._reporter = reporter
        self._left = weeks

    def evidently(
        self, reference: pa.Table, current: pa.Table, schema: Schema
    ) -> Mapping[str, Json]:
        self._left -= 1
        if self._left % DRAWN:
            return {"skipped": f"the demo draws every {DRAWN} weeks; the page is an earlier one"}
        return self._reporter.evidently(reference, current, schema)

    def status(self, evidence: Evidence) -> None:
        self._reporter.status(evidence)

    def last(self) -> Evidence | None:
        return self._reporter.last()


def run(folder: Path | None, *, weeks: int = 48) -> Result:
    """The demo in `folder`, a new one beside the caller if None. Raises HomeostatError."""
    began = time.monotonic()
    root = _folder(folder)
    view, clock = View(weeks), StreamClock(START)
    with view.live():
        view.says("reading the flights of 2013")
        stream = Stream(flights.read(), START)
        project.init(root)
        here = load_project(root)
        with here.loop(clock=clock) as whole:
            loop = whole
            if here.settings.monitor.detector != "evidently":  # whose verdict is needed each week
                loop = replace(whole, reporter=Sparing(whole.reporter, weeks))
            view.says("training on January")
            outcomes = [loop.train()]
            view.says("starting the server")
            with Server(root) as server:
                for left in reversed(range(weeks)):
                    clock.time += WEEK
                    outcomes.append(_week(stream, server, loop, view, last=not left))
            view.says("comparing with January")
            result = measure(here, outcomes, Window(START, clock.time), loop.trainer, began)
    (root / "demo.json").write_text(json.dumps(result.summary(), indent=1) + "\n")
    plot(result, root / "demo.png")
    view.closing(result, root)
    return result


def _week(stream: Stream, server: Server, loop: Loop, view: View, *, last: bool) -> Outcome:
    """Everything that departs and lands before the loop's present time, and then one step.

    After the last week nothing is served any more, so it is looked at and nothing is decided.
    """
    end = loop.clock.now()
    view.says(f"streaming the week of {end - WEEK:%d %B}")
    for batch in stream.until(end):
        server.predict(batch.rows)
        server.feedback(batch.labels)
        view.advance(len(batch.rows), len(batch.labels))
    view.says("looking, deciding")
    outcome = _over(loop.monitor(), end) if last else loop.step()
    if outcome.promoted and outcome.release:
        server.wait_for(outcome.release)
    view.week(outcome)
    return outcome


def _over(evidence: Evidence, at: datetime) -> Outcome:
    decision = Decision(Action.HOLD, "over", "The year is over.")
    return Outcome(at, decision, evidence, release=evidence.release)


def _folder(folder: Path | None) -> Path:
    if folder is None:
        folder = Path(f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HomeostatError(f"{folder} is not an empty folder.", hint="Give --out a new one.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()
