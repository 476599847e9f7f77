"""Acting alone: `homeostat run` releases by itself once a replay of its rules has won."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from loop_fixtures import (
    DAY,
    LOADED,
    CountingEngine,
    InProcess,
    bodies,
    copied,
    project,
    stream,
    trained,
)

from homeostat import autonomy, cli, settings
from homeostat.replay.advice import Merit
from homeostat.replay.result import Row
from homeostat.report import FileReporter
from homeostat.settings import Settings
from homeostat.stats import BlockMean
from homeostat.testing import START, FakeClock

WEEK = timedelta(days=7)
WON = {"every": WEEK, "windows": 20, "won": True, "reason": "It gained."}


@contextmanager
def unattended(root, day, **overrides):
    """The loop as `homeostat run` takes it, fits in this process."""
    here = project(root, **overrides)
    with here.unattended(clock=FakeClock(START + day * DAY)) as loop:
        reports = here.settings.path("reports")
        reporter = FileReporter(reports, CountingEngine(), sample=2_000, seed=0)
        yield replace(loop, trainer=here.trainer(InProcess()), reporter=reporter)


def replayed(root, **told):
    here = project(root)
    body = autonomy.told(here.settings, **{**WON, **told})
    here.audit.write(autonomy.REPLAYED, START + 28 * DAY, body)


@pytest.fixture(scope="module")
def drifted(tmp_path_factory):
    """A project whose next step promotes a challenger."""
    return trained(tmp_path_factory.mktemp("drifted") / "p", InProcess(), stream(), 28)


@pytest.fixture
def root(drifted, tmp_path):
    return copied(drifted, tmp_path / "p")


def test_without_a_replay_what_the_gate_promotes_waits_for_a_human(root):
    with unattended(root, 28) as loop:
        champion = loop.releases.champion()
        outcome = loop.step()
    assert outcome.decision.trigger == "approve"
    assert len(bodies(root, "waiting")) == 1
    assert project(root).releases.champion() == champion


def test_after_a_replay_that_won_the_challenger_serves_at_once(root):
    replayed(root)
    with unattended(root, 28) as loop:
        outcome = loop.step()
    assert outcome.promoted
    assert bodies(root, "waiting") == []


def test_where_no_proof_is_asked_for_the_challenger_serves_at_once(root):
    with unattended(root, 28, decide={"proof": "none", "recalibrate": False}) as loop:
        assert loop.step().promoted


def test_a_step_that_somebody_asked_for_needs_no_replay(root):
    with project(root).loop(clock=FakeClock(START + 28 * DAY)) as loop:
        assert loop.settings.decide.mode == "auto"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"won": False, "reason": "It may be chance."}, "did not: It may be chance."),
        ({"windows": 9}, "9 windows are fewer than 10"),
    ],
)
def test_a_replay_that_did_not_win_says_so(root, told, why):
    replayed(root, **told)
    here = project(root)
    assert why in autonomy.unearned(here.settings, here.audit.lines())


def test_of_several_replays_of_the_same_rules_the_newest_counts(root):
    here = project(root)
    replayed(root, won=False)
    replayed(root)
    assert autonomy.unearned(here.settings, here.audit.lines()) == ""
    replayed(root, won=False)
    assert autonomy.unearned(here.settings, here.audit.lines()) != ""


@pytest.mark.parametrize(
    "changed",
    [
        {"decide": {"growth": 0.5}},
        {"gate": {"delta": 0.1}},
        {"training": {"blend": 1}},
        {"monitor": {"alpha": 0.05}},
        {"labels": {"delay": "2d"}},
        {"project": {"target": "other"}},
    ],
)
def test_other_rules_have_to_be_replayed_anew(tmp_path, changed):
    plain = settings.read(tmp_path)
    other = settings.read(tmp_path, **changed)
    lines = [_line(plain)]
    assert autonomy.unearned(plain, lines) == ""
    assert "since they were changed" in autonomy.unearned(other, lines)


@pytest.mark.parametrize(
    "changed",
    [
        {"training": {"timeout": "3h"}},
        {"monitor": {"sample": 500}},
        {"serving": {"port": 9000}},
        {"alerts": {"urls": ["json://localhost"]}},
    ],
)
def test_what_no_decision_depends_on_may_change(tmp_path, changed):
    lines = [_line(settings.read(tmp_path))]
    assert autonomy.unearned(settings.read(tmp_path, **changed), lines) == ""


@pytest.mark.parametrize("mode", ["observe", "approve"])
def test_other_modes_have_nothing_to_earn(tmp_path, mode):
    assert autonomy.unearned(settings.read(tmp_path, decide={"mode": mode}), []) == ""


def test_the_mode_alone_is_held_back(tmp_path):
    plain = Settings(root=tmp_path)
    assert autonomy.held(plain).decide.mode == "approve"
    assert autonomy.rules(autonomy.held(plain)) == autonomy.rules(plain)


def test_a_replay_inside_a_project_earns_it_and_leaves_its_files_there(
    root, tmp_path, monkeypatch, capsys
):
    frame = stream(drift_at=0.4)
    frame.drop(columns="prediction_id").to_parquet(tmp_path / "rows.parquet")
    words = ["--time", "occurred_at", "--target", "target", "--every", "5d"]
    monkeypatch.chdir(root)
    status = _run(capsys, "status")
    assert "works by the mode approve: Acting alone has to be earned" in status
    told = _run(
        capsys,
        *("replay", str(tmp_path / "rows.parquet"), *words),
        *("--project", ".", "--policies", "never,homeostat"),
    )
    (body,) = bodies(root, autonomy.REPLAYED)
    assert body["won"] is True
    assert body["windows"] == len(range(14, 70, 5))
    assert "`homeostat run` may act alone." in told
    (made,) = (root / "reports" / "replays").iterdir()
    assert {row["policy"] for row in json.loads((made / "replay.json").read_text())} > {"homeostat"}
    assert "works by the mode" not in _run(capsys, "status")
    assert json.loads(_run(capsys, "status", "--json"))["unearned"] == ""


@pytest.mark.parametrize(
    ("gain", "harmful", "regret", "won", "told"),
    [
        (0.1, 0, 0.2, True, "it has earned"),
        (0.1, 2, 0.01, True, "2 of its promotions did harm and worse ones cost 8% of the gain"),
        (0.1, 1, 0.02, False, "16% of the gain: over 10%, so it has not earned"),
        (0.001, 0, 0.0, False, "may be chance"),
        (-0.1, 0, 0.0, False, "above that of never"),
    ],
)
@pytest.mark.parametrize("metric", ["log_loss", "rmse"])
def test_a_rule_wins_by_a_gain_that_is_no_chance_and_by_doing_little_harm(
    gain, harmful, regret, won, told, metric
):
    value = 0.8 if metric == "log_loss" else 0.8**0.5  # 0.8 a row
    row = Row(
        "homeostat", metric, value, gain / (0.8 + gain), None, None, 5, 1, 2, 7, harmful, regret,
        10.0, 0, False,
    )  # fmt: skip
    merit = Merit.of(row, BlockMean(gain, 0.01, 30, 900))
    assert merit.won is won
    assert told in merit.reason


def _run(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        cli.main([*words])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def _line(chosen):
    at = (START + DAY * LOADED).isoformat()
    return {"kind": autonomy.REPLAYED, "at": at, "body": autonomy.told(chosen, **WON)}
