import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_fixtures import InProcess
from report_fixtures import NAMES, NOW, calm, drift

from homeostat import report
from homeostat.draw import harmless
from homeostat.engines.local import LocalEngine
from homeostat.errors import EngineError
from homeostat.monitor import Subject, examine
from homeostat.plot import plot
from homeostat.profile import Profile
from homeostat.records import (
    Action,
    ColumnDrift,
    Decision,
    Finding,
    Hurts,
    Interval,
    Outcome,
    Performance,
    Shape,
    Staleness,
    State,
    Verdict,
)
from homeostat.report import FileReporter, from_status, summary, to_status
from homeostat.schema import Feature, Schema, Target
from homeostat.settings import Monitor

HOSTILE = NAMES[0]
SCHEMA = Schema(
    (
        Feature("temp", "number"),
        Feature(HOSTILE, "category"),
        Feature("site|`*_{{7*7}}\\", "number"),
        Feature("site|`*_{{7*7}}/", "boolean"),
        Feature("empty", "number"),
        Feature("absent", "category"),
        Feature("huge", "number"),
        Feature("many", "category"),
    ),
    Target("y", "binary", "bool", ("false", "true")),
)
EVIDENCE = calm()


class Dead(InProcess):
    def run(self, function, *args, **kwargs):
        raise EngineError("the child process died <during> draw")


def rows(count, shift=0.0, huge=1.0):
    rng = np.random.default_rng(count)
    return pa.table(
        {
            "temp": rng.normal(shift, size=count),
            HOSTILE: rng.choice([HOSTILE, "<b>", "\u202e", "c" * 200], count),
            SCHEMA.names[2]: rng.normal(size=count),
            SCHEMA.names[3]: rng.random(count) < 0.5,
            "empty": pa.nulls(count, pa.float64()),
            "huge": rng.choice([-1e308, 1e308], count) * huge,
            "many": [f"v{i}" for i in range(count)],
            "prediction_id": ["secret"] * count,
        }
    )


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(timeout=timedelta(minutes=3), memory=None) as engine:
        yield engine


@pytest.fixture(scope="module")
def drawn(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    reporter = FileReporter(folder, engine, sample=300, seed=0)
    return folder, reporter.evidently(rows(900), rows(400, shift=1.0), SCHEMA)


def test_evidently_answers_under_the_original_names(drawn):
    _, numbers = drawn
    assert numbers["left_out"] == ["empty", "absent", "huge"]
    assert set(numbers["columns"]) == set(SCHEMA.names) - set(numbers["left_out"])
    assert numbers["columns"]["temp"]["method"] == "K-S p_value"
    assert numbers["columns"]["temp"]["drifted"] is True
    assert numbers["columns"][SCHEMA.names[2]]["drifted"] is False
    drifted = sum(column["drifted"] for column in numbers["columns"].values())
    assert numbers["drifted_share"] == pytest.approx(drifted / 5)
    assert numbers["dataset_drift"] is (numbers["drifted_share"] >= 0.5)
    assert numbers["rows"] == {"reference": 300, "current": 300}


def test_hostile_names_and_levels_never_reach_the_html(drawn):
    folder, numbers = drawn
    page = (folder / numbers["report"]).read_text()
    for raw in ("alert(1)", "<img src=x", "</script><img", "<b>", "{{7*7}}", "\u202e", "secret"):
        assert raw not in page
    assert "temp" in page


def test_the_html_loads_nothing_from_elsewhere(drawn):
    folder, numbers = drawn
    page = (folder / numbers["report"]).read_text()
    for tag in ('<script src="http', "<link ", 'url("http', "url(http"):
        assert tag not in page


def test_the_same_rows_and_seed_give_the_same_numbers(engine, drawn, tmp_path):
    again = FileReporter(tmp_path, engine, sample=300, seed=0)
    assert again.evidently(rows(900), rows(400, shift=1.0), SCHEMA) == drawn[1]


def test_where_evidently_fails_the_html_says_so(tmp_path):
    numbers = FileReporter(tmp_path, Dead(), sample=300, seed=0).evidently(
        rows(50), rows(50), SCHEMA
    )
    assert numbers == {"error": "the child process died <during> draw"}
    page = (tmp_path / "drift_report.html").read_text()
    assert "died &lt;during&gt; draw" in page


def test_no_comparable_column_is_an_error_and_no_exception(tmp_path):
    reporter = FileReporter(tmp_path, InProcess(), sample=300, seed=0)
    nothing = rows(50).select(["empty"])
    assert reporter.evidently(nothing, nothing, SCHEMA) == {
        "error": "there is no column that Evidently can compare."
    }


def test_a_disk_that_refuses_is_reported_and_not_raised(tmp_path):
    (tmp_path / "file").write_text("")
    reporter = FileReporter(tmp_path / "file", Dead(), sample=300, seed=0)
    assert "nor could it be said" in reporter.evidently(rows(50), rows(50), SCHEMA)["error"]


@given(st.lists(st.text(), unique=True, max_size=30))
def test_harmless_names_are_unique_and_cannot_act(names):
    shown = harmless(names)
    assert list(shown) == names
    assert len(set(shown.values())) == len(names)
    for text in shown.values():
        assert text
        assert not set(text) & set("<>&\"'`\\{}()[]|$\n\r\t=;/")


NUMBERS = Schema(
    (Feature("temp", "number", edges=(-1.0, 0.0, 1.0)), Feature("wind", "number", edges=(0.0,))),
    Target("y", "binary", "bool", ("false", "true")),
)


def measured(count, shift, day):
    """Served rows of one day: `temp` and `wind`, both moved by `shift`."""
    draw = np.random.default_rng(count)
    moments = [day + timedelta(seconds=place) for place in range(count)]
    return pa.table(
        {
            "occurred_at": pa.array(moments, pa.timestamp("us", "UTC")),
            "model_version": ["r1"] * count,
            "probability": draw.random(count),
            "temp": draw.normal(shift, size=count),
            "wind": draw.normal(shift, size=count),
        }
    )


@pytest.mark.parametrize(("shift", "state"), [(0.0, State.STABLE), (1.0, State.DRIFT)])
def test_evidently_itself_decides_where_settings_say_so(engine, tmp_path, shift, state):
    old = measured(900, 0.0, NOW - timedelta(days=9))
    subject = Subject("r1", NUMBERS, Profile.of(old, NUMBERS, block=timedelta(days=1)), old, None)
    evidence = examine(
        subject,
        measured(400, shift, NOW - timedelta(days=1)),
        EVIDENCE.window,
        refused={},
        last=None,
        # With ours deciding nothing would ever drift.
        settings=Monitor(detector="evidently", min_effect=1.0),
        mature_until=NOW,
        now=NOW,
        reporter=FileReporter(tmp_path, engine, sample=300, seed=0),
    )
    assert (evidence.state, evidence.data_drift) == (state, bool(shift))
    assert [column.drifted for column in evidence.columns] == [bool(shift)] * 2
    assert evidence.evidently["dataset_drift"] is bool(shift)
    assert (tmp_path / evidence.evidently["report"]).stat().st_size > 100_000


class Drawing(InProcess):
    """An engine in which only the picture is drawn."""

    def run(self, function, *args, **kwargs):
        assert function is plot
        return b"picture"


def shaped():
    shape = Shape("temp", ("low", "null"), (0.5, 0.5), (0.9, 0.1))
    return replace(full(), shapes=(shape,), importance={"temp": 0.1})


def reported(folder, evidence, engine=None):
    """The page and the picture that stand beside the status."""
    FileReporter(folder, engine or Drawing(), sample=300, seed=0).status(evidence)
    picture = folder / "monitor_report.png"
    page = (folder / "monitor_report.html").read_text()
    return page, picture.read_bytes() if picture.exists() else None


def test_our_report_stands_beside_evidentlys_with_its_picture(tmp_path):
    page, picture = reported(tmp_path, shaped())
    assert "The data drifted" in page
    assert 'href="drift_report.html"' in page
    assert picture == b"picture"
    assert "monitor_report.png" in page


def test_without_matplotlib_the_page_is_whole_and_says_why_there_is_no_picture(
    tmp_path, monkeypatch
):
    reported(tmp_path, shaped())
    monkeypatch.setattr(report, "can_draw", lambda: False)
    page, picture = reported(tmp_path, shaped())
    assert picture is None
    assert "it needs matplotlib, which homeostat[demo] brings" in page
    assert "<svg" in page


def test_a_picture_that_cannot_be_drawn_or_has_nothing_to_show_leaves_no_old_one(tmp_path):
    reported(tmp_path, shaped())
    page, picture = reported(tmp_path, shaped(), Dead())
    assert picture is None
    assert "the child process died &lt;during&gt; draw" in page
    reported(tmp_path, shaped())
    page, picture = reported(tmp_path, replace(EVIDENCE, state=State.FAILED, reason="It broke."))
    assert picture is None
    assert "The look failed" in page
    assert "It broke." in page


def test_a_look_that_draws_nothing_anew_leaves_the_picture_and_says_so(tmp_path):
    reported(tmp_path, shaped())
    skipped = replace(shaped(), evidently={"skipped": "sparing"})
    page, picture = reported(tmp_path, skipped, Dead())
    assert picture == b"picture"
    assert "was left as it was" in page


def test_a_report_that_fails_leaves_the_status_and_says_that_it_failed(tmp_path, caplog):
    def broken():
        raise OSError("no chain")

    reported(tmp_path, shaped())
    FileReporter(tmp_path, Drawing(), sample=300, seed=0, lines=broken).status(EVIDENCE)
    page = (tmp_path / "monitor_report.html").read_text()
    assert "The report could not be drawn" in page
    assert not (tmp_path / "monitor_report.png").exists()
    assert json.loads((tmp_path / "drift_status.json").read_text())["verdict"] == "stable"
    assert "No monitor_report.html" in caplog.text


def test_where_evidently_was_not_asked_the_html_gives_the_reason(tmp_path):
    reporter = FileReporter(tmp_path, InProcess(), sample=300, seed=0)
    reporter.status(replace(EVIDENCE, reason="Only 3 rows & <none> of them good."))
    page = (tmp_path / "drift_report.html").read_text()
    assert "Only 3 rows &amp; &lt;none&gt; of them good." in page
    assert reporter.last().reason == "Only 3 rows & <none> of them good."


def test_the_status_has_the_keys_of_its_contract(tmp_path):
    reporter = FileReporter(tmp_path, InProcess(), sample=300, seed=0)
    reporter.status(full())
    status = json.loads((tmp_path / "drift_status.json").read_text())
    assert status["schema_version"] == 1
    assert status["data_drift"] is True
    assert status["carried_over"] is False
    assert status["verdict"] == "drift"
    assert status["hurts"] == "yes"
    assert set(status["window"]) == {"start", "end", "rows", "labelled", "refused"}
    assert status["reference"] == {"release": "a" * 64, "rows": 10_000, "blocks": 100}
    assert status["features"][HOSTILE]["distance"] == 0.3
    assert status["features"][HOSTILE]["quality"][0]["check"] == "null_spike"
    assert status["performance"]["realised"]["value"] == 0.5
    assert status["prediction_drift"]["drifted"] is False
    assert "homeostat" in status["versions"] or "numpy" in status["versions"]


def full():
    moved, still = drift(HOSTILE), drift("temp", 0.05, windows=0)
    interval = Interval(0.5, 0.4, 0.6, 500, 7)
    return replace(
        EVIDENCE,
        state=State.DRIFT,
        data_drift=True,
        hurts=Hurts.YES,
        columns=(moved, still),
        findings=(
            Finding("refused_rows", "warn", None, 0.1, 0.05, "10% were refused."),
            Finding("null_spike", "warn", HOSTILE, 0.2, 0.1, "Nulls rose."),
            Finding("empty_column", "block", "gone", 1.0, 0.1, "All null."),
        ),
        prediction_drift=replace(still, column="prediction"),
        joint_drift=replace(moved, column="joint"),
        false_alarms_per_year=0.52,
        performance=Performance(
            "log_loss",
            interval,
            None,
            {"labelled_share": 0.7},
            estimated=interval,
            measures={"auc": replace(interval, low=None, high=None)},
            estimates={"brier": interval},
            record={"windows": 6.0, "error": 0.01},
            labelled_by_score=(0.5, 1.0),
            lag_days=7.0,
            harm_by="estimate",
        ),
        staleness=Staleness(0.02, 0.01, 0.03, 700, 7, "log_loss"),
        evidently={"drifted_share": 0.5, "dataset_drift": True, "columns": {}},
    )


FINITE = st.floats(allow_nan=False, allow_infinity=False)
DRIFT = st.builds(ColumnDrift, *[st.text()] * 2, *[FINITE] * 4, st.booleans(), FINITE, st.just(3))
BOUND = st.none() | FINITE
INTERVAL = st.none() | st.builds(Interval, FINITE, BOUND, BOUND, st.just(9), st.just(5))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(DRIFT, unique_by=lambda d: d.column, max_size=4),
    st.sampled_from(list(State)),
    st.none() | st.builds(Performance, st.just("rmse"), INTERVAL, INTERVAL, st.just({"mae": 1.0})),
    st.text(),
)
def test_a_status_reads_back_as_the_evidence_it_was_made_of(columns, state, judged, reason):
    base = full()
    findings = [base.findings[0], *(replace(base.findings[1], column=d.column) for d in columns)]
    evidence = replace(
        base,
        columns=tuple(columns),
        findings=tuple(findings),
        state=state,
        performance=judged,
        reason=reason,
    )
    assert from_status(json.loads(json.dumps(to_status(evidence)))) == evidence


def test_numbers_that_are_not_finite_become_null(tmp_path):
    reporter = FileReporter(tmp_path, InProcess(), sample=300, seed=0)
    reporter.status(replace(full(), evidently={"columns": {"x": {"value": float("nan")}}}))
    assert reporter.last().evidently == {"columns": {"x": {"value": None}}}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"schema_version": 2}', b'{"schema_version": 1}'],
)
def test_a_status_that_cannot_be_read_is_none(tmp_path, content):
    reporter = FileReporter(tmp_path, InProcess(), sample=300, seed=0)
    assert reporter.last() is None
    (tmp_path / "drift_status.json").write_bytes(content)
    assert reporter.last() is None


def test_a_flag_that_is_not_one_is_not_read_as_no_drift():
    for flag in (None, "false", 0):
        with pytest.raises(TypeError, match="true or false"):
            from_status(to_status(full()) | {"data_drift": flag})


def test_the_summary_shows_drift_and_gate_and_no_name_can_act():
    verdict = Verdict(False, "Not better.", "log_loss", 0.5, 0.51, 0.01, -0.01, 0.03, 900, 7, None)
    decision = Decision(Action.RETRAIN, "drift", f"{HOSTILE} | drifted, see www.example.com")
    text = summary(Outcome(NOW, decision, full(), verdict))
    assert "## Drift: drift" in text
    assert "## Decision: retrain" in text
    assert "## Gate: champion kept" in text
    assert "| 0.3 | 0.1 | 0.0001 | **yes** | warn&#58; null&#95;spike |" in text
    assert "| 0.5 | 0.51 | 0.01 | -0.01 to 0.03 | 900 | 7 |" in text
    assert "<" not in text
    assert "www.example" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {7, 8}


def test_the_summary_of_evidence_alone_has_no_gate():
    text = summary(EVIDENCE)
    assert text.startswith("## Drift: stable\n\nNothing moved.")
    assert "Gate" not in text
