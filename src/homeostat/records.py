"""The frozen values that travel between rooms.

Every time is timezone-aware UTC, every loss is a mean per row in the unit of the metric, every
share lies between 0 and 1. A record holds facts; the rooms that take it decide and act.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import pyarrow as pa

Task: TypeAlias = Literal["binary", "multiclass", "regression"]
Json: TypeAlias = Any  # what `json.loads` gives


def utc(moment: datetime) -> datetime:
    """`moment` in UTC; raises ValueError when it carries no zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone; give one, UTC for example")
    return moment.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open stretch of event time, start ≤ t < end, both UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", utc(self.start))
        object.__setattr__(self, "end", utc(self.end))
        if self.start > self.end:
            raise ValueError(f"the window ends ({self.end}) before it starts ({self.start})")

    @property
    def length(self) -> timedelta:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.start:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M} UTC"


class State(StrEnum):
    """The monitor's verdict on one window."""

    STABLE = "stable"
    DRIFT = "drift"
    BROKEN_DATA = "broken_data"
    INSUFFICIENT_DATA = "insufficient_data"
    FAILED = "failed"


class Hurts(StrEnum):
    """Whether the champion's predictions got worse, as far as labels can tell."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Action(StrEnum):
    """What the loop may do after looking at a window."""

    HOLD = "hold"
    RECALIBRATE = "recalibrate"
    RETRAIN = "retrain"
    ADOPT = "adopt"
    ROLL_BACK = "roll_back"
    CALL = "stop_and_call"


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % interval; `low` and `high` are None under five blocks."""

    value: float
    low: float | None
    high: float | None
    rows: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken expectation about the data of a window."""

    check: str  # name of the check, as in the documentation
    severity: Literal["block", "warn"]
    column: str | None  # None where the whole window is meant
    value: float  # what was measured
    threshold: float  # where the check trips
    message: str  # one sentence, without feature values


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Served rows of broken data: no model learns from them until someone releases them."""

    id: str  # eight hex digits
    window: Window  # of the rows' event time
    columns: tuple[str, ...]  # only models with one of these features are meant; none: all models
    reason: str  # one sentence, and the checks that tripped
    since: datetime  # when it was recorded, UTC

    @classmethod
    def of(cls, body: Mapping[str, Json]) -> Quarantine:
        """From the fields as JSON holds them; raises KeyError, TypeError or ValueError."""
        window = Window(*(datetime.fromisoformat(body["window"][k]) for k in ("start", "end")))
        since = datetime.fromisoformat(body["since"])
        return cls(body["id"], window, tuple(body["columns"]), body["reason"], since)


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """How far one column of the window lies from the champion's reference."""

    column: str
    test: str  # statistic and null, e.g. "ks, blocks"
    distance: float  # 0 = the same; larger means more drift
    threshold: float  # drifted is distance > threshold
    p_value: float
    adjusted_p_value: float  # Holm over the columns of this window
    drifted: bool
    minimum_detectable_shift: float  # the smallest distance that would have been called drift
    windows: int  # disjoint reference windows the null rests on; 0 = independent rows assumed


@dataclass(frozen=True, slots=True)
class Performance:
    """The champion's loss on labelled rows, beside what it was when it was released."""

    metric: str  # "log_loss" or "rmse"
    realised: Interval | None
    baseline: Interval | None
    extra: Mapping[str, float] = field(default_factory=dict)  # further metrics, e.g. auc


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the monitor found out about one window."""

    window: Window
    release: str  # the champion whose reference was compared with
    state: State
    data_drift: bool  # the flag of the first brief
    carried_over: bool  # nothing could be tested, so `data_drift` kept its last value
    hurts: Hurts
    reason: str  # one sentence
    rows: int
    labelled: int
    refused: int
    reference_rows: int
    reference_blocks: int
    columns: tuple[ColumnDrift, ...] = ()
    findings: tuple[Finding, ...] = ()
    prediction_drift: ColumnDrift | None = None
    performance: Performance | None = None
    evidently: Mapping[str, Json] = field(default_factory=dict)
    history: int = 0  # labelled rows in the whole journal that are old enough to be judged
    created_at: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    quarantined: tuple[Quarantine, ...] = ()  # all that are open after this look


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append came to: rows written, and rows known already with the same content."""

    written: int
    repeated: int

    def __add__(self, other: Appended) -> Appended:
        return Appended(self.written + other.written, self.repeated + other.repeated)


@dataclass(frozen=True, slots=True)
class Entry:
    """The served rows of one request, which are journalled all or none.

    Each row holds its values in the order of `Schema.journal`: times as text in UTC such as
    `2025-06-01 12:00:00.000000Z`, numbers as finite floats, None for null.
    """

    ids: Sequence[str]
    rows: Sequence[Sequence[Any]]
    untimed: frozenset[str] = frozenset()  # ids whose earlier event time, if any, stands
    made: bool = False  # all ids were made just now, so that no row can have come before


@dataclass(frozen=True, slots=True)
class Committed:
    """What became of an entry."""

    written: int
    repeated: int
    recorded: pa.Table | None = None  # repeated rows as they were recorded first


@dataclass(frozen=True, slots=True)
class Labelled:
    """What a batch of labels came to."""

    written: int  # new labels and new versions of known ones
    repeated: int  # the same label again: no new version
    changed: int  # of `written`: those that differ from an earlier version

    def __add__(self, other: Labelled) -> Labelled:
        return Labelled(
            self.written + other.written,
            self.repeated + other.repeated,
            self.changed + other.changed,
        )


@dataclass(frozen=True, slots=True)
class Sealed:
    """What moving the journal's tail into history came to."""

    rows: int = 0  # predictions moved
    labels: int = 0  # versions of labels moved
    repeated: int = 0  # predictions that history had already
    conflicts: int = 0  # predictions left out: history has their id with other content
    orphans: int = 0  # labels dropped, since no prediction of theirs ever came
    expired: int = 0  # predictions removed, older than is kept

    def __add__(self, other: Sealed) -> Sealed:
        return Sealed(
            self.rows + other.rows,
            self.labels + other.labels,
            self.repeated + other.repeated,
            self.conflicts + other.conflicts,
            self.orphans + other.orphans,
            self.expired + other.expired,
        )


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure came to, or would."""

    rows: int
    labels: int  # all versions
    releases: Mapping[str, int] = field(default_factory=dict)  # id → its training rows among them


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An erasure that was begun, and of which nobody has said since that it came to its end."""

    id: str  # its own; of what is erased nothing is kept
    at: datetime  # when it was begun first, UTC
    rows: int  # that there were to erase then
    labels: int

    def __str__(self) -> str:
        return (
            f"an erasure of {self.rows:,} rows and {self.labels:,} labels, begun at "
            f"{self.at:%Y-%m-%d %H:%M} UTC, was not finished: erase the same again, with "
            f"--finish {self.id[:8]}"
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused row, without its values."""

    code: str
    field: str | None


@dataclass(frozen=True, slots=True)
class Past:
    """What the decision must know of earlier decisions; read from the audit chain."""

    last_training: datetime | None = None  # when the last challenger trained, promoted or not
    looked_until: datetime | None = None  # end of the newest rows that a gate has used
    trained_rows: int = 0  # labelled rows that the champion was trained on


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, what set it off, and the numbers behind it."""

    action: Action
    trigger: str  # drift, harm, asked, none, …
    reason: str  # one sentence a human reads
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Which rows a model was fitted on."""

    rows: int
    start: datetime  # event time of the oldest row
    cutoff: datetime  # every training row occurred before it
    as_of: datetime  # labels that arrived later were not seen
    sha256: str  # of the frame, see `train.frame_hash`


@dataclass(frozen=True, slots=True)
class Candidate:
    """A fitted model that is not released yet. Bytes only: nothing here is ever unpickled."""

    kind: Literal["first", "retrain", "recalibrate", "adopt"]
    parent: str | None  # release id of the champion it challenges
    objects: Mapping[str, bytes]  # name in the manifest → content, e.g. "model", "schema"
    training: TrainingRows
    seconds: float  # wall time of the fit
    params: Mapping[str, str]
    versions: Mapping[str, str]
    seed: int
    log: str = ""  # what the user's code printed
    twin: Mapping[str, Json] | None = None  # which engine serves and why, once that was tried


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's judgement of challenger against champion on the same rows."""

    promote: bool
    reason: str  # one sentence
    metric: str
    champion: float | None  # mean loss
    challenger: float | None
    difference: float | None  # challenger − champion; negative favours the challenger
    low: float | None  # 95 % interval of the difference, t on block means
    high: float | None
    rows: int
    blocks: int
    window: Window | None
    sibling: bool = False  # judged was a model of the same code that had not seen these rows


@dataclass(frozen=True, slots=True)
class Release:
    """One released model; `id` is the SHA-256 of its canonical manifest."""

    id: str
    sequence: int
    manifest: Mapping[str, Json]

    @property
    def cutoff(self) -> datetime:
        """Every row that this model was fitted on occurred before this time."""
        return datetime.fromisoformat(self.manifest["training"]["cutoff"])

    @property
    def short(self) -> str:
        return self.id[:12]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one turn of the loop came to."""

    at: datetime
    decision: Decision
    evidence: Evidence | None = None
    verdict: Verdict | None = None
    release: str | None = None  # the champion after the turn
    promoted: bool = False
    seconds: float = 0.0
