"""The mode `approve`: what the gate promotes waits, and a human lets it serve."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from loop_fixtures import (
    LOADED,
    Heard,
    InProcess,
    days,
    make,
    project,
    promoted_unjudged,
    serve,
    stream,
    turning,
    unjudged,
)
from remedy_fixtures import FIRST, Stage, binary, changed

from homeostat import approval, cli
from homeostat.errors import ReleaseError
from homeostat.records import Action

TRUTH = changed(binary(), binary(bias=2.0), FIRST + 1)
RULES = {"decide": {"mode": "approve", "growth": 0}}


@pytest.fixture
def stage(tmp_path):
    """A stream that calls for a map, until one waits."""
    stage = Stage(tmp_path, TRUTH, settings=RULES)
    stage.heard = Heard()
    stage.loop = stage.turning(alerts=stage.heard)
    while not stage.bodies("waiting"):
        stage.turn()
    return stage


@pytest.fixture
def drifting(tmp_path):
    """A project in files whose challenger waits."""
    frame = stream()
    root = make(tmp_path / "p", days(frame, 0, LOADED), more='mode = "approve"\n')
    with turning(root, InProcess(), LOADED) as loop:
        loop.train()
    serve(root, days(frame, LOADED, 28))
    with turning(root, InProcess(), 28) as loop:
        outcome = loop.step()
    assert outcome.decision.trigger == "approve"
    return root


def test_what_the_gate_promotes_is_stored_and_waits(stage):
    (told,) = stage.bodies("waiting")
    release = stage.releases.get(told["release"])
    champion = stage.releases.champion()
    assert release.manifest["gate"]["promote"] is True
    assert release.manifest["parent"] == champion.id != release.id
    assert [each.release for each in approval.waiting(stage.audit.lines())] == [release.id]


def test_people_are_told_once_that_a_release_waits(stage):
    stage.loop.monitor()
    titles = [title for title, _ in stage.heard.said if "waits" in title]
    waits = stage.bodies("waiting")[0]["release"]
    assert titles == [f"homeostat: release {waits[:12]} waits"]


def test_an_approved_release_serves_and_the_chain_says_who_approved(stage):
    waits = stage.bodies("waiting")[0]["release"]
    outcome = stage.loop.approve(waits[:10], "ada")
    assert outcome.promoted
    assert stage.releases.champion().id == outcome.release == waits
    assert stage.bodies("approved") == [{"release": waits, "by": "ada"}]
    assert "ada" in stage.bodies("promoted")[-1]["reason"]
    assert approval.waiting(stage.audit.lines()) == ()


def test_what_challenged_an_earlier_champion_is_void(stage):
    waits = stage.bodies("waiting")[0]["release"]
    promoted_unjudged(stage.loop)
    with pytest.raises(ReleaseError, match="does not wait"):
        stage.loop.approve(waits, "ada")
    assert stage.bodies("approved") == []


def test_a_release_that_the_gate_refused_is_never_approved(stage):
    champion = stage.releases.champion()
    held = {name: stage.releases.object(champion, name) for name in champion.manifest["objects"]}
    candidate, verdict = unjudged(stage.loop)
    refused = replace(verdict, promote=False, reason="It is worse.")
    candidate = replace(candidate, objects=held)
    release = stage.releases.add(candidate, refused, stage.clock.now())
    told = {"release": release.id, "kind": "retrain", "reason": ""}
    stage.audit.write("waiting", stage.clock.now(), told)
    with pytest.raises(ReleaseError, match="It is worse"):
        stage.loop.approve(release.id, "ada")
    assert stage.releases.champion() == champion


def test_nobody_can_approve_what_does_not_exist(stage):
    with pytest.raises(ReleaseError):
        stage.loop.approve("f" * 64, "ada")


def test_the_first_release_needs_no_approval(tmp_path):
    stage = Stage(tmp_path, TRUTH, settings=RULES)
    assert stage.releases.champion() is not None


def test_going_back_needs_no_approval(stage):
    first = stage.releases.champion().id
    stage.loop.approve(stage.bodies("waiting")[0]["release"], "ada")
    outcome = stage.loop.roll_back()
    assert (outcome.decision.action, outcome.release) == (Action.ROLL_BACK, first)


@pytest.fixture
def homeostat(capfd):
    """Runs the command line; its exit code, and what it printed."""

    def run(*words):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        told = capfd.readouterr()
        return ended.value.code or 0, " ".join((told.out + told.err).split())

    return run


def test_the_command_lists_what_waits_and_approves_it(drifting, homeostat):
    (told,) = [
        line["body"] for line in project(drifting).audit.lines() if line["kind"] == "waiting"
    ]
    short, at = told["release"][:12], ("--project", str(drifting))
    assert f"{short} (retrain) waits since" in homeostat("status", *at)[1]
    document = json.loads(homeostat("status", "--json", *at)[1])
    assert [each["release"] for each in document["waiting"]] == [told["release"]]
    assert homeostat("approve", short, "--by", "ada", *at)[0] == 0
    assert project(drifting).releases.champion().id == told["release"]
    assert "waits" not in homeostat("status", *at)[1]
    code, said = homeostat("approve", short, *at)
    assert code == 1
    assert "does not wait for approval" in said
