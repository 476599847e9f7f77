"""What the report says, in which order, and how sure it says that it is."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from report_fixtures import NOW, drift, evidence, shape

from homeostat.audit import jsonable, looked
from homeostat.findings import LOOKS, findings
from homeostat.records import Finding, Hurts, Performance, State, Window
from homeostat.report import to_status
from homeostat.settings import Monitor


def found(known, lines=(), **settings):
    rules = Monitor(**settings)
    return findings(to_status(known), known.shapes, known.importance, lines, rules)


def small(**changed):
    return evidence(("a", "b", "c"), **changed)


def look(day, release="r1", kind="decided", **distances):
    window = Window(NOW - timedelta(days=day + 7), NOW - timedelta(days=day))
    columns = tuple(drift(name, distance) for name, distance in distances.items())
    about = looked(small(window=window, release=release, columns=columns))
    body = {"decision": {}, "evidence": about} if kind == "decided" else about
    return {"kind": kind, "body": jsonable(body)}


def test_columns_rank_by_distance_times_importance():
    weights = {"a": 0.001, "b": 0.5, "c": -0.2}
    ranked = found(small(importance=weights))["features"]
    assert [row["name"] for row in ranked] == ["b", "a", "c"]
    assert ranked[2]["impact"] == 0  # a column whose shuffling helps does nothing
    assert ranked[0]["impact"] == 0.201 * 0.5


def test_a_release_without_importances_ranks_by_distance_and_says_so():
    told = found(small(importance={}))
    assert [row["name"] for row in told["features"]] == ["c", "b", "a"]
    assert told["by_importance"] is False
    assert not any("matters most" in text for text in told["found"])


def test_a_column_that_was_not_tested_is_last_and_named_with_its_reason():
    broken = Finding("empty_column", "block", "b", 1.0, 0.1, "'b' is null throughout.")
    known = small(columns=(drift("a"), drift("c")), findings=(broken,))
    told = found(known)
    assert [row["name"] for row in told["features"]][-1] == "b"
    assert told["features"][-1]["impact"] is None
    assert "'b': 'b' is null throughout." in told["untested"]


def test_the_words_give_window_threshold_and_the_smallest_shift_to_be_seen():
    known = small(columns=(drift("a", 0.3, 0.1), drift("b", 0.05, 0.17), drift("c", 0.1, 0.12)))
    text = " ".join(found(known, alpha=0.05)["sure"])
    assert "2024-02-23 00:00 UTC to 2024-03-01 00:00 UTC: 700 rows, 600 of them labelled" in text
    assert "3 more were refused" in text
    assert "10,000 rows in 100 blocks" in text
    assert "(0.1, monitor.min_effect)" in text
    assert "at most 5 % of such windows" in text
    assert "larger for 1 of 3 columns" in text
    assert "called drift is 0.1 to 0.17" in text
    assert "measured on 20 stretches" in text


def test_columns_in_which_no_drift_could_be_seen_are_counted():
    known = small(columns=(drift("a", 0.9, 1.003), drift("b"), drift("c")))
    assert any(text.startswith("In 1 columns nothing") for text in found(known)["sure"])
    assert not any("nothing could have" in text for text in found(small())["sure"])


def test_what_is_not_calibrated_says_so():
    bare = tuple(drift(name, windows=0) for name in "abc")
    assert any(text.startswith("Not calibrated") for text in found(small(columns=bare))["sure"])
    short = (drift("a", windows=4, test="location, shorter stretches"),)
    assert any(
        "shorter stretches of it stood" in text for text in found(small(columns=short))["sure"]
    )
    mixed = (drift("a", windows=0), drift("b", windows=12), drift("c", windows=20))
    text = " ".join(found(small(columns=mixed))["sure"])
    assert "measured on 12 to 20 stretches" in text
    assert "For 1 of the columns it was not" in text


def test_where_evidently_decides_the_words_say_so():
    assert any("Evidently decides" in text for text in found(small(), detector="evidently")["sure"])


def test_a_window_that_could_not_be_tested_is_never_called_calm():
    for state in (State.FAILED, State.INSUFFICIENT_DATA):
        known = small(
            state=state,
            carried_over=True,
            data_drift=False,
            hurts=Hurts.UNKNOWN,
            columns=(),
            performance=None,
            prediction_drift=None,
            reason="It broke.",
        )
        told = found(known)
        assert told["title"] != "Nothing drifted"
        assert (
            "Nothing could be tested, so data_drift keeps its last value, false." in told["found"]
        )
        assert any(
            "3 columns were not compared" in text or "2 more" in text for text in told["untested"]
        )
        assert any(text.startswith("Performance: no labelled rows") for text in told["untested"])
        assert any(text.startswith("The drift of the predictions") for text in told["untested"])


def test_performance_has_its_interval_and_says_where_there_is_none():
    known = small()
    rows = found(known)["performance"]["rows"]
    assert [(row["name"], row["low"], row["high"]) for row in rows] == [
        ("realised", 0.4, 0.6),
        ("baseline", None, None),
    ]
    few = replace(known.performance.realised, low=None, high=None)
    told = found(small(performance=Performance("log_loss", few, None, {})))
    assert any("five blocks" in text for text in told["untested"])
    assert any("measured when it was released" in text for text in told["untested"])


def test_drift_over_time_comes_from_the_chain_and_the_present_look_is_its_last():
    lines = [
        look(21, a=0.05),
        {"kind": "told", "body": {"subject": "monitor"}},
        {"kind": "decided", "body": {"decision": {}, "evidence": None}},
        look(14, a=0.3, b=0.1),
        look(7, a=0.1, kind="monitored", release="a" * 64),
    ]
    heat = found(small(columns=(drift("a"),), shapes=(shape("a"),)), lines)["heat"]
    assert heat["ends"] == ["2024-02-09", "2024-02-16", "2024-02-23", "2024-03-01"]
    cells = {row["name"]: row["cells"] for row in heat["rows"]}
    assert cells["a"] == [0.5, 3.0, 1.0, 3.0]
    assert heat["begins"] == [2]


def test_a_second_look_at_one_window_takes_the_place_of_the_first():
    heat = found(small(), [look(7, a=0.1), look(7, a=0.2)])["heat"]
    assert len(heat["ends"]) == 2
    assert next(row for row in heat["rows"] if row["name"] == "a")["cells"][0] == 2.0


def test_lines_of_an_older_version_without_distances_leave_their_cells_empty():
    line = look(7, a=0.1)
    del line["body"]["evidence"]["distances"]
    heat = found(small(), [line])["heat"]
    assert heat["rows"][0]["cells"][0] is None


def test_only_the_newest_looks_are_drawn():
    heat = found(small(), [look(day, a=0.1) for day in range(100, 0, -1)])["heat"]
    assert len(heat["ends"]) == LOOKS
    assert heat["ends"][-1] == "2024-03-01"
