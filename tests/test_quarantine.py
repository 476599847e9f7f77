from datetime import UTC, datetime, timedelta

import loop_fixtures as fixtures
import pyarrow as pa
import pytest
from report_fixtures import calm
from typer.testing import CliRunner

from homeostat import quarantine
from homeostat.cli import app
from homeostat.errors import HomeostatError
from homeostat.memory import MemoryAudit
from homeostat.records import Action, Finding, State, Window
from homeostat.schema import TIMESTAMP, Feature, Schema, Target

DAY = timedelta(days=1)
START = datetime(2025, 1, 1, tzinfo=UTC)
SCHEMA = Schema((Feature("temp", "number"),), Target("y", "binary", "bool", ("false", "true")))
OTHER = Schema((Feature("wind", "number"),), Target("y", "binary", "bool", ("false", "true")))


def days(first, last):
    return Window(START + first * DAY, START + last * DAY)


def evidence(first, last, column=None, *, severity="block", check="null_spike"):
    state = State.BROKEN_DATA if severity == "block" else State.STABLE
    finding = Finding(check, severity, column, 1.0, 0.5, "It is broken.")
    return calm(
        window=days(first, last), release="r1", state=state, carried_over=True, findings=(finding,)
    )


def rows():
    """One row a day for ten days, those of the first two from `load()`."""
    return pa.table(
        {
            "occurred_at": pa.array([START + i * DAY for i in range(10)], TIMESTAMP),
            "source": ["load"] * 2 + ["serve"] * 8,
            "day": list(range(10)),
        }
    )


def left(audit, schema=SCHEMA):
    return quarantine.sound(rows(), audit, schema)["day"].to_pylist()


def test_served_rows_of_a_broken_window_are_left_out_and_loaded_ones_are_not():
    audit = MemoryAudit()
    found = quarantine.hold(audit, evidence(0, 4), START)
    assert left(audit) == [0, 1, 4, 5, 6, 7, 8, 9]
    assert [each.window for each in found.quarantined] == [days(0, 4)]
    assert quarantine.left_out(rows(), audit, SCHEMA, START).num_rows == 8
    assert audit.lines()[-1]["body"]["rows"] == 2


def test_what_only_warns_and_what_says_nothing_against_rows_is_not_quarantined():
    audit = MemoryAudit()
    quarantine.hold(audit, evidence(0, 4, severity="warn"), START)
    quarantine.hold(audit, evidence(0, 4, check="stale_feed"), START)
    assert audit.lines() == ()


def test_a_broken_column_keeps_its_rows_from_models_that_have_it():
    audit = MemoryAudit()
    quarantine.hold(audit, evidence(2, 5, "temp"), START)
    assert left(audit) == [0, 1, 5, 6, 7, 8, 9]
    assert left(audit, OTHER) == list(range(10))


def test_only_the_new_part_of_a_later_window_is_added():
    audit = MemoryAudit()
    quarantine.hold(audit, evidence(2, 5, "temp"), START)
    quarantine.hold(audit, evidence(2, 5, "temp"), START + DAY)
    found = quarantine.hold(audit, evidence(3, 6, "temp"), START + DAY)
    assert [each.window for each in found.quarantined] == [days(2, 5), days(5, 6)]
    # That the whole window is broken says more than that one of its columns is.
    whole = quarantine.hold(audit, evidence(3, 6), START + DAY)
    assert [each.columns for each in whole.quarantined] == [("temp",), ("temp",), ()]


def test_what_was_released_stays_so_though_the_window_still_looks_broken():
    audit = MemoryAudit()
    (held,) = quarantine.hold(audit, evidence(2, 5), START).quarantined
    assert quarantine.release(audit, [held.id[:4]], "it was a holiday", START) == (held,)
    assert left(audit) == list(range(10))
    again = quarantine.hold(audit, evidence(2, 6), START + DAY)
    assert [each.window for each in again.quarantined] == [days(5, 6)]
    released = next(line for line in audit.lines() if line["kind"] == quarantine.RELEASED)
    assert released["body"]["reason"] == "Released by hand: it was a holiday."


def test_an_id_that_is_not_open_releases_nothing():
    audit = MemoryAudit()
    (held,) = quarantine.hold(audit, evidence(2, 5), START).quarantined
    for unknown in ("zzz", ""):
        with pytest.raises(HomeostatError, match="0 open quarantines"):
            quarantine.release(audit, [held.id, unknown], "", START)
    assert quarantine.held(audit.lines()) == (held,)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A project that served three weeks, in the last of which `amount` was a placeholder."""
    root = tmp_path_factory.mktemp("project") / "rides"
    frame = fixtures.stream(shift=0)
    fixtures.make(root, fixtures.days(frame, 0, 14))
    with fixtures.turning(root, fixtures.InProcess(), 14) as loop:
        loop.train()
    served = fixtures.days(frame, 14, 35).copy()
    since = fixtures.START + 28 * DAY
    served.loc[served["occurred_at"] >= since, "amount"] = 1e9
    fixtures.serve(root, served)
    return root


def test_broken_data_calls_a_human_and_never_trains_or_judges(broken, tmp_path):
    root = fixtures.copied(broken, tmp_path / "rides")
    with fixtures.turning(root, fixtures.InProcess(), 35) as loop:
        outcome = loop.step()
        champion = outcome.release
        assert outcome.decision.action is Action.CALL
        assert outcome.evidence.state is State.BROKEN_DATA
        (held,) = outcome.evidence.quarantined
        assert held.columns == ("amount",)
        assert loop.reporter.last().quarantined == (held,)
        later = loop.retrain(force=True)
        assert later.verdict is None or later.verdict.window.end <= held.window.start
        assert "left_out" in [line["kind"] for line in loop.audit.lines()]
        trained = [line for line in loop.audit.lines() if line["kind"] == "trained"]
        for line in trained:
            assert line["body"]["training"]["cutoff"] <= held.window.start.isoformat()
        assert loop.releases.get(champion)


def test_the_verb_lists_and_releases_and_the_status_names_what_is_held(broken, tmp_path):
    root = fixtures.copied(broken, tmp_path / "rides")
    with fixtures.turning(root, fixtures.InProcess(), 35) as loop:
        (held,) = loop.monitor().quarantined
    run = CliRunner().invoke
    told = run(app, ["quarantine", "-p", str(root)]).output
    assert held.id in told
    assert "196" in told  # rows: a week of 28 a day
    assert held.id in run(app, ["status", "-p", str(root)]).output
    assert f'"{held.id}"' in run(app, ["status", "--json", "-p", str(root)]).output
    asked = ["quarantine", "--release", held.id, "--why", "known", "--json", "-p", str(root)]
    assert '"quarantined": []' in run(app, asked).output
    assert "Nothing is quarantined." in run(app, ["quarantine", "-p", str(root)]).output
    assert fixtures.project(root).audit.verify() > 0
    assert run(app, ["quarantine", "--all", "-p", str(root)]).exit_code == 0
