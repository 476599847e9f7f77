"""The audit chain: one line of canonical JSON for everything that happened, each hashing the last.

It takes a kind, a time and a body of plain values, and appends them to one file which the loop
alone writes. It gives back the lines, what a decision must know of the past, and a walk over the
chain that names the first line that was altered, removed, inserted or moved.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

from homeostat import files
from homeostat.contracts import Audit
from homeostat.errors import AuditError, cause
from homeostat.past import Past, past
from homeostat.records import Candidate, Evidence, Interval, Json, Performance, utc

GENESIS = "0" * 64
"""What the first line names as the hash of the line before it."""

_FIELDS = ("seq", "at", "kind", "body", "previous", "hash")


def canonical(value: Json) -> bytes:
    """The one UTF-8 form of a JSON value: keys sorted, no spaces; NaN raises ValueError."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def jsonable(value: Any) -> Json:
    """`value` as JSON holds it.

    Dataclasses become objects, enums their value, times ISO 8601 in UTC, lengths of time seconds,
    NumPy scalars and arrays plain numbers and lists, sets sorted lists, lone surrogates question
    marks, and what is not finite null. Raises TypeError for anything else, naming its type, and
    ValueError for a naive time.
    """
    if isinstance(value, Enum):
        return jsonable(value.value)
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    return _compound(value)


def _compound(value: Any) -> Json:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(jsonable(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(jsonable(item) for item in value)
    if type(value).__module__ == "numpy":  # known by name, so that NumPy need not be imported
        return jsonable(value.tolist())
    return _time_like(value)


def _time_like(value: Any) -> Json:
    if isinstance(value, datetime):
        return utc(value).isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"a {type(value).__name__} has no form in JSON; convert it first.")


def looked(evidence: Evidence) -> dict[str, Json]:
    """What the chain keeps of a look at a window."""
    return {
        "state": evidence.state.value,
        "data_drift": evidence.data_drift,
        "hurts": evidence.hurts.value,
        "reason": evidence.reason,
        "rows": evidence.rows,
        "labelled": evidence.labelled,
        "release": evidence.release,
        "window": jsonable(evidence.window),
        "history": evidence.history,
        **({"staleness": jsonable(evidence.staleness)} if evidence.staleness else {}),
        **({"performance": _performed(evidence.performance)} if evidence.performance else {}),
        "drifted": [column.column for column in evidence.columns if column.drifted],
        "distances": {
            column.column: [_short(column.distance), _short(column.threshold)]
            for column in evidence.columns
        },
    }


FIGURES = ("realised", "estimated", "baseline", "first_release")
"""Intervals of the performance that the chain keeps, each as [value, low, high, rows]."""


def _performed(told: Performance) -> dict[str, Json]:
    found: dict[str, Json] = {"metric": told.metric, "lag_days": told.lag_days}
    found["greater_is_better"] = told.greater_is_better
    for name in FIGURES:
        one: Interval | None = getattr(told, name)
        if one is not None:
            ends = [None if end is None else _short(end) for end in (one.low, one.high)]
            found[name] = [_short(one.value), *ends, one.rows]
    return found


def _short(number: float) -> float:
    """Four significant digits, enough to draw."""
    return float(f"{number:.4g}")


def fitted(candidate: Candidate) -> dict[str, Json]:
    """What the chain keeps of a fit."""
    return {
        "kind": candidate.kind,
        "parent": candidate.parent,
        "seconds": candidate.seconds,
        "seed": candidate.seed,
        "training": jsonable(candidate.training),
        **({"calibration": jsonable(candidate.calibration)} if candidate.calibration else {}),
        **({"members": len(candidate.members)} if len(candidate.members) > 1 else {}),
        **({"left_out": list(candidate.left_out)} if candidate.left_out else {}),
    }


def attempted(audit: Audit, chore: str, now: datetime, do: Callable[[datetime], object]) -> None:
    """Do what a turn's outcome does not depend on; a failure is recorded and goes no further."""
    try:
        do(now)
    except Exception as error:  # noqa: BLE001 - fails closed: nothing was done, and why
        audit.write(f"{chore}_failed", now, {"reason": cause(error)})


def _hash(line: Mapping[str, Json]) -> str:
    rest = {name: value for name, value in line.items() if name != "hash"}
    return hashlib.sha256(canonical(rest)).hexdigest()


Line: TypeAlias = Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Place:
    """How far a chain was read; the default is before its first line."""

    mark: tuple[int, int, int] = (0, 0, 0)  # inode, bytes, modification time of the file
    whole: int = 0  # bytes up to the end of the last complete line
    count: int = 0  # lines up to there
    hash: str = GENESIS  # of the last of them


START = Place()


def since(file: Path, place: Place) -> tuple[Place, list[Line], bool]:
    """The lines that came after `place`, the new place, and whether all before still stands.

    Where the file was replaced, cut or rewritten the last is False and all lines are given. Costs
    one `stat` where nothing changed. Raises AuditError for what is no chain or cannot be read.
    """
    try:
        state = file.stat()
        mark = (state.st_ino, state.st_size, state.st_mtime_ns)
        if mark == place.mark:
            return place, [], True
        if place.count and mark[0] == place.mark[0] and mark[1] > place.whole:
            more = _more(file, mark, place)
            if more is not None:
                return (*more, True)
        lines, read = _parsed(file, file.read_bytes(), 0)
    except FileNotFoundError:
        return Place(), [], not place.count
    except OSError as error:
        raise AuditError(f"the audit chain {file} cannot be read: {error.strerror}.") from error
    return _placed(mark, Place(), lines, read), lines, not place.count


def check(file: Path, lines: Sequence[Line], before: Place = START) -> None:
    """Raise AuditError naming the first of these lines whose hash, number or link is wrong; they
    follow `before`.
    """
    previous = before.hash
    for number, line in enumerate(lines, start=before.count + 1):
        if line["hash"] != _hash(line):
            raise _broken(file, number, "was altered: its hash is not that of its content")
        if line["seq"] != number or line["previous"] != previous:
            what = f"says it is line {line['seq']}: a line was removed, inserted or moved"
            raise _broken(file, number, what)
        previous = line["hash"]


def _more(file: Path, mark: tuple[int, int, int], place: Place) -> tuple[Place, list[Line]] | None:
    """What follows `place`; None where it does not continue that chain, so that all is read."""
    with file.open("rb") as opened:
        opened.seek(place.whole)
        content = opened.read()
    try:
        lines, read = _parsed(file, content, place.count)
    except AuditError:  # the whole says what is wrong, and where
        return None
    if lines and lines[0]["previous"] != place.hash:
        return None
    return _placed(mark, place, lines, read), lines


def _placed(mark: tuple[int, int, int], before: Place, lines: Sequence[Line], read: int) -> Place:
    last = lines[-1]["hash"] if lines else before.hash
    return Place(mark, before.whole + read, before.count + len(lines), last)


def _parsed(file: Path, content: bytes, before: int) -> tuple[list[Line], int]:
    """The complete lines of `content`, which follow `before` others, and their bytes."""
    whole = content.rfind(b"\n") + 1
    lines: list[Line] = []
    for number, text in enumerate(content[:whole].splitlines(), start=before + 1):
        line: Json = None
        same = False
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            same = canonical(line) == text
        if not isinstance(line, dict) or sorted(line) != sorted(_FIELDS):
            raise _broken(file, number, "is not a line of an audit chain")
        if not same:
            raise _broken(file, number, "was altered: it is not in canonical form")
        lines.append(line)
    return lines, whole


def _broken(file: Path, number: int, what: str) -> AuditError:
    return AuditError(
        f"{file}, line {number}, {what}.",
        hint="Restore the file from a copy; a chain is never mended by hand.",
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """What the file held when it was last read."""

    place: Place
    lines: tuple[Line, ...]


class ChainAudit:
    """The audit chain in one JSON-lines file; implements `contracts.Audit`.

    `lines`, `past` and `write` raise AuditError for a complete line that is no line of a chain;
    only `verify` recomputes the hashes. A torn last line, left by a crash, is ignored in reading
    and cut by the next write, which records the cut as a line of kind `repaired`.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read: _Read | None = None

    def write(self, kind: str, at: datetime, body: Mapping[str, Json]) -> None:
        """Append one line; it is on disk when this returns. Raises AuditError otherwise."""
        plain = jsonable(body)
        read = self._load()
        lines, text, whole = list(read.lines), b"", read.place.whole
        try:
            torn = self._file.stat().st_size - whole if self._file.exists() else 0
            if torn:
                text += _append(lines, "repaired", at, {"bytes": torn})
            text += _append(lines, kind, at, plain)
            self._extend(whole, text)
            place = Place(self._mark(), whole + len(text), len(lines), lines[-1]["hash"])
            self._read = _Read(place, tuple(lines))
        except OSError as error:
            raise AuditError(
                f"the audit chain {self._file} cannot be written: {error.strerror}.",
                hint="Free disk space or mend the permissions; nothing was recorded.",
            ) from error

    def _extend(self, whole: int, text: bytes) -> None:
        """Put `text` behind the first `whole` bytes, durably; on failure cut it off again."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        new = not self._file.exists()
        with self._file.open("ab", buffering=0) as file:
            file.truncate(whole)
            try:
                while text:
                    text = text[file.write(text) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(whole)
                raise
        if new:
            files.sync(self._file.parent)

    def lines(self) -> Sequence[Mapping[str, Json]]:
        """All complete lines, oldest first; what came since is read, and no more."""
        return self._load().lines

    def past(self) -> Past:
        """What a decision must know, see `past.past`."""
        return past(self.lines())

    def verify(self) -> int:
        """Walk the chain and return its number of lines.

        Raises AuditError naming the first line whose hash, number or link is wrong. The newest
        lines cut off whole leave a shorter chain that is valid: compare its last hash with one
        kept elsewhere.
        """
        self._read = None
        lines = self.lines()
        check(self._file, lines)
        return len(lines)

    def _load(self) -> _Read:
        """Whole in a local value: a reader of another thread may set the attribute meanwhile."""
        known = self._read or _Read(Place(), ())
        place, lines, continued = since(self._file, known.place)
        if continued and not lines and place == known.place:
            return known
        read = _Read(place, (*known.lines, *lines) if continued else tuple(lines))
        self._read = read
        return read

    def _mark(self) -> tuple[int, int, int]:
        state = self._file.stat()
        return state.st_ino, state.st_size, state.st_mtime_ns


def _append(
    lines: list[Mapping[str, Json]], kind: str, at: datetime, body: Mapping[str, Json]
) -> bytes:
    """Add the next line of the chain to `lines`; its bytes."""
    line = {
        "seq": len(lines) + 1,
        "at": utc(at).isoformat(),
        "kind": kind,
        "body": body,
        "previous": lines[-1]["hash"] if lines else GENESIS,
    }
    line["hash"] = _hash(line)
    lines.append(line)
    return canonical(line) + b"\n"
