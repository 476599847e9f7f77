"""The parts of the demo: the stream in event time, the figures at the end, and what one sees."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_fixtures import LOADED, InProcess, days, make, project, serve, stream, turning
from sklearn.metrics import log_loss, roc_auc_score

from homeostat import demo
from homeostat.demo import Sparing
from homeostat.demo.result import did, measure, plot
from homeostat.demo.stream import ROWS, Stream
from homeostat.demo.view import View
from homeostat.errors import HomeostatError
from homeostat.flights import CATEGORICAL, FEATURES
from homeostat.records import Action, Decision, Outcome, Window
from homeostat.testing import START

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


# --- the stream ---


def flights(departures, durations):
    """Flights that leave at these minutes and land so many minutes later; None never lands."""
    leave = sorted(departures)
    frame = pd.DataFrame(
        {name: "x" if name in CATEGORICAL else 1.5 for name in FEATURES}, index=range(len(leave))
    )
    frame["wind_gust"] = np.nan
    frame["prediction_id"] = [f"flight-{i}" for i in frame.index]
    frame["occurred_at"] = [START + timedelta(minutes=minute) for minute in leave]
    frame["occurred_at"] = pd.to_datetime(frame["occurred_at"], utc=True)
    land = [
        None if last is None else START + timedelta(minutes=minute + last)
        for minute, last in zip(leave, durations, strict=True)
    ]
    frame["labelled_at"] = pd.to_datetime(pd.Series(land, dtype="object"), utc=True)
    frame["late"] = [float("nan") if last is None else float(last % 2) for last in durations]
    return frame


flown = st.lists(
    st.tuples(st.integers(0, 600), st.none() | st.integers(1, 400)), min_size=0, max_size=40
)


@settings(max_examples=40, deadline=None)
@given(flown, st.lists(st.integers(0, 1200), max_size=5))
def test_each_flight_and_each_label_is_given_once_and_in_its_time(pairs, cuts):
    pairs.sort(key=lambda pair: pair[0])
    year = flights([leave for leave, _ in pairs], [last for _, last in pairs])
    one = Stream(year, START)
    rows, labels = [], []
    for cut in [*sorted(cuts), 2_000]:
        end = START + timedelta(minutes=cut)
        for batch in one.until(end):
            rows += batch.rows
            labels += batch.labels
        given_rows = {row["prediction_id"] for row in rows}
        assert given_rows == {*year[year["occurred_at"] < end]["prediction_id"]}
        landed = {*year[year["labelled_at"] < end]["prediction_id"]}
        assert {label["prediction_id"] for label in labels} == landed
        assert landed <= given_rows
    assert len(rows) == len(year)
    assert len(labels) == year["labelled_at"].notna().sum()
    assert [row["occurred_at"] for row in rows] == sorted(row["occurred_at"] for row in rows)
    assert [label["labelled_at"] for label in labels] == sorted(x["labelled_at"] for x in labels)


def test_a_label_comes_only_when_all_that_left_before_the_landing_has_been_given():
    minutes = range(ROWS * 3)
    year = flights(minutes, [30] * len(minutes))
    seen: set[str] = set()
    for batch in Stream(year, START).until(START + 100 * DAY):
        assert len(batch.rows) <= ROWS
        now = max(row["occurred_at"] for row in batch.rows)
        later = [label for label in batch.labels if label["labelled_at"] > now]
        assert not later or len(seen) + len(batch.rows) == len(year)
        seen |= {row["prediction_id"] for row in batch.rows}
        assert {label["prediction_id"] for label in batch.labels} <= seen


def test_what_left_before_the_start_is_not_given_nor_is_its_label():
    year = flights([0, 60, 120], [500, 10, None])
    (batch,) = Stream(year, START + HOUR).until(START + DAY)
    assert [row["prediction_id"] for row in batch.rows] == ["flight-1", "flight-2"]
    assert [label["prediction_id"] for label in batch.labels] == ["flight-1"]


def test_rows_and_labels_are_what_the_service_takes():
    (batch,) = Stream(flights([5], [11]), START).until(START + DAY)
    (row,), (label,) = json.loads(json.dumps([batch.rows, batch.labels], allow_nan=False))
    assert set(row) == {*FEATURES, "prediction_id", "occurred_at"}
    assert (row["wind_gust"], row["carrier"], row["distance"]) == (None, "x", 1.5)
    assert row["occurred_at"] == "2025-01-01T00:05:00Z"
    assert label == {
        "prediction_id": "flight-0", "label": 1, "labelled_at": "2025-01-01T00:16:00Z"
    }  # fmt: skip


# --- the figures ---


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A small year: trained, two drifted weeks, a promotion, two weeks more."""
    frame, engine = stream(), InProcess()
    root = make(tmp_path_factory.mktemp("demo"), days(frame, 0, LOADED))
    outcomes = []
    with turning(root, engine, LOADED) as loop:
        outcomes.append(loop.train())
    for first in (14, 21, 28, 35):
        serve(root, days(frame, first, first + 7))
        with turning(root, engine, first + 7) as loop:
            outcomes.append(loop.step())
            trainer = loop.trainer
    window = Window(START + 14 * DAY, START + 42 * DAY)
    return root, frame, outcomes, measure(project(root), outcomes, window, trainer, 0.0)


def test_the_figures_are_those_of_scikit_learn_on_what_was_answered(shown):
    root, frame, outcomes, result = shown
    here = project(root)
    rows = here.journal.read(Window(START + 14 * DAY, START + 42 * DAY), labelled=True)
    labels = np.array(rows.column("label").to_pylist(), dtype=int)
    served = rows.column("probability").to_numpy()
    assert result.served.log_loss == pytest.approx(log_loss(labels, served))
    assert result.served.auc == pytest.approx(roc_auc_score(labels, served))
    first = here.releases.get(outcomes[0].release)
    model = cloudpickle.loads(here.releases.object(first, "model"))
    features = days(frame, 14, 42)
    features = features.assign(member=features["member"].astype(float))
    frozen = model.predict_proba(features)[:, 1]
    assert result.frozen.log_loss == pytest.approx(log_loss(features["target"], frozen))
    assert result.frozen.auc == pytest.approx(roc_auc_score(features["target"], frozen))
    gain = 1 - result.served.log_loss / result.frozen.log_loss
    assert result.relative_gain == pytest.approx(gain)
    assert result.rows == len(features)
    assert result.relative_gain > 0.1


def test_the_weeks_add_up_and_say_what_was_decided_at_their_end(shown):
    _, _, outcomes, result = shown
    assert [week.start for week in result.weeks] == [START + n * DAY for n in (14, 21, 28, 35)]
    assert sum(week.rows for week in result.weeks) == result.rows
    for name in ("frozen", "served"):
        total = sum(week.rows * getattr(week, name) for week in result.weeks)
        assert total / result.rows == pytest.approx(getattr(result, name).log_loss)
    promoted = [outcome.promoted for outcome in outcomes[1:]]
    assert [week.decision == "promoted" for week in result.weeks] == promoted
    assert result.promotions == sum(promoted) >= 1
    judged = [outcome.decision.action for outcome in outcomes[1:] if outcome.verdict is not None]
    assert result.retrains == judged.count(Action.RETRAIN)
    assert result.harmful_promotions == 0
    before = [promoted.index(True), promoted.index(True) + 1]
    assert all(week.served == week.frozen for week in result.weeks[: before[0] + 1])
    assert result.weeks[before[1]].served < result.weeks[before[1]].frozen


def test_the_summary_has_the_fields_of_the_contract_and_the_picture_is_one(shown, tmp_path):
    result = shown[3]
    summary = json.loads(json.dumps(result.summary(), allow_nan=False))
    assert list(summary) == [
        "rows", "frozen", "served", "relative_gain", "retrains", "recalibrations", "promotions",
        "harmful_promotions", "seconds",
    ]  # fmt: skip
    assert list(summary["frozen"]) == list(summary["served"]) == ["log_loss", "auc"]
    plot(result, tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


class OtherWayRound:
    """Releases in which the first and the promoted one have changed their models."""

    def __init__(self, releases, pair):
        self.releases = releases
        self.other = dict(zip(pair, reversed(pair), strict=True))

    def get(self, identity):
        found = self.releases.get(identity)
        objects = self.releases.get(self.other[identity]).manifest["objects"]
        return replace(found, manifest={**found.manifest, "objects": objects})

    def object(self, found, name):
        return self.releases.object(found, name)


@pytest.mark.parametrize(
    ("action", "promoted", "words"),
    [
        (Action.ROLL_BACK, True, "rolled back"),
        (Action.RECALIBRATE, True, "recalibrated"),
        (Action.RETRAIN, True, "promoted"),
        (Action.HOLD, False, "hold (why)"),
    ],
)
def test_the_table_of_weeks_says_what_each_turn_came_to(action, promoted, words):
    outcome = Outcome(START, Decision(action, "why", ""), promoted=promoted)
    assert did(outcome) == words


def test_a_promotion_that_did_harm_is_counted(shown):
    root, _, outcomes, _ = shown
    here = project(root)
    promotion = next(outcome for outcome in outcomes[1:] if outcome.promoted)
    pair = [outcomes[0].release, promotion.release]
    swapped = SimpleNamespace(
        releases=OtherWayRound(here.releases, pair), journal=here.journal, settings=here.settings
    )
    with turning(root, InProcess(), 42) as loop:
        window = Window(START + 14 * DAY, START + 42 * DAY)
        found = measure(swapped, outcomes, window, loop.trainer, 0.0)
    assert (found.promotions, found.harmful_promotions) == (1, 1)


# --- what one sees ---


def test_where_nobody_watches_each_week_is_one_line(shown, capsys):
    outcomes = shown[2]
    view = View(4)
    with view.live():
        for outcome in outcomes[1:]:
            view.says("looking, deciding")
            view.advance(100, 90)
            view.week(outcome)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "promoted" in " ".join(lines)
    for line, outcome in zip(lines, outcomes[1:], strict=True):
        assert outcome.evidence.state.value in line
        assert outcome.release[:12] in line
    assert "\x1b" not in "".join(lines)


def test_the_closing_names_the_gain_and_where_things_lie(shown, capsys, tmp_path):
    result = shown[3]
    root = tmp_path / ("long" * 30) / "[bold]"
    View(4).closing(result, root)
    told = capsys.readouterr().out
    assert f"{result.served.log_loss:.4f} served" in told
    assert f"{result.promotions} promotions" in told.replace("\n", " ")
    assert str(root / "demo.json") in told
    assert all(f"{week.start:%d %b}" in told for week in result.weeks)


def test_a_week_without_evidence_or_with_odd_names_can_be_shown(capsys):
    decision = Decision(Action.RETRAIN, "drift", "'[/red] [bold' drifted.")
    view = View(1)
    view.week(Outcome(datetime(2025, 1, 8, tzinfo=UTC), decision))
    from rich.console import Console

    Console(width=120).print(view)
    assert "[/red] [bold" in capsys.readouterr().out


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(HomeostatError, match="not an empty folder"):
            demo.run(place, weeks=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_evidently_draws_every_fourth_week_and_the_last():
    drawn = []

    class Drawing:
        def evidently(self, reference, current, schema):
            drawn.append(current)
            return {"dataset_drift": False}

    reporter = Sparing(Drawing(), weeks=10)
    told = [reporter.evidently(None, week, None) for week in range(1, 11)]
    assert drawn == [2, 6, 10]
    assert "skipped" in told[0]
    assert told[9] == {"dataset_drift": False}
