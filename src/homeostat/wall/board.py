"""The board: all that the page shows, read anew where a file changed and nowhere else.

Takes a project's folder. Gives one frozen `View` at a time, and numbers of its parts, which grow
with each change; reading it again where nothing changed costs a few `stat`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from homeostat import looks
from homeostat.approval import Waiting
from homeostat.audit import START, Place, check, jsonable, since
from homeostat.autonomy import unearned
from homeostat.build import Project
from homeostat.errors import AuditError, HomeostatError, cause
from homeostat.notes import Order, orders
from homeostat.records import Json, Release
from homeostat.report import SHAPES, STATUS
from homeostat.wall import forms
from homeostat.wall.ledger import Ledger, Look, Move, Turn

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
REPLAYS = 5  # of the last that are shown
AGAIN = 10.0  # seconds after which files that could not be read are tried again
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Replay:
    """One replay's folder below `reports/`."""

    name: str
    at: float  # seconds since 1970
    rows: Sequence[Mapping[str, Json]]  # a policy each, as `replay.json` has them
    picture: bool


@dataclass(frozen=True, slots=True)
class View:
    """What the page shows."""

    looks: tuple[Look, ...] = ()  # by the end of their windows
    turns: tuple[Turn, ...] = ()  # oldest first
    moves: tuple[Move, ...] = ()
    names: tuple[str, ...] = ()  # of columns, by their place
    waiting: tuple[Waiting, ...] = ()
    pinned: str | None = None
    trained: str = ""  # when the last challenger was trained, ISO 8601
    unearned: str = ""  # why the loop may not release on its own by the mode auto
    seconds: Mapping[str, float] = field(default_factory=dict)
    champion: str = ""  # id
    releases: Mapping[str, Release] = field(default_factory=dict)  # that served or wait, by id
    status: Mapping[str, Json] = field(default_factory=dict)  # the last status file; empty: none
    shapes: Mapping[str, Json] = field(default_factory=dict)
    replays: tuple[Replay, ...] = ()  # newest first
    orders: tuple[Order, ...] = ()  # that wait for the loop
    problems: tuple[str, ...] = ()  # files that could not be read, and why

    @property
    def last(self) -> Turn | None:
        """The newest decision."""
        return next((turn for turn in reversed(self.turns) if turn.trigger != "asked"), None)

    @property
    def features(self) -> Mapping[str, Mapping[str, Json]]:
        """What the status tells of each column."""
        return dict(self.status.get("features", {}))

    @property
    def line(self) -> list[str]:
        """The champion and its predecessors by parentage, newest first."""
        found: list[str] = []
        name: str | None = self.champion or None
        while name and name in self.releases and name not in found:
            found.append(name)
            name = self.releases[name].manifest["parent"]
        return found


class Board:
    """Watches one project's files; `look` may be called from one thread at a time."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._reports = project.settings.path("reports")
        self._orders = orders(project.settings.path(".homeostat"))
        self._chain = self._reports / "decisions.jsonl"
        self._place, self._ledger = Place(), Ledger()
        self._marks: dict[str, object] = {}
        self._problems: dict[str, str] = {}
        self._again: dict[str, float] = {}  # when what failed is read again, monotonic clock
        self.view = View()
        self.numbers: dict[str, int] = {"loop": 0, "replay": 0, "orders": 0}

    def look(self) -> bool:
        """Read what changed since; whether anything did."""
        before = sum(self.numbers.values())
        parts: Mapping[str, Callable[[], View]] = {
            "chain": self._read_chain,
            "status": self._read_status,
            "orders": self._read_orders,
            "replay": self._read_replays,
        }
        for name, read in parts.items():
            mark, problem = self._mark(name), self._problems.get(name)
            if mark == self._marks.get(name, ()) and time.monotonic() < self._again.get(
                name, NEVER
            ):
                continue
            self._marks[name] = mark
            view = self._kept(name, read)
            if problem is not None and problem == self._problems.get(name):
                continue
            self.view = replace(view, problems=tuple(self._problems.values()))
            part = name if name in self.numbers else "loop"
            self.numbers[part] += 1
        return sum(self.numbers.values()) != before

    def _kept(self, name: str, read: Callable[[], View]) -> View:
        """What `read` gives, or the view as it was where the files cannot be read, and why."""
        try:
            view = read()
        except Exception as error:  # noqa: BLE001 - the page stays, and says what it cannot read
            told = f"The {name} cannot be read: {cause(error)}"
            if told != self._problems.get(name):
                LOGGER.warning("%s", told)
            self._problems[name], self._again[name] = told, time.monotonic() + AGAIN
            return self.view
        self._problems.pop(name, None)
        self._again.pop(name, None)
        return view

    def _mark(self, name: str) -> object:
        if name == "chain":
            return _stat(self._chain), self._project.releases.mark()
        if name == "status":
            return _stat(self._reports / STATUS), _stat(self._reports / SHAPES)
        if name == "orders":
            return _stat(self._project.settings.path(".homeostat", "orders"))
        return tuple(sorted((str(path), _stat(path)) for path in self._found()))

    def _read_chain(self) -> View:
        before = self._place
        self._place, lines, continued = since(self._chain, before)
        if not continued:
            self._ledger, before = Ledger(), START
            self._problems.pop("hash", None)
        ledger = self._ledger
        try:
            check(self._chain, lines, before)
        except AuditError as error:  # what it says is shown, and that it is not to be believed
            self._problems["hash"] = str(error)
        try:
            ledger.take(lines)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            number = ledger.count + 1
            self._place, self._ledger = Place(), Ledger()  # read anew with the next change
            raise HomeostatError(
                f"line {number} of the audit chain is not of a kind that is known "
                f"({type(error).__name__})."
            ) from error
        champion = self._project.releases.champion()
        served = [*dict.fromkeys(move.release for move in ledger.moves)]
        wanted = {*served, *(each.release for each in ledger.waiting)}
        return replace(
            self.view,
            looks=tuple(ledger.in_order()),
            turns=tuple(ledger.turns),
            moves=tuple(ledger.moves),
            names=tuple(ledger.names),
            waiting=ledger.waiting,
            pinned=ledger.pinned,
            trained=ledger.trained,
            unearned=unearned(self._project.settings, ledger.replays),
            seconds=dict(ledger.seconds),
            champion=champion.id if champion else "",
            releases=self._released(wanted | ({champion.id} if champion else set())),
        )

    def _released(self, names: set[str]) -> Mapping[str, Release]:
        """A manifest never changes, so each is read once; one that is gone is left out."""
        found = {name: self.view.releases[name] for name in names & self.view.releases.keys()}
        for name in names - found.keys():
            with suppress(HomeostatError):
                found[name] = self._project.releases.get(name)
        return found

    def _read_status(self) -> View:
        status, shapes = (_document(self._reports / name) for name in (STATUS, SHAPES))
        forms.check(STATUS, status)
        forms.check(SHAPES, shapes)
        return replace(self.view, status=status, shapes=shapes)

    def shapes(self, look: Look) -> Mapping[str, Json]:
        """The shapes of one look; empty where they are not kept."""
        held = looks.kept(self._reports, _moment(look.end), look.release, "shapes.json")
        with suppress(ValueError, HomeostatError):
            return {} if held is None else _parsed(held, "the look's shapes")
        return {}

    def report(self, look: Look) -> Path | None:
        """Evidently's report of one look, packed; None where it is not kept."""
        path = looks.path(self._reports, _moment(look.end), look.release, "report.html")
        return path if path.is_file() else None

    def _read_orders(self) -> View:
        found = [order for order in self._orders.found().values() if order is not None]
        return replace(self.view, orders=tuple(sorted(found, key=lambda order: order.at)))

    def _found(self) -> list[Path]:
        return [*self._reports.glob("*/replay.json"), *self._reports.glob("replays/*/replay.json")]

    def _read_replays(self) -> View:
        newest = sorted(self._found(), key=lambda path: -path.stat().st_mtime)[:REPLAYS]
        made = [
            Replay(
                path.parent.relative_to(self._reports).as_posix(),
                path.stat().st_mtime,
                _rows(path),
                (path.parent / "replay.png").is_file(),
            )
            for path in newest
        ]
        return replace(self.view, replays=tuple(made))


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _stat(path: Path) -> tuple[int, ...]:
    """What changes with the file; empty without one."""
    try:
        state = path.stat()
    except OSError:
        return ()
    return state.st_ino, state.st_size, state.st_mtime_ns


def _rows(path: Path) -> Sequence[Mapping[str, Json]]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise HomeostatError(f"{path.name} is no list of policies.")
    return list(jsonable(content))


def _document(path: Path) -> Mapping[str, Json]:
    try:
        return _parsed(path.read_bytes(), path.name)
    except FileNotFoundError:
        return {}


def _parsed(text: bytes, name: str) -> Mapping[str, Json]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise HomeostatError(f"{name} is no JSON object.")
    return dict(jsonable(content))  # without lone surrogates, which no page can hold
