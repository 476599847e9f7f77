"""Segments: each level of a column by itself, beside the reference's rows of that level."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from loop_fixtures import (
    DAYS,
    LOADED,
    InProcess,
    days,
    make,
    promoted_unjudged,
    serve,
    stream,
    turning,
)
from report_fixtures import NAMES, drift, evidence
from scipy import stats
from test_page import Reader

from homeostat import compare, screen
from homeostat.errors import SchemaError
from homeostat.findings import findings
from homeostat.levels import LARGEST, Levels
from homeostat.monitor import Subject, examine
from homeostat.page import page
from homeostat.profile import Profile
from homeostat.records import Segment, State, Window
from homeostat.report import summary
from homeostat.schema import TIMESTAMP, Feature, Schema, Target
from homeostat.settings import Monitor
from homeostat.status import from_status, to_status

DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
WEEK = Window(START + 140 * DAY, START + 147 * DAY)
SHOPS = ("big", "mid", "small", "tiny")
SHARES = (0.6, 0.3, 0.098, 0.002)
EDGES = tuple(np.linspace(-2.5, 2.5, 63))
SCHEMA = Schema(
    (
        Feature("temp", "number", edges=EDGES),
        Feature("sales", "number", edges=EDGES),
        Feature("shop", "category", levels=SHOPS),
        Feature("open", "boolean"),
    ),
    Target("y", "binary", "bool", ("false", "true")),
)


def rows(per_day, first, days_, *, seed, **changed):
    """Rows of days that differ by nature, `per_day` of them in each."""
    rng = np.random.default_rng(seed)
    count = per_day * days_
    day = np.repeat(np.arange(days_), per_day)
    weather = 0.3 * rng.normal(size=days_)
    values = {
        "occurred_at": [START + (first + d) * DAY for d in day.tolist()],
        "model_version": ["r1"] * count,
        "probability": rng.random(count),
        "label": rng.choice(["true", "false"], count).tolist(),
        "temp": rng.normal(weather[day]),
        "sales": rng.normal(size=count),
        "shop": rng.choice(SHOPS, count, p=SHARES).tolist(),
        "open": (rng.random(count) < 0.7).tolist(),
    } | changed
    kinds = {"occurred_at": TIMESTAMP} | {f.name: f.arrow for f in SCHEMA.features}
    return pa.table({name: pa.array(v, kinds.get(name)) for name, v in values.items()})


OLD = rows(150, 0, 140, seed=0)
NEW = rows(150, 140, 7, seed=1)
SUBJECT = Subject(
    release="r1",
    schema=SCHEMA,
    reference=Profile.of(OLD, SCHEMA, block=DAY),
    sample=OLD.slice(0, 200),
    baseline=None,
    levels=Levels.of(OLD, SCHEMA.features, ["shop", "open"], block=DAY),
)


class Reports:
    def evidently(self, reference, current, schema):
        return {"drifted_share": 0.0, "dataset_drift": False}


def look(current=NEW, subject=SUBJECT, segments=("shop",), **settings):
    return examine(
        subject,
        current,
        WEEK,
        refused={},
        last=None,
        settings=Monitor(segments=segments, **settings),
        mature_until=WEEK.end,
        now=WEEK.end,
        reporter=Reports(),
    )


def with_column(table, name, values):
    place = table.schema.get_field_index(name)
    return table.set_column(place, name, pa.array(values, table.schema.field(name).type))


def moved(table, level, by):
    """`sales` of one shop's rows moved."""
    hit = np.asarray(table.column("shop").to_pylist()) == level
    return with_column(table, "sales", table.column("sales").to_numpy() + by * hit)


def verdicts(found):
    return {(s.column, s.level): s.verdict for s in found.segments}


# --- the verdict ---


def test_a_segment_that_drifts_alone_is_called_though_the_whole_shows_nothing():
    found = look(moved(NEW, "small", 1.2), segments=("shop", "open"))
    assert found.state is State.STABLE
    assert not found.data_drift
    assert verdicts(found) == {
        ("shop", "big"): State.STABLE,
        ("shop", "mid"): State.STABLE,
        ("shop", "small"): State.DRIFT,
        ("shop", "tiny"): State.INSUFFICIENT_DATA,
        ("open", "true"): State.STABLE,
        ("open", "false"): State.STABLE,
    }
    small = found.segments[2]
    assert small.furthest.column == "sales"
    assert small.furthest.distance > small.furthest.threshold
    assert small.furthest.adjusted_p_value <= 0.01
    assert small.calibrated
    assert 60 < small.rows < 150
    assert found.reason.endswith(" 1 of 5 segments drifted.")
    assert "small" not in found.reason  # levels are values of rows, and reasons are logged


def test_a_segment_is_tested_as_its_rows_alone_would_be_at_its_share_of_alpha():
    def alone(table, shop):
        chosen = table.filter(pa.array(np.asarray(table.column("shop").to_pylist()) == shop))
        return chosen.select(["occurred_at", "temp", "sales", "open"])

    now = moved(NEW, "mid", 0.4)
    found = look(now, alpha=0.03)
    others = replace(SCHEMA, features=tuple(f for f in SCHEMA.features if f.name != "shop"))
    for segment in found.segments[:3]:
        parts = [alone(table, segment.level) for table in (OLD, now)]
        told = compare(*parts, time="occurred_at", schema=others, alpha=0.01)
        assert (segment.rows, segment.reference_rows) == (told.current_rows, told.reference_rows)
        assert (segment.verdict.value, segment.calibrated) == (told.verdict, told.calibrated)
        tested = {c.column: c for c in (*told.columns, told.joint)}
        same = tested[segment.furthest.column]
        assert segment.furthest.adjusted_p_value == min(1.0, 3 * same.adjusted_p_value)
        assert replace(segment.furthest, adjusted_p_value=same.adjusted_p_value) == same


def test_a_change_of_the_segments_own_shares_is_no_drift_within_them():
    swapped = rows(150, 140, 7, seed=3)
    swapped = with_column(swapped, "shop", ["mid"] * 800 + ["big"] * 250)
    found = look(swapped)
    assert found.state is State.DRIFT
    assert {s.verdict for s in found.segments if s.furthest} == {State.STABLE}
    assert "shop" not in {s.furthest.column for s in found.segments if s.furthest}


def test_small_effects_are_no_drift_of_a_segment_either():
    now = moved(NEW, "small", 1.2)
    assert verdicts(look(now, min_effect=0.9))["shop", "small"] is State.STABLE


def frame(days_, seed):
    """Many segments of days that differ by nature, in which nothing ever changes."""
    rng = np.random.default_rng(seed)
    day = np.repeat(np.arange(days_), 80)
    count = len(day)
    return pd.DataFrame(
        {
            "at": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(day, unit="D"),
            "temp": rng.normal(0.5 * rng.normal(size=days_)[day]),
            "sales": rng.normal(size=count),
            "shop": rng.choice([*"abcdefgh"], count),
            "open": rng.random(count) < 0.5,
        }
    )


def test_all_segments_together_alarm_in_vain_no_more_often_than_alpha():
    draws, alpha = 40, 0.05
    alarms = 0
    for seed in range(draws):
        found = compare(
            frame(80, seed),
            frame(7, 10_000 + seed),
            time="at",
            alpha=alpha,
            min_effect=0.0,
            segments=("shop", "open"),
        )
        assert len(found.segments) == 10
        alarms += any(s.verdict is State.DRIFT for s in found.segments)
    assert alarms <= stats.binom.ppf(0.999, draws, alpha)


# --- what cannot be judged is said ---


def test_levels_of_too_few_rows_on_either_side_are_listed_and_not_judged():
    none = with_column(NEW, "shop", ["mid"] * NEW.num_rows)
    found = look(none)
    big, tiny = found.segments[0], found.segments[-1]
    assert (big.level, big.verdict, big.rows) == ("big", State.INSUFFICIENT_DATA, 0)
    assert big.reason == (
        f"0 rows in the window and {big.reference_rows} in the reference; 30 of each are needed to "
        "compare."
    )
    assert big.furthest is None
    assert tiny.level == "tiny"
    many = look(min_rows=100).segments[-1]  # of the window there would be enough
    assert (many.level, many.verdict) == ("tiny", State.INSUFFICIENT_DATA)


def test_rows_without_a_level_that_the_reference_knows_are_counted_and_not_named():
    odd = with_column(NEW, "shop", [*["secret"] * 200, *[None] * 50, *["big"] * 800])
    rest = look(odd).segments[-1]
    assert (rest.column, rest.level, rest.rows) == ("shop", None, 250)
    assert rest.verdict is State.INSUFFICIENT_DATA
    assert "secret" not in json.dumps(to_status(look(odd)))


def test_only_the_twenty_largest_levels_of_the_reference_are_segments():
    rng = np.random.default_rng(0)
    count = 40 * 100
    shops = [f"s{n}" for n in np.minimum(rng.geometric(0.1, count), 40)]
    table = rows(100, 0, 40, seed=5, shop=shops)
    ranked = pd.Series(shops).value_counts()
    feature = Feature("shop", "category", levels=tuple(sorted(ranked.index)))
    schema = replace(SCHEMA, features=(*SCHEMA.features[:2], feature))
    levels = Levels.of(table, schema.features, ["shop"], block=DAY)
    sizes = [level.rows for level in levels.levels]
    assert len(sizes) == LARGEST
    assert sizes == sorted(ranked, reverse=True)[:LARGEST]
    reference = Profile.of(table, schema, block=DAY)
    current = rows(100, 140, 7, seed=6, shop=shops[:700])
    found = look(current, replace(SUBJECT, schema=schema, reference=reference, levels=levels))
    assert len(found.segments) == LARGEST + 1
    rest = found.segments[-1]
    assert (rest.level, rest.reference_rows) == (None, count - sum(sizes))
    assert rest.rows + sum(s.rows for s in found.segments[:-1]) == 700


def test_a_release_of_before_the_setting_says_so_and_the_rest_stands():
    for levels in (None, Levels.of(OLD, SCHEMA.features, ["shop"], block=DAY)):
        found = look(subject=replace(SUBJECT, levels=levels), segments=("open",))
        assert found.state is State.STABLE
        (told,) = found.segments
        assert (told.column, told.level, told.verdict) == ("open", None, State.INSUFFICIENT_DATA)
        assert "released before 'open' was named" in told.reason
        assert "known from the next release on" in told.reason


def test_a_name_that_is_no_category_or_boolean_warns_and_the_others_are_judged():
    found = look(segments=("temp", "shap", "shop"))
    assert found.state is State.STABLE
    told = [(f.check, f.severity, f.column) for f in found.findings]
    assert told == [("unknown_segment", "warn", "temp"), ("unknown_segment", "warn", "shap")]
    assert "'shap', which is no categorical or boolean feature" in found.findings[1].message
    assert {s.column for s in found.segments} == {"shop"}
    assert {c.column for c in found.columns} == set(SCHEMA.names)


def test_a_broken_column_parts_nothing_and_says_so():
    found = look(with_column(NEW, "shop", [None] * NEW.num_rows), segments=("shop", "open"))
    assert found.state is State.BROKEN_DATA
    assert found.segments[0].level is None
    assert found.segments[0].reason.startswith("'shop' is broken")
    judged = [s for s in found.segments if s.column == "open"]
    assert [s.verdict for s in judged] == [State.STABLE] * 2


def test_a_model_of_one_column_has_nothing_to_compare_within_its_segments():
    only = replace(SCHEMA, features=(SCHEMA.features[2],))
    found = compare(OLD, NEW, time="occurred_at", schema=only, segments=("shop",))
    assert found.segments[0].verdict is State.INSUFFICIENT_DATA
    assert found.segments[0].reason == "There is no other column to compare."


def test_levels_that_cannot_be_read_fail_the_look_and_are_never_stable():
    level = replace(SUBJECT.levels.levels[0], packed=b"torn")
    torn = replace(SUBJECT.levels, levels=(level,))
    found = look(subject=replace(SUBJECT, levels=torn))
    assert found.state is State.FAILED
    assert found.reason.startswith("Segments failed: these bytes are no profile")


# --- counts ---


def test_rows_in_another_order_give_the_same_bytes_and_the_same_segments():
    order = np.random.default_rng(0).permutation(OLD.num_rows)
    mixed = Levels.of(OLD.take(order), SCHEMA.features, ["shop", "open"], block=DAY)
    assert mixed.to_bytes() == SUBJECT.levels.to_bytes()
    turned = NEW.take(np.random.default_rng(1).permutation(NEW.num_rows))
    assert look(turned).segments == look().segments


def test_the_levels_of_a_column_add_up_to_all_rows():
    whole = Profile.of(OLD, SCHEMA.features, block=DAY)
    first, *rest = SUBJECT.levels.within("shop")
    total = first.profile
    for level in rest:
        total = total + level.profile
    assert total == whole
    assert SUBJECT.levels.rows == whole.rows


def test_levels_read_back_and_bytes_of_another_kind_are_refused():
    content = SUBJECT.levels.to_bytes()
    assert Levels.from_bytes(content) == SUBJECT.levels
    with pytest.raises(SchemaError, match="no segments"):
        Levels.from_bytes(content[: len(content) // 2])
    with pytest.raises(SchemaError, match="no segments"):
        Levels.from_bytes(SUBJECT.reference.to_bytes())
    newer = content.replace(b'"format": 1', b'"format": 9')
    with pytest.raises(SchemaError, match="format 9"):
        Levels.from_bytes(newer)


# --- two frames ---


def test_compare_judges_segments_of_any_frame_and_refuses_a_name_that_is_none():
    old, now = frame(140, 1), frame(7, 2)
    now.loc[now["shop"] == "c", "sales"] += 2.5
    found = compare(old, now, time="at", segments=("shop",))
    assert found.verdict == "stable"
    assert [s.level for s in found.segments if s.verdict is State.DRIFT] == ["c"]
    category = [f.astype({"shop": "category"}) for f in (old, now)]
    assert compare(*category, time="at", segments=("shop",)).segments == found.segments
    assert json.loads(found.to_json())["segments"][0]["verdict"] == "stable"
    with pytest.raises(SchemaError, match="'temp', 'shap': that is no categorical or boolean"):
        compare(old, now, time="at", segments=("shop", "temp", "shap"))


# --- shown ---


def hostile():
    """A segment of every name, one that was not judged, and a column that could not be parted."""
    segments = [
        Segment(name, name, State.DRIFT, 40, 900, drift(name), calibrated=place % 2 == 0)
        for place, name in enumerate(NAMES)
    ]
    segments += [
        Segment(NAMES[0], "few | rows", State.INSUFFICIENT_DATA, 1, 900, reason="1 row | is few."),
        Segment("later", None, State.INSUFFICIENT_DATA, 40, 0, reason="Known from the next on."),
    ]
    known = evidence(NAMES, segments=tuple(segments))
    return replace(known, joint_drift=replace(drift("joint"), test=f"{NAMES[0]} with b, blocks"))


def test_a_status_reads_back_with_its_segments_and_one_of_before_has_none():
    known = look(moved(NEW, "small", 1.2), segments=("shop", "open"))
    content = json.loads(json.dumps(to_status(known), allow_nan=False))
    small = content["segments"][2]
    assert (small["column"], small["level"], small["verdict"]) == ("shop", "small", "drift")
    assert small["furthest"] == "sales"
    assert small["distance"] > small["threshold"]
    tiny = content["segments"][3]
    assert (tiny["furthest"], tiny["distance"]) == (None, None)
    assert from_status(content).segments == known.segments
    del content["segments"]
    assert from_status(content).segments == ()


def test_no_name_of_a_segment_can_act_in_the_report():
    known = hostile()
    found = findings(to_status(known), known.shapes, known.importance, (), Monitor())
    content = page(found, picture="None.", drift_report="drift_report.html")
    read = Reader(content)
    assert read.sound
    assert not {"script", "img", "iframe"} & {name for name, _ in read.tags}
    for raw in ("\u202e", "\u2066", "\x00", "<img"):
        assert raw not in content.decode()
    text = " ".join("".join(read.text).split())
    assert "few | rows1 row | is few." in text
    assert "6 segments were judged, each at 0.167 %" in text
    assert "3 of the segments are not calibrated" in text


def test_the_report_shows_what_drifted_together():
    known = hostile()
    found = findings(to_status(known), known.shapes, known.importance, (), Monitor())["found"]
    assert any(text.startswith("All together drifted (</script>") for text in found)


def test_the_summary_shows_segments_and_what_drifted_together_and_no_name_can_act():
    text = summary(hostile())
    assert "### Segments" in text
    assert "| 40 |" in text
    assert "<" not in text
    assert "\x00" not in text
    assert "- later: Known from the next on." in text
    assert "few &#124; rows: 1 row &#124; is few." in text
    (together,) = [line for line in text.splitlines() if line.startswith("| together: ")]
    assert together.endswith("| 0.3 | 0.1 | 0.0001 | **yes** |  |")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {7, 8}
    assert "Segments" not in summary(evidence())


def test_the_terminal_lists_segments_that_drifted_and_counts_the_others(capsys, tmp_path):
    known = look(moved(NEW, "small", 1.2), segments=("shop", "open"))
    screen.evidence(known, tmp_path, as_json=False)
    said = capsys.readouterr().out
    assert "shop = small" in said
    assert "shop = big" not in said
    assert "segments: 1 drift, 1 insufficient_data, 4 stable" in said
    bare = replace(hostile(), columns=(), findings=(), reason="Moved.")
    screen.evidence(bare, tmp_path, as_json=False)
    said = capsys.readouterr().out
    assert "\x00" not in said
    assert "later, 40 rows: Known from the next on." in said
    screen.evidence(evidence(("a",)), tmp_path, as_json=False)
    assert "segments" not in capsys.readouterr().out


# --- in a project ---

NAMED = """
[monitor]
segments = ["city", "member"]
"""


@pytest.fixture(scope="module")
def traffic():
    return stream(shift=0)


def test_a_release_carries_its_segments_and_a_look_shows_them(tmp_path, traffic):
    root = make(tmp_path, days(traffic, 0, LOADED), more=NAMED)
    with turning(root, InProcess(), LOADED) as loop:
        loop.train()
        champion = loop.releases.champion()
        held = Levels.from_bytes(loop.releases.object(champion, "segments"))
        reference = Profile.from_bytes(loop.releases.object(champion, "reference"))
    assert held.columns == ("city", "member")
    assert held.rows == reference.rows == champion.manifest["training"]["rows"]
    for name in held.columns:
        column, counts = reference.column(name)
        known = counts.sum(axis=0)[: column.cells - 2 if name == "city" else 2]
        assert sorted(level.rows for level in held.within(name)) == sorted(known[known > 0])
    serve(root, days(traffic, LOADED, LOADED + 7))
    with turning(root, InProcess(), LOADED + 7) as loop:
        found = loop.monitor()
    told = json.loads((root / "reports" / "drift_status.json").read_text())["segments"]
    assert {(s["column"], s["level"]) for s in told} == {
        (s.column, s.level) for s in found.segments
    }
    assert {s["column"] for s in told} == {"city", "member"}
    assert any(s["furthest"] for s in told)
    assert "<h2>Segments</h2>" in (root / "reports" / "monitor_report.html").read_text()


def test_a_column_named_later_is_known_from_the_next_release_on(tmp_path, traffic):
    root = make(tmp_path, days(traffic, 0, LOADED))
    with turning(root, InProcess(), LOADED) as loop:
        loop.train()
        assert "segments" not in loop.releases.champion().manifest["objects"]
    serve(root, days(traffic, LOADED, LOADED + 14))
    named = {"monitor": {"segments": ["city"]}}
    with turning(root, InProcess(), LOADED + 14, **named) as loop:
        (told,) = loop.monitor().segments
        assert "released before 'city' was named" in told.reason
        promoted_unjudged(loop)
        assert loop.monitor().segments[0].level is not None


def test_a_first_training_refuses_a_segment_that_is_no_feature_and_a_later_one_goes_on(
    tmp_path, traffic
):
    root = make(tmp_path, days(traffic, 0, LOADED))
    wrong = {"monitor": {"segments": ["amount"]}}
    with turning(root, InProcess(), LOADED, **wrong) as loop:
        with pytest.raises(SchemaError, match="'amount': that is no categorical or boolean"):
            loop.train()
        assert loop.releases.champion() is None
    with turning(root, InProcess(), LOADED) as loop:
        loop.train()
    serve(root, days(traffic, LOADED, min(DAYS, LOADED + 14)))
    with turning(root, InProcess(), LOADED + 14, **wrong) as loop:
        promoted_unjudged(loop)
        found = loop.monitor()
    assert [f.check for f in found.findings if f.column == "amount"] == ["unknown_segment"]
