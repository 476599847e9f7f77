"""Small counted facts, one JSON object per line: refused rows, and repairs of torn files.

It takes mappings with a time `at` and appends them durably; it gives them back, leaving out a
last line that a writer did not finish.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from homeostat.errors import JournalError
from homeostat.journal.disk import Disk, Lock, failed
from homeostat.records import Json, Refusal, Window, utc


class JsonLines:
    """One such file; it is its own lock."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._lock = Lock(path)

    def add(self, facts: Sequence[Mapping[str, Json]]) -> None:
        text = "".join(json.dumps(fact) + "\n" for fact in facts)
        if text:
            with self._lock.held():
                self._disk.add_line(self._path, text.encode())

    def __iter__(self) -> Iterator[Mapping[str, Json]]:
        """All facts in order; raises JournalError for a whole line that is no JSON."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise failed("read", self._path, error) from error
        for line in raw[: raw.rfind(b"\n") + 1].splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                # The remainder of a writer that died, to which a later one added the newline.
                if not line.startswith(b"{") or line.endswith(b"}"):
                    raise JournalError(
                        f"{self._path} holds a line that is no JSON.", hint="Was it edited?"
                    ) from None


def refusals(counted: Sequence[Refusal], at: datetime) -> list[dict[str, Json]]:
    """One fact for all equal refusals of a call."""
    moment = utc(at).isoformat()
    counts = Counter((refusal.code, refusal.field) for refusal in counted)
    return [
        {"at": moment, "code": code, "field": field, "count": count}
        for (code, field), count in counts.items()
    ]


def counts(facts: JsonLines, window: Window) -> dict[str, int]:
    """Refused rows that arrived in the window, by `code` or `code:column`."""
    total: Counter[str] = Counter()
    for fact in facts:
        if window.start <= datetime.fromisoformat(fact["at"]) < window.end:
            key = fact["code"] if fact["field"] is None else f"{fact['code']}:{fact['field']}"
            total[key] += fact["count"]
    return dict(total)
