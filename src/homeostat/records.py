"""The frozen values that travel between rooms; the rooms that take them decide and act.

Times are aware UTC, losses a mean per row in the metric's unit, shares lie between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, TypeAlias

Task: TypeAlias = Literal["binary", "multiclass", "regression"]
Json: TypeAlias = Any  # what `json.loads` gives

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # from which blocks of time are counted
MICROSECOND = timedelta(microseconds=1)
"""The step of event time: what is half open ends one after its newest row."""


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
    test: str  # what was compared and the null, e.g. "location, blocks"
    distance: float  # 0 = the same; larger means more drift
    threshold: float  # drifted is distance > threshold
    p_value: float
    adjusted_p_value: float  # over all tests of this window
    drifted: bool
    minimum_detectable_shift: float  # the smallest distance that would have been called drift
    windows: int  # disjoint windows the reference is long; below ten: not calibrated; 0: rows alone


@dataclass(frozen=True, slots=True)
class Segment:
    """The window's rows of one level of a column, beside the reference's rows of that level."""

    column: str  # one of `monitor.segments`
    level: str | None  # None: what is said of the column as a whole, or of rows in no segment
    verdict: State  # stable, drift or insufficient_data
    rows: int  # of the window
    reference_rows: int
    furthest: ColumnDrift | None = None  # what drifted furthest, or came nearest; None: not judged
    calibrated: bool = False  # on ten stretches of the reference as long as the window, or more
    reason: str = ""  # one sentence: why it was not judged


@dataclass(frozen=True, slots=True)
class Performance:
    """The champion's metric on labelled rows, beside what it was when it was released."""

    metric: str  # "log_loss" or "rmse", or what `monitor.metric` names
    realised: Interval | None
    baseline: Interval | None
    extra: Mapping[str, float] = field(default_factory=dict)  # shares and counts of the cohort
    estimated: Interval | None = None  # of the window, told without its labels
    measures: Mapping[str, Interval] = field(default_factory=dict)  # every realised metric
    estimates: Mapping[str, Interval] = field(default_factory=dict)  # every estimated metric
    record: Mapping[str, float] = field(default_factory=dict)  # estimates against what came true
    labelled_by_score: tuple[float, ...] = ()  # share labelled by tenth of the scores, low first
    lag_days: float = 0.0  # how much earlier than the window the realised cohort ends; 0: it is it
    greater_is_better: bool = False
    harm_by: Literal["labels", "estimate", ""] = ""  # what says that the metric got worse
    note: str = ""  # one sentence: why something is not estimated
    first_release: Interval | None = None  # on these rows; None: it serves itself, or was not asked


@dataclass(frozen=True, slots=True)
class Staleness:
    """What a model as old as the champion loses against a new one; see `monitor.staleness`."""

    gain: float | None  # mean loss of the old twin − that of the new one, in the metric's loss
    low: float | None  # 95 % interval, t on block means; None under five blocks
    high: float | None
    rows: int = 0  # newer than both twins' training rows
    blocks: int = 0
    metric: str = ""
    reason: str = ""  # one sentence: why there is no gain


@dataclass(frozen=True, slots=True)
class Shape:
    """How one column is distributed in reference and window, to be drawn."""

    column: str
    labels: tuple[str, ...]  # of the bins in their order, null last
    reference: tuple[float, ...]  # share of the reference's rows in each bin
    current: tuple[float, ...]  # of the window's


@dataclass(frozen=True, slots=True)
class Trial:
    """How a champion does beside the release that it replaced, on rows newer than both."""

    release: str  # the promotion on probation
    replaced: str  # the release that it replaced, and that would serve again
    look: int  # 1, 2, … up to `decide.probation`
    window: Window  # of the rows' event time
    champion: float  # mean loss of what serves
    before: float  # of the replaced release; `difference` above 0: the champion is worse
    difference: float
    p_value: float  # one-sided, of being worse; t on block means
    alone: float  # the same of the two models without any map
    level: float  # at which this look says worse: that of all looks, shared out
    rows: int
    blocks: int
    worse: bool
    reason: str  # one sentence
    instead: str = ""  # a map by which its model is no worse: "bare" answers, or the "earlier" map


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
    joint_drift: ColumnDrift | None = None  # what no column shows by itself
    false_alarms_per_year: float | None = None  # to be expected; None where not calibrated
    performance: Performance | None = None
    evidently: Mapping[str, Json] = field(default_factory=dict)
    history: int = 0  # labelled rows in the whole journal that are old enough to be judged
    fresh: int = 0  # of these, rows that a recalibration can be judged by; 0: not enough
    created_at: datetime = EPOCH
    staleness: Staleness | None = None
    trial: Trial | None = None  # a look of the probation that was due
    segments: tuple[Segment, ...] = ()  # they inform and set no flag
    shapes: tuple[Shape, ...] = ()  # for people, as `importance`: the status file has neither
    importance: Mapping[str, float] = field(default_factory=dict)  # rise of the loss by column
    quarantined: tuple[Quarantine, ...] = ()  # all that are open after this look


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

    @classmethod
    def of(cls, body: Mapping[str, Json]) -> TrainingRows:
        """From the fields as a manifest holds them; raises KeyError, TypeError or ValueError."""
        times = ("start", "cutoff", "as_of")
        start, cutoff, as_of = (datetime.fromisoformat(body[name]) for name in times)
        return cls(body["rows"], start, cutoff, as_of, body["sha256"])


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
    calibration: TrainingRows | None = None  # on which its calibrator was fitted; None without one
    members: tuple[TrainingRows, ...] = ()  # of each model it averages, oldest first; (): one
    left_out: tuple[str, ...] = ()  # why models of the champion's line are not among them


@dataclass(frozen=True, slots=True)
class Slice:
    """The gate's comparison on the judging rows of one level, or one range, of a feature."""

    column: str  # both names as a page may show them
    level: str
    rows: int
    blocks: int
    champion: float  # mean loss, in the metric's unit
    challenger: float
    p_value: float  # one-sided, of the challenger's being worse by more than `gate.delta`
    adjusted_p_value: float  # Holm over all slices
    worse: bool


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
    p_value: float | None = None  # one-sided, of harm beyond δ, for all challengers of the look
    level: float | None = None  # that the p-value may not exceed; None where nothing was tested
    mapped: bool = False  # both sides by maps that were cross-fitted on these rows
    sliced: int = 0  # slices that were compared
    slices: tuple[Slice, ...] = ()  # the ten of them that speak most against the challenger

    @classmethod
    def of(cls, body: Mapping[str, Json]) -> Verdict:
        """From the fields as JSON holds them; those that an older line lacks have their defaults.

        Raises KeyError, TypeError or ValueError.
        """
        window, slices = body["window"], body.get("slices", ())
        if window is not None:
            window = Window(*(datetime.fromisoformat(window[k]) for k in ("start", "end")))
        made = tuple(Slice(**each) for each in slices)
        return cls(**{**body, "window": window, "slices": made})


@dataclass(frozen=True, slots=True)
class Release:
    """One released model; `id` is the SHA-256 of its canonical manifest."""

    id: str
    sequence: int
    manifest: Mapping[str, Json]

    @property
    def training(self) -> TrainingRows:
        """The rows that its model was fitted on, or the newest of several."""
        return TrainingRows.of(self.manifest["training"])

    @property
    def members(self) -> tuple[TrainingRows, ...]:
        """The rows of each model whose outputs its model averages, oldest first."""
        told = self.manifest.get("members", [self.manifest["training"]])
        return tuple(map(TrainingRows.of, told))

    @property
    def calibration(self) -> TrainingRows | None:
        """The rows that its calibrator was fitted on; None without one."""
        told = self.manifest.get("calibration")  # manifests of releases without one lack it
        return told and TrainingRows.of(told)

    @property
    def cutoff(self) -> datetime:
        """Every row that its model was fitted on occurred before this time."""
        return self.training.cutoff

    @property
    def seen_until(self) -> datetime:
        """As `cutoff`, of its model and its calibrator."""
        return max(self.cutoff, (self.calibration or self.training).cutoff)

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
    refused: Verdict | None = None  # of a challenger, where a map was released in its place

    def held(self, trigger: str, reason: str) -> Outcome:
        """The same turn, in which nothing was done after all."""
        wanted = replace(self.decision, action=Action.HOLD, trigger=trigger, reason=reason)
        return replace(self, decision=wanted)
