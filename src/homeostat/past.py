"""The past, as a decision must know it: what the audit chain's lines come to.

Takes the lines, oldest first, of any store of them. Gives one `Past`; the fields that only the
champion's manifest knows stay empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from homeostat.records import Action, Json, State, Window

TRAININGS = frozenset({"trained", "training_failed"})
"""Kinds of line that count as a training: a failed fit cools down like one that came through. The
very first release sets no cool-down off, so its kind `first` does not count."""

MOVES = frozenset({"promoted", "rolled_back", "recovered"})
"""Kinds of line after which another release serves."""

FIRST = frozenset({"first", "adopted"})
"""Kinds of line of the first release."""
RECORD = "calibration_record"
"""The kind of line that keeps what each candidate for a map would have cost in one window."""

UNMAPPED = "none"
"""The name in that record of answers without a map."""

PINS = frozenset({"pinned", "unpinned"})
"""Kinds of line after which the champion stays whatever comes, or may change again."""

PROBATION = "probation"
"""The kind of line that keeps a look of the probation; and who went back, in a line of kind
`rolled_back`, where it was the loop itself."""

PAID = 0.9
"""The p-value of being worse, in the last look of a promotion's probation, from which on its model
has paid: with a confidence of 90 % it is better than the model that it replaced, both bare."""


@dataclass(frozen=True, slots=True)
class Look:
    """One test of the gate, on rows of its own."""

    at: datetime
    level: float  # the chance of promoting harm that it could take
    promoted: bool


@dataclass(frozen=True, slots=True)
class Past:
    """What the decision must know of earlier decisions; read from the audit chain."""

    last_training: datetime | None = None  # when the last challenger trained, promoted or not
    looked_until: datetime | None = None  # end of the newest rows that a gate has used
    trained_rows: int = 0  # labelled rows that the champion was trained on
    looks: tuple[Look, ...] = ()  # of the gate, in order of time
    mapped_until: datetime | None = None  # end of the newest rows that judged a recalibration
    trained_at: datetime | None = None  # when the champion's model was trained
    trainings: tuple[datetime, ...] = ()  # of every challenger, as `last_training`
    refused: Mapping[str, int] = field(default_factory=dict)  # challengers that the gate refused in
    # a row, by what had set them off, since a promotion
    drifted: tuple[Window, ...] = ()  # that drifted in a row up to the last look, newest first
    probes: tuple[int, int] = (0, 0)  # how often the twins' word agreed with the gate's, and of how
    # many; see `past`
    rolled_back: datetime | None = None  # when the loop last went back from a worse model
    undone: tuple[str, ...] = ()  # releases, or those that brought the models, that it left
    unmended: int = 0  # maps in a row that were tried for harm, and that the gate refused
    began: datetime | None = None  # when the first release was made
    history: int = 0  # labelled rows when the last challenger was trained
    paid: bool = (
        False  # the last model that was promoted was shown to be better than the one before
    )
    unpaid: int = 0  # trainings in a row up to the last one at which no promotion had paid
    recorded_until: datetime | None = None  # end of the newest window in the record of maps
    maps: Mapping[str, float] = field(default_factory=dict)  # mean loss of each candidate of that
    # record less that of bare answers on the same rows; below 0: better
    pinned: str | None = None  # who bade that the champion stay; None: nobody


def past(lines: Sequence[Mapping[str, Json]]) -> Past:
    """What these lines come to; a line tells nothing by a field that it lacks."""
    walk = _Walk()
    for line in lines:
        walk.take(line["kind"], datetime.fromisoformat(line["at"]), line["body"])
    return Past(
        last_training=walk.trainings[-1] if walk.trainings else None,
        looked_until=walk.ends.get("gate"),
        mapped_until=walk.ends.get("calibration_gate"),
        trainings=tuple(walk.trainings),
        refused=dict(walk.refused),
        drifted=tuple(reversed(walk.drifted)),
        probes=(walk.right, walk.judged),
        rolled_back=walk.rolled_back,
        undone=tuple(walk.undone),
        unmended=walk.unmended,
        began=walk.began,
        history=walk.history,
        paid=walk.paid,
        unpaid=walk.unpaid,
        recorded_until=walk.ends.get(RECORD),
        maps={name: total / rows for name, (total, rows) in walk.maps.items()},
        looks=gate_looks(lines),
        pinned=_pinned(lines),
    )


def _pinned(lines: Sequence[Mapping[str, Json]]) -> str | None:
    """Who pinned the champion, if it is pinned."""
    last = next((line for line in reversed(lines) if line["kind"] in PINS), None)
    return last["body"]["by"] if last is not None and last["kind"] == "pinned" else None


def gate_looks(lines: Iterable[Mapping[str, Json]]) -> tuple[Look, ...]:
    """The tests of the gate that these lines of a chain tell of; older ones tell no level."""
    return tuple(
        Look(datetime.fromisoformat(line["at"]), line["body"]["level"], line["body"]["promote"])
        for line in lines
        if line["kind"] == "gate" and line["body"].get("level") is not None
    )


@dataclass
class _Walk:
    trainings: list[datetime] = field(default_factory=list)
    ends: dict[str, datetime] = field(default_factory=dict)  # newest row looked at, by kind of gate
    refused: dict[str, int] = field(default_factory=dict)
    drifted: list[Window] = field(default_factory=list)
    right: int = 0
    judged: int = 0
    rolled_back: datetime | None = None
    undone: list[str] = field(default_factory=list)
    unmended: int = 0
    began: datetime | None = None
    history: int = 0
    paid: bool = False
    unpaid: int = 0
    _model: str = ""  # the release that brought the model which serves
    _models: dict[str, str] = field(default_factory=dict)  # the same of each release
    maps: dict[str, tuple[float, int]] = field(default_factory=dict)  # sum over rows, and rows
    _trigger: str = ""
    _map: str = ""
    _look: Mapping[str, Json] = field(default_factory=dict)

    def take(self, kind: str, at: datetime, body: Mapping[str, Json]) -> None:
        if kind in TRAININGS:
            self.trainings.append(at)
            self.history = self._look.get("history", 0) or self.history
            self.unpaid = 0 if self.paid or len(self.trainings) == 1 else self.unpaid + 1
        elif kind in FIRST:
            self.began = self.began or at
        elif kind == PROBATION and body.get("release") == self._model:
            self.paid = body.get("alone", body["p_value"]) >= PAID
        elif kind in ("gate", "calibration_gate", RECORD):
            self._gate(kind, body)
        elif kind == "monitored":
            self._looked(body)
        elif kind == "decided":
            self._decided(body)
        elif kind in MOVES:
            left = self._models.get(body.get("from", ""))
            self._moved(body)
            if kind == "promoted":
                self.unmended = 0
            elif body.get("by") == PROBATION:
                self._back(left, at, body)

    def _back(self, left: str | None, at: datetime, body: Mapping[str, Json]) -> None:
        """The loop went back from a release of the model `left`, perhaps from a map over it."""
        if left == self._model:
            self.undone.append(body["from"])
        else:
            self.undone.append(left or body["from"])
            self.rolled_back = at

    def _moved(self, body: Mapping[str, Json]) -> None:
        """Another release serves: perhaps another model, or else only another map, or none."""
        release = body.get("release", "")
        if body.get("kind") == "recalibrate":
            self._models[release] = self._model
            return
        model = self._models.setdefault(release, release)
        if model != self._model or not model:
            self.drifted.clear()  # the reference is another one
            self.refused.clear()
            self.paid, self._model = False, model

    def _record(self, body: Mapping[str, Json]) -> None:
        bare, rows = body["loss"][UNMAPPED], body["rows"]
        for name, loss in body["loss"].items():
            if name != UNMAPPED:
                total, count = self.maps.get(name, (0.0, 0))
                self.maps[name] = total + (loss - bare) * rows, count + rows

    def _gate(self, kind: str, body: Mapping[str, Json]) -> None:
        window = body.get("window")
        if window:
            end = datetime.fromisoformat(window["end"])
            self.ends[kind] = max(end, self.ends.get(kind, end))
        if kind == RECORD:
            self._record(body)
            return
        if kind == "calibration_gate":
            self.unmended += self._map == "harm" and not body.get("promote", False)
            return
        if not body.get("promote", False):
            self.refused[self._trigger] = self.refused.get(self._trigger, 0) + 1
        told = self._look.get("staleness")
        if told and told["low"] is not None:
            self.judged += 1
            self.right += (told["low"] > 0) == body.get("promote", False)

    def _decided(self, body: Mapping[str, Json]) -> None:
        decision, look = body.get("decision") or {}, body.get("evidence") or {}
        self._looked(look)
        action, trigger = decision.get("action"), decision.get("trigger", "")
        if action == Action.RETRAIN:
            self._trigger, self._look, self._map = trigger, look, ""
        elif action == Action.RECALIBRATE:
            self._map = trigger

    def _looked(self, look: Mapping[str, Json]) -> None:
        """A window in which nothing could be tested neither ends a run of drift nor prolongs it."""
        state, told = look.get("state"), look.get("window")
        if state == State.STABLE:
            self.drifted.clear()
        elif state == State.DRIFT and told:
            window = Window(*(datetime.fromisoformat(told[edge]) for edge in ("start", "end")))
            if not (self.drifted and self.drifted[-1] == window):
                self.drifted.append(window)
