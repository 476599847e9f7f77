"""Small counted facts, one JSON object per line: refused rows, portions sealed, erasures, repairs.

It takes mappings and appends them durably; it gives them back one by one, leaving out a line that
a writer did not finish. Facts that are only ever summed can be folded into fewer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from homeostat.entries import Refusal
from homeostat.errors import JournalError
from homeostat.journal.disk import Disk, Lock, failed, lines_end
from homeostat.records import Json, Window, utc

LARGE = 1 << 20  # bytes; a file that is larger is folded
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')

Fact: TypeAlias = Mapping[str, Json]


class JsonLines:
    """One such file; it is its own lock."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._lock = Lock(path)

    def add(self, facts: Sequence[Fact]) -> None:
        """Append facts, durably. Raises JournalError."""
        if facts:
            with self._lock.held():
                self._disk.add_line(self._path, _lines(facts))

    def fold(self, folded: Callable[[Iterator[Fact]], Iterable[Fact]]) -> None:
        """Once the file is large, put what `folded` makes of its facts in their place.

        Killed at any point, the file is as it was or as it is meant to be. Raises JournalError.
        """
        if self._size() <= LARGE:
            return
        with self._lock.held():
            self._disk.replace(self._path, _lines(folded(self._facts(self._whole()))))

    def __iter__(self) -> Iterator[Fact]:
        """All facts in order, those of this moment; raises JournalError for a whole line that is
        no JSON object.
        """
        # What stands before the end of the last whole line is never written again.
        with self._lock.held(shared=True):
            whole = self._whole()
        yield from self._facts(whole)

    # --- inside ---

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise failed("read", self._path, error) from error

    def _whole(self) -> Iterator[bytes]:
        """The whole lines of the file as it is now, which is opened at once and read by and by."""
        with ExitStack() as stack:
            try:
                file = stack.enter_context(self._path.open("rb"))
                end = lines_end(file.fileno())
            except FileNotFoundError:
                return iter(())
            except OSError as error:
                raise failed("read", self._path, error) from error
            opened = stack.pop_all()

        def lines() -> Iterator[bytes]:
            with opened:
                while file.tell() < end:
                    yield file.readline()

        return lines()

    def _facts(self, lines: Iterator[bytes]) -> Iterator[Fact]:
        try:
            for line in lines:
                fact = _fact(line)
                if fact is not None:
                    yield fact
                elif not _torn(line):
                    raise JournalError(
                        f"{self._path} holds a line that is no JSON object.", hint="Was it edited?"
                    )
        except OSError as error:
            raise failed("read", self._path, error) from error


def refusals(counted: Sequence[Refusal], at: datetime) -> list[Fact]:
    """One fact for all equal refusals of a call."""
    moment = utc(at).isoformat()
    counts = Counter((refusal.code, refusal.field) for refusal in counted)
    return [
        {"at": moment, "code": code, "field": field, "count": count}
        for (code, field), count in counts.items()
    ]


def summed(facts: Iterable[Fact], now: datetime) -> list[Fact]:
    """Refusals summed: by the minute those of more than an hour ago, by the hour those of more
    than a day ago. A sum has the time at which its minute or hour, of UTC, begins.
    """
    total: Counter[tuple[str, str, str | None]] = Counter()
    for fact in facts:
        at = utc(datetime.fromisoformat(fact["at"]))
        if at < now - HOUR:
            at = at.replace(second=0, microsecond=0)
        if at < now - DAY:
            at = at.replace(minute=0)
        total[at.isoformat(), fact["code"], fact["field"]] += fact["count"]
    return [
        {"at": at, "code": code, "field": field, "count": count}
        for (at, code, field), count in total.items()
    ]


def counts(facts: Iterable[Fact], window: Window) -> dict[str, int]:
    """Refused rows that arrived in the window, by `code` or `code:column`."""
    total: Counter[str] = Counter()
    for fact in facts:
        if window.start <= datetime.fromisoformat(fact["at"]) < window.end:
            key = fact["code"] if fact["field"] is None else f"{fact['code']}:{fact['field']}"
            total[key] += fact["count"]
    return dict(total)


def _lines(facts: Iterable[Fact]) -> bytes:
    return "".join(json.dumps(fact) + "\n" for fact in facts).encode()


def _fact(line: bytes) -> Fact | None:
    try:
        fact = json.loads(line)
    except ValueError:
        return None
    return fact if isinstance(fact, dict) else None


def _torn(line: bytes) -> bool:
    """Whether a line is the beginning of an object that was never closed: an earlier version left
    what a dead writer had written, and began a new line behind it.
    """
    rest = _TEXT.sub(b"", line)
    return line.startswith(b"{") and (b'"' in rest or rest.count(b"{") > rest.count(b"}"))
