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
from typing import Any

from homeostat import files
from homeostat.contracts import Audit
from homeostat.errors import AuditError, cause
from homeostat.past import Past, past
from homeostat.records import Candidate, Evidence, Json, utc

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
        "drifted": [column.column for column in evidence.columns if column.drifted],
        "distances": {
            column.column: [_short(column.distance), _short(column.threshold)]
            for column in evidence.columns
        },
    }


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


@dataclass(frozen=True, slots=True)
class _Read:
    """What the file held when it was last read."""

    mark: tuple[int, int, int]  # inode, bytes, modification time
    whole: int  # bytes up to the end of the last complete line
    lines: tuple[Mapping[str, Json], ...]


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
        lines, text = list(read.lines), b""
        try:
            torn = self._file.stat().st_size - read.whole if self._file.exists() else 0
            if torn:
                text += _append(lines, "repaired", at, {"bytes": torn})
            text += _append(lines, kind, at, plain)
            self._extend(read.whole, text)
            self._read = _Read(self._mark(), read.whole + len(text), tuple(lines))
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
        """All complete lines, oldest first; read again only when the file changed."""
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
        previous = GENESIS
        lines = self.lines()
        for number, line in enumerate(lines, start=1):
            if line["hash"] != _hash(line):
                raise self._broken(number, "was altered: its hash is not that of its content")
            if line["seq"] != number or line["previous"] != previous:
                raise self._broken(
                    number, f"says it is line {line['seq']}: a line was removed, inserted or moved"
                )
            previous = line["hash"]
        return len(lines)

    def _load(self) -> _Read:
        try:
            mark = self._mark()
            if self._read is None or self._read.mark != mark:
                self._read = self._parse(mark, self._file.read_bytes())
        except FileNotFoundError:
            return _Read((0, 0, 0), 0, ())
        except OSError as error:
            raise AuditError(
                f"the audit chain {self._file} cannot be read: {error.strerror}."
            ) from error
        return self._read

    def _mark(self) -> tuple[int, int, int]:
        state = self._file.stat()
        return state.st_ino, state.st_size, state.st_mtime_ns

    def _parse(self, mark: tuple[int, int, int], content: bytes) -> _Read:
        whole = content.rfind(b"\n") + 1
        lines = []
        for number, text in enumerate(content[:whole].splitlines(), start=1):
            line: Json = None
            same = False
            with suppress(ValueError, RecursionError):
                line = json.loads(text)
                same = canonical(line) == text
            if not isinstance(line, dict) or sorted(line) != sorted(_FIELDS):
                raise self._broken(number, "is not a line of an audit chain")
            if not same:
                raise self._broken(number, "was altered: it is not in canonical form")
            lines.append(line)
        return _Read(mark, whole, tuple(lines))

    def _broken(self, number: int, what: str) -> AuditError:
        return AuditError(
            f"{self._file}, line {number}, {what}.",
            hint="Restore the file from a copy; a chain is never mended by hand.",
        )


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
