"""Pins, and the orders that the loop carries out between its turns."""

from __future__ import annotations

import json
import pickle
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
from loop_fixtures import Heard
from remedy_fixtures import FIRST, Stage, binary, changed
from serving_fixtures import until
from sklearn.metrics import log_loss

from homeostat.errors import HomeostatError, ReleaseError
from homeostat.notes import Order, orders
from homeostat.orders import REFUSED, carry_out
from homeostat.records import Action
from homeostat.schema import Schema
from homeostat.scoring import Scorer
from homeostat.testing import FakeClock, served_rows
from homeostat.wall.turns import Turns

TRUTH = changed(binary(), binary(bias=2.0), FIRST + 1)
AT = "2026-01-01T00:00:00+00:00"


def staged(tmp_path, **decide):
    stage = Stage(tmp_path, TRUTH, settings={"decide": {"growth": 0, **decide}})
    stage.loop = stage.turning(alerts=Heard(), beside=True)
    return stage


@pytest.fixture
def stage(tmp_path):
    """A stream whose labels change, so that a map is called for."""
    return staged(tmp_path)


@pytest.fixture
def waiting(tmp_path):
    """The same until a map waits for an approval."""
    stage = staged(tmp_path, mode="approve")
    while not stage.bodies("waiting"):
        stage.turn()
    return stage


def test_while_the_champion_is_pinned_nothing_is_done_and_the_reason_names_who_pinned_it(stage):
    champion = stage.releases.champion().id
    stage.loop.pin("ada")
    outcomes = stage.turn(5)
    held = [outcome.decision for outcome in outcomes if outcome.decision.trigger == "pinned"]
    assert held
    assert all(decision.action is Action.HOLD for decision in held)
    assert "ada pinned the champion" in held[0].reason
    assert stage.releases.champion().id == champion
    assert stage.bodies("pinned") == [{"release": champion, "by": "ada"}]


def test_once_it_is_unpinned_the_loop_acts_again(stage):
    stage.loop.pin("ada")
    stage.turn(4)
    stage.loop.pin("ben", pinned=False)
    outcomes = stage.turn(2)
    assert any(outcome.promoted for outcome in outcomes)
    assert stage.audit.past().pinned is None


def test_a_training_that_is_asked_for_waits_as_well(stage):
    stage.loop.pin("ada")
    outcome = stage.loop.retrain(force=True)
    assert (outcome.decision.action, outcome.decision.trigger) == (Action.HOLD, "pinned")
    assert stage.bodies("trained") == []


def test_what_waits_cannot_be_approved_while_the_champion_is_pinned(waiting):
    waiting.loop.pin("ada")
    with pytest.raises(ReleaseError, match="pinned"):
        waiting.loop.approve(waiting.bodies("waiting")[0]["release"], "ben")
    assert waiting.bodies("approved") == []


def test_a_rollback_that_is_asked_for_moves_the_pin_to_what_serves_then(waiting):
    first = waiting.releases.champion().id
    waiting.loop.approve(waiting.bodies("waiting")[0]["release"], "ada")
    waiting.loop.pin("ada")
    waiting.loop.roll_back(by="ben")
    assert waiting.releases.champion().id == first
    assert waiting.bodies("rolled_back")[0]["by"] == "ben"
    assert waiting.audit.past().pinned == "ada"


def test_a_pin_is_set_once_and_taken_once(stage):
    with pytest.raises(ReleaseError, match="not pinned"):
        stage.loop.pin("ada", pinned=False)
    stage.loop.pin("ada")
    with pytest.raises(ReleaseError, match="pinned already"):
        stage.loop.pin("ben")


def test_the_first_release_is_told_beside_the_champion_on_the_same_rows(stage):
    first = stage.releases.champion()
    while stage.releases.champion().id == first.id:
        stage.turn()
    (outcome,) = stage.turn()
    told = outcome.evidence.performance
    schema = Schema.from_json(stage.releases.object(first, "schema"))
    frame = stage._week(stage.number - 1)
    model = pickle.loads(stage.releases.object(first, "model"))
    output = Scorer(model, schema).output(served_rows(frame, schema))
    assert told.first_release.rows == told.realised.rows == len(frame)
    assert told.first_release.value == pytest.approx(log_loss(frame["target"], output), rel=1e-6)
    kept = stage.bodies("decided")[-1]["evidence"]["performance"]["first_release"]
    assert kept[0] == pytest.approx(told.first_release.value, rel=1e-3)


def test_where_the_first_release_serves_it_is_not_told_twice(stage):
    (outcome,) = stage.turn()
    assert outcome.evidence.performance.first_release is None


def test_a_first_release_that_cannot_be_scored_changes_no_verdict_and_says_why(stage):
    first = stage.releases.champion()
    while stage.releases.champion().id == first.id:
        stage.turn()
    whole = stage.releases.object

    def gone(release, name):
        if release.id == first.id and name == "schema":
            raise ReleaseError("it is gone.")
        return whole(release, name)

    stage.releases.object = gone
    (outcome,) = stage.turn()
    assert outcome.evidence.performance.realised is not None
    assert outcome.evidence.performance.first_release is None
    assert stage.bodies("beside_failed") == [{"reason": "it is gone."}]


# --- orders ---


@pytest.fixture
def notes(tmp_path):
    return orders(tmp_path / ".homeostat")


def test_an_order_is_carried_out_by_who_asked_and_is_gone_then(waiting, notes):
    champion, waits = waiting.releases.champion().id, waiting.bodies("waiting")[0]["release"]
    notes.leave(Order("approve", waits, champion, "ada", AT))
    assert carry_out(waiting.loop, notes) == 1
    assert waiting.releases.champion().id == waits
    assert waiting.bodies("approved") == [{"release": waits, "by": "ada"}]
    notes.leave(Order("roll_back", champion, waits, "ben", AT))
    carry_out(waiting.loop, notes)
    assert waiting.releases.champion().id == champion
    assert waiting.bodies("rolled_back")[0]["by"] == "ben"
    assert notes.found() == {}


def test_orders_are_carried_out_in_the_order_in_which_they_were_given(stage, notes):
    champion = stage.releases.champion().id
    notes.leave(Order("unpin", champion, champion, "ada", "2026-01-01T00:00:02+00:00"))
    notes.leave(Order("pin", champion, champion, "ada", "2026-01-01T00:00:01+00:00"))
    carry_out(stage.loop, notes)
    assert [line["kind"] for line in stage.audit.lines()][-2:] == ["pinned", "unpinned"]


@pytest.mark.parametrize(
    ("action", "served", "why"),
    [("roll_back", "another", "another release serves"), ("eat", None, "no order")],
)
def test_an_order_that_cannot_be_done_changes_nothing_and_says_why(
    stage, notes, action, served, why
):
    champion = stage.releases.champion().id
    notes.leave(Order(action, champion, served or champion, "ada", AT))
    carry_out(stage.loop, notes)
    assert stage.releases.champion().id == champion
    (told,) = stage.bodies(REFUSED)
    assert (told["by"], told["action"]) == ("ada", action)
    assert why in told["reason"]
    assert notes.found() == {}


def test_an_order_that_was_left_for_longer_than_a_day_is_void_and_says_so(stage, notes):
    champion = stage.releases.champion().id
    late = (stage.clock.now() - timedelta(days=2)).isoformat()
    notes.leave(Order("pin", champion, champion, "ada", late))
    carry_out(stage.loop, notes)
    assert stage.audit.past().pinned is None
    assert "more than a day ago" in stage.bodies(REFUSED)[0]["reason"]


def test_an_order_whose_loop_was_killed_before_it_was_cleared_away_is_not_refused_afterwards(
    waiting, notes
):
    champion, waits = waiting.releases.champion().id, waiting.bodies("waiting")[0]["release"]
    order = Order("approve", waits, champion, "ada", waiting.clock.now().isoformat())
    notes.leave(order)
    carry_out(waiting.loop, notes)
    notes.leave(order)
    carry_out(waiting.loop, notes)
    assert waiting.bodies("approved") == [{"release": waits, "by": "ada"}]
    assert waiting.bodies(REFUSED) == []


def test_a_file_that_is_no_order_is_cleared_away(stage, notes, tmp_path):
    folder = tmp_path / ".homeostat" / "orders"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text(json.dumps({"format": 1, "action": ["pin"]}))
    before = len(stage.audit.lines())
    assert carry_out(stage.loop, notes) == 1
    assert notes.found() == {}
    assert len(stage.audit.lines()) == before


# --- turns ---


class Taken:
    """Stands in for a project's loop: counts steps, and may be held by another process."""

    def __init__(self, loop):
        self.loop = loop
        self.steps = 0
        self.refusals = 0  # times that the lock is taken still
        self.stepped = threading.Event()

    @contextmanager
    def __call__(self):
        if self.refusals:
            self.refusals -= 1
            raise HomeostatError("another turn runs.")
        yield replace(self.loop)

    def step(self):
        self.steps += 1


@pytest.fixture
def turns(stage, notes, monkeypatch):
    """Turns of a loop whose steps are only counted, in a thread; ended with the test."""
    taken, said = Taken(stage.loop), []
    monkeypatch.setattr("homeostat.loop.Loop.step", lambda self: taken.step())
    made = Turns(taken, notes, FakeClock(), timedelta(days=1))

    def waits(_):
        taken.stepped.set()

    def run():
        made.run(lambda outcome: None, lambda error: said.append(str(error)), waits)

    thread = threading.Thread(target=run)
    yield SimpleNamespace(made=made, taken=taken, thread=thread, said=said, stage=stage)
    made.stop()
    thread.join(30)
    assert not thread.is_alive()


def asked(turns, notes):
    champion = turns.stage.releases.champion().id
    notes.leave(Order("pin", champion, champion, "ada", AT))
    turns.made.wake()
    until(lambda: not notes.found(), what="the order to be carried out")


def test_an_order_does_not_wait_for_the_next_step(turns, notes):
    turns.thread.start()
    assert turns.taken.stepped.wait(30)
    assert turns.made.doing.next is not None
    asked(turns, notes)
    assert turns.stage.audit.past().pinned == "ada"
    assert turns.taken.steps == 1


def test_an_order_does_not_wait_behind_a_step_however_long_each_of_them_takes(turns, notes):
    clock, every = turns.made.clock, timedelta(days=1)
    step, pins = turns.taken.step, []

    def long():
        step()
        pins.append(turns.stage.audit.past().pinned)
        clock.advance(2 * every)  # the next one is due at once
        if turns.taken.steps == 1:
            champion = turns.stage.releases.champion().id
            notes.leave(Order("pin", champion, champion, "ada", AT))
        elif turns.taken.steps == 3:
            turns.made.stop()

    turns.taken.step = long
    turns.thread.start()
    turns.thread.join(30)
    assert pins == [None, "ada", "ada"]


def test_an_order_waits_while_another_process_takes_its_turn(turns, notes):
    turns.thread.start()
    assert turns.taken.stepped.wait(30)
    turns.taken.refusals = 1
    asked(turns, notes)
    assert turns.taken.refusals == 0
    assert turns.stage.audit.past().pinned == "ada"


def test_a_step_that_does_not_come_about_is_told_and_the_next_one_is_awaited(turns):
    turns.taken.refusals = 1
    turns.thread.start()
    assert turns.taken.stepped.wait(30)
    assert turns.said == ["another turn runs."]
    assert turns.made.doing.problem == "another turn runs."
    assert turns.taken.steps == 0
