"""The ledger: what the audit chain's lines come to, for people's eyes, line by line as they come.

Takes lines in their order. Gives looks, turns and moves; of each look the distances are kept as
numbers, so that three years of days and hundreds of columns take some megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from homeostat import approval
from homeostat.approval import Waiting
from homeostat.autonomy import REPLAYED
from homeostat.past import MOVES, PINS, PROBATION, TRAININGS
from homeostat.records import Json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

Line: TypeAlias = Mapping[str, Json]

OPENS = PINS | {
    *("decided", "first", "adopted", "approved", "rolled_back", "order_refused", "recovered"),
    REPLAYED,
}
"""Kinds of line that people see as an entry of their own, unless they belong to one before."""

EARLY = frozenset({"probation", "probation_failed", "beside_failed", "quarantined"})
"""Kinds of line of a look, which come before the decision on it."""

UNTESTED, BROKEN = 255, 254
STEPS = 60
"""A distance of as many steps is the threshold; more than 253 of them are drawn as 253."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a window."""

    seq: int  # number of its line in the chain
    at: str  # when, ISO 8601 in UTC, as all times here
    start: str  # of the window
    end: str
    release: str
    state: str
    hurts: str
    reason: str
    rows: int
    labelled: int
    figures: Mapping[str, Json] | None  # `audit.looked`: intervals as [value, low, high, rows]
    drifted: tuple[str, ...]
    columns: NDArray[np.int32]  # places of the tested columns in `Ledger.names`
    numbers: Floats  # (2, columns): distance and threshold


@dataclass(frozen=True, slots=True)
class Turn:
    """One decision, or one thing that people asked for, and what came of it."""

    seq: int
    at: str
    action: str  # of the decision; else the kind of line
    trigger: str
    reason: str
    numbers: Mapping[str, Json]
    look: Look | None
    by: str = ""
    came: tuple[tuple[str, str], ...] = ()  # kind of line and a sentence
    release: str = ""  # that serves, or waits, because of it
    spent: float = 0.0  # seconds of fits

    @property
    def text(self) -> str:
        """What a search looks through."""
        held = (self.action, self.trigger, self.reason, self.by, self.release, self.at)
        about = self.look and (self.look.state, self.look.hurts, self.look.release)
        return " ".join([*held, *(about or ()), *(text for _, text in self.came)]).casefold()


@dataclass(frozen=True, slots=True)
class Move:
    """A change of the release that serves."""

    at: str
    kind: str  # promoted, rolled_back or recovered
    release: str
    by: str


@dataclass
class Ledger:
    """Lines taken so far; the lists only grow, and what they hold is frozen."""

    names: dict[str, int] = field(default_factory=dict)  # column → place
    looks: dict[tuple[str, str], Look] = field(default_factory=dict)  # by end and release
    turns: list[Turn] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # of the fits behind a release
    pinned: str | None = None  # by whom
    replays: list[Line] = field(default_factory=list)  # of the project's own rules
    trained: str = ""  # when the last challenger was trained
    count: int = 0
    _waiting: list[Line] = field(default_factory=list)
    _open: bool = False  # whether lines belong to the last turn
    _early: tuple[tuple[str, str], ...] = ()  # what stands before the decision it belongs to

    def take(self, lines: Iterable[Line]) -> None:
        """Lines that follow those taken so far; raises KeyError or TypeError for what is none."""
        for line in lines:
            self._take(line)
            self.count += 1

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """What waits for an approval."""
        return approval.waiting(self._waiting)

    def in_order(self) -> list[Look]:
        """Looks by the end of their windows; of several at one window for one release the last."""
        return sorted(self.looks.values(), key=lambda look: (look.end, look.seq))

    def _take(self, line: Line) -> None:
        kind, body = line["kind"], line["body"]
        look = None
        if kind == "monitored":
            self._look(line, body)
            self._open, self._early = False, ()
            return
        if kind == "decided" and body.get("evidence"):
            look = self._look(line, body["evidence"])
        self._stands(kind, line)
        if kind in EARLY:
            self._early += ((kind, _sentence(kind, body)),)
            return
        own = kind in OPENS and not (self._open and _follows(kind, body))
        if own:
            self.turns.append(replace(_turn(line, look), came=self._early))
            self._open, self._early = True, ()
        elif self._open:
            self.turns[-1] = _further(self.turns[-1], kind, body)
        if kind in MOVES or kind == approval.WAITING:
            self._moved(kind, line)
        if kind in {"rolled_back", "approved", "order_refused", REPLAYED} | PINS and own:
            self._open = kind == "approved"

    def _stands(self, kind: str, line: Line) -> None:
        """What holds from this line on."""
        if kind in MOVES or kind == approval.WAITING:
            self._waiting.append(line)
        elif kind == REPLAYED:
            self.replays.append(line)
        elif kind in TRAININGS:
            self.trained = line["at"]
        elif kind in PINS:
            self.pinned = line["body"]["by"] if kind == "pinned" else None

    def _moved(self, kind: str, line: Line) -> None:
        release = line["body"]["release"]
        if kind != approval.WAITING:
            approved = self._open and self.turns[-1].action == "approved"
            by = line["body"].get("by") or (self.turns[-1].by if approved else "")
            self.moves.append(Move(line["at"], kind, release, by))
        if self._open and kind != "rolled_back":
            self.turns[-1] = replace(self.turns[-1], release=release)
            if self.turns[-1].spent:
                self.seconds[release] = self.turns[-1].spent

    def _look(self, line: Line, body: Mapping[str, Json]) -> Look:
        window: Mapping[str, str] = body.get("window") or {}
        told: Mapping[str, Json] = body.get("distances") or {}
        places = [self.names.setdefault(name, len(self.names)) for name in told]
        numbers = np.array([*told.values()], dtype=np.float32).reshape(len(told), 2).T
        look = Look(
            line["seq"],
            line["at"],
            window.get("start", line["at"]),
            window.get("end", line["at"]),
            body.get("release", ""),
            body["state"],
            body["hurts"],
            body["reason"],
            body.get("rows", 0),
            body.get("labelled", 0),
            body.get("performance"),
            tuple(body.get("drifted", ())),
            np.array(places, dtype=np.int32),
            numbers,
        )
        self.looks[look.end, look.release] = look
        return look


def _follows(kind: str, body: Mapping[str, Json]) -> bool:
    """Whether a move is what an open turn came to, and not what people asked for after it."""
    return kind == "recovered" or (kind == "rolled_back" and body.get("by") == PROBATION)


def _turn(line: Line, look: Look | None) -> Turn:
    kind, body = line["kind"], line["body"]
    if kind == "decided":
        told = body["decision"]
        action, trigger, reason = told["action"], told["trigger"], told["reason"]
        numbers = told.get("numbers") or {}
        return Turn(line["seq"], line["at"], action, trigger, reason, numbers, look)
    reason = body.get("reason") or _sentence(kind, body) or kind
    by, spent = body.get("by", ""), body.get("seconds", 0.0)
    release = body.get("release", "")
    return Turn(line["seq"], line["at"], kind, "asked", reason, {}, look, by, (), release, spent)


def _further(turn: Turn, kind: str, body: Mapping[str, Json]) -> Turn:
    told = _sentence(kind, body)
    came = ((kind, told),) if told else ()
    return replace(turn, came=turn.came + came, spent=turn.spent + (body.get("seconds") or 0.0))


def _sentence(kind: str, body: Mapping[str, Json]) -> str:
    """What a line says that follows a decision; empty for one that people need not read."""
    short = str(body.get("release", ""))[:12]
    if kind in ("gate", "calibration_gate"):
        word = "lets it pass" if body.get("promote") else "refuses it"
        return f"The gate {word}: {body.get('reason', '')}"
    if "training" in body and "seconds" in body:
        learned = body.get("calibration") or body["training"]  # a map has rows of its own
        what = "Fitted again, on" if kind == "refitted" else "Fitted on"
        return f"{what} {learned['rows']:,} rows in {body['seconds']:.1f} s."
    said = {
        "promoted": f"Release {short} serves.",
        "recovered": f"Release {short} serves; a turn was killed before it could say so.",
        "rolled_back": f"Release {short} serves again.",
        "waiting": f"Release {short} waits for approval.",
        "approved": f"Release {short} was approved.",
        "pinned": f"Release {short} stays until it is unpinned.",
        "unpinned": "The champion may change again.",
    }
    return said.get(kind) or str(body.get("reason", ""))


def ratios(looks: Iterable[Look], names: Sequence[str]) -> NDArray[np.uint8]:
    """Distance ÷ threshold in steps, shape (names, looks); `UNTESTED` where nothing was told.

    Beyond `STEPS` lie the columns that the look calls drifted, and no other: it may have its word
    from elsewhere than the distance.
    """
    found, row = [*looks], {name: at for at, name in enumerate(names)}
    grid = np.full((len(names), len(found)), UNTESTED, dtype=np.uint8)
    for place, look in enumerate(found):
        distance, threshold = look.numbers
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.where(
                threshold > 0, STEPS * distance / threshold, (distance > 0) * 2 * STEPS
            )
        whole = np.clip(np.nan_to_num(np.rint(steps)), 0, BROKEN - 1)
        drifted = np.isin(look.columns, [row[name] for name in look.drifted if name in row])
        beside = np.where(drifted, np.maximum(whole, STEPS + 1), np.minimum(whole, STEPS))
        grid[look.columns, place] = beside
    return grid
