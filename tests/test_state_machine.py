"""Any order of predictions, labels, deaths in the middle of a record, and restarts, by two servers
on one folder, held against a model of the journal that is a dict.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from fault_findings import filed_labels, filed_rows, plain_rows, tail_labels
from fault_fixtures import row_of
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from serving_fixtures import AT, objects, promote

from homeostat.errors import ConflictError
from homeostat.journal import FileJournal
from homeostat.listening import Serving
from homeostat.predictor import Predictor
from homeostat.release import FileReleases
from homeostat.testing import FakeClock

HOUR = timedelta(hours=1)
ANSWER = ("prediction", "probability", "model_version")

wanted = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from([None, *(f"id-{n}" for n in range(6))]),
            "content": st.sampled_from(["one", "one", "one", "two"]),
            "hour": st.sampled_from([None, None, 0, 5, -5]),
        }
    ),
    min_size=1,
    max_size=4,
)
told = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["early", *(f"id-{n}" for n in range(6))]),
            "label": st.integers(0, 1),
            "hour": st.sampled_from([None, 0, 5, -5]),
        }
    ),
    min_size=1,
    max_size=3,
)
servers = st.integers(0, 1)


class Serve(RuleBasedStateMachine):
    """The model: rows by id with content, time and answer; versions of labels by id."""

    releases: FileReleases  # of a folder that all examples share

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.logs = self.root / "data" / "logs"
        self.clock = FakeClock(AT)
        self.rows: dict[str, tuple[dict, datetime, dict]] = {}
        self.tail: dict[str, tuple[dict, datetime, dict]] = {}  # what is not sealed
        self.labels: dict[str, list[tuple[str, datetime, datetime]]] = {}  # with its arrival
        self.told: dict[str, str] = {}  # the last label of an id in the tail
        self.servers = [self.started(), self.started()]

    def started(self) -> Predictor:
        server = Predictor(
            self.releases,
            FileJournal(self.logs, clock=self.clock),
            self.clock,
            serving=Serving(max_skew=None),
        )
        server.refresh()
        server.check()
        return server

    def teardown(self) -> None:
        self.the_journal_holds_the_model(FileJournal(self.logs))
        shutil.rmtree(self.root)

    # --- what may happen ---

    @rule(server=servers, asked=wanted)
    def predict(self, server, asked):
        requested, fits = self.requested(asked)
        try:
            answers = self.servers[server].predict(requested)
        except ConflictError:
            assert not fits
            return
        assert fits
        self.remember(requested, answers)

    @rule(server=servers, items=told)
    def feedback(self, server, items):
        counts = self.servers[server].feedback(self.said(items))
        written, changed = self.versions(items)
        repeated = len(items) - written
        assert counts == {"accepted": written, "repeated": repeated, "changed": changed}

    @rule(server=servers, asked=wanted, share=st.floats(0, 1))
    def die_while_predicting(self, server, asked, share):
        """The record, or the first of them, may be whole: then it counts, though nobody knows."""
        requested, fits = self.requested(asked)
        if not fits:
            return
        before = self.sizes()
        answers = self.servers[server].predict(requested)
        self.tear(before, share)
        left = {row["prediction_id"] for row in plain_rows_whole(self.logs)}
        kept = [
            (row, answer)
            for row, answer in zip(requested, answers, strict=True)
            if answer["prediction_id"] in left
        ]
        self.remember([row for row, _ in kept], [answer for _, answer in kept])
        self.servers[server] = self.started()

    @rule(server=servers, items=told, share=st.floats(0, 1))
    def die_while_taking_labels(self, server, items, share):
        before, known = self.sizes(), Counter(self.last_told())
        versions = {name: len(self.labels.get(name, ())) for name in {i["name"] for i in items}}
        self.servers[server].feedback(self.said(items))
        self.versions(items)
        self.tear(before, share)
        self.servers[server] = self.started()
        left = Counter(self.last_told())
        for name, count in versions.items():
            whole = count + left[name] - known[name]
            self.labels[name] = self.labels.get(name, [])[:whole]
            assert len(self.labels[name]) == whole >= count

    @rule(server=servers)
    def restart(self, server):
        self.servers[server] = self.started()

    @rule(hours=st.sampled_from([0, 6]))
    def seal(self, hours):
        """What the tail has no more is forgotten: an id may come again, but its first row stays."""
        journal = FileJournal(self.logs, clock=self.clock, tail=hours * HOUR)
        labels = len(tail_labels(self.logs)) + len(filed_labels(self.logs))
        journal.seal(self.clock.now())
        left = {row["prediction_id"] for row in plain_rows(self.logs)}
        assert left <= set(self.tail)
        self.tail = {name: row for name, row in self.tail.items() if name in left}
        self.last_told()
        assert len(tail_labels(self.logs)) + len(filed_labels(self.logs)) == labels
        assert len(filed_rows(self.logs)) == len(set(self.rows) - set(self.tail)) + self.shadows()
        self.the_journal_holds_the_model(FileJournal(self.logs))

    @rule(hours=st.sampled_from([1, 7, 24, -1]))
    def let_time_pass(self, hours):
        self.clock.set(self.clock.now() + hours * HOUR)

    @precondition(lambda self: self.rows)
    @rule()
    def read(self):
        self.the_journal_holds_the_model(FileJournal(self.logs))

    # --- the model ---

    def requested(self, asked) -> tuple[list[dict], bool]:
        """The rows of a request, and whether it fits what is known."""
        requested, fits = [], True
        here: dict[str, tuple[dict, datetime]] = {}
        untimed = {one["name"] for one in asked if one["hour"] is None}
        for one in asked:
            features, name = row_of(one["content"]), one["name"]
            when = None if one["hour"] is None else AT + one["hour"] * HOUR
            row = {**features, "occurred_at": when and when.isoformat(), "prediction_id": name}
            requested.append({key: value for key, value in row.items() if value is not None})
            requested[-1] |= {key: features[key] for key in features}
            if name is None:
                continue
            content = features, when or self.clock.now()
            fits &= here.setdefault(name, content) == content
            if name in self.tail:
                known, at, _ = self.tail[name]
                fits &= known == features and (name in untimed or when == at)
        return requested, fits

    def remember(self, requested, answers) -> None:
        for row, answer in zip(requested, answers, strict=True):
            name = answer["prediction_id"]
            assert row.get("prediction_id", name) == name
            features = {key: row[key] for key in row_of("")}
            given = row.get("occurred_at")
            when = datetime.fromisoformat(given) if given else self.clock.now()
            first = self.tail.setdefault(name, (features, when, answer))
            assert first[2] == answer
            self.rows.setdefault(name, first)

    def said(self, items) -> list[dict]:
        """The labels as a client sends them."""
        times = [None if i["hour"] is None else AT + i["hour"] * HOUR for i in items]
        return [
            {"prediction_id": item["name"], "label": item["label"]}
            | ({"labelled_at": when.isoformat()} if when else {})
            for item, when in zip(items, times, strict=True)
        ]

    def versions(self, items) -> tuple[int, int]:
        """Take the labels into the model; how many are versions, and how many replace one."""
        written = changed = 0
        for item in items:
            name, label = item["name"], str(item["label"])
            before = self.told.get(name)
            if before != label:
                when = self.clock.now() if item["hour"] is None else AT + item["hour"] * HOUR
                written += 1
                changed += before is not None
                self.told[name] = label
                self.labels.setdefault(name, []).append((label, when, self.clock.now()))
        return written, changed

    def last_told(self) -> list[str]:
        """Take from the tail which label each id has there; the ids, one for each version."""
        rows = tail_labels(self.logs)
        self.told = {row["prediction_id"]: row["label"] for row in rows}
        return [row["prediction_id"] for row in rows]

    def shadows(self) -> int:
        """How many ids are in history, and came again since."""
        sealed = {row["prediction_id"] for row in filed_rows(self.logs)}
        return len(sealed & set(self.tail))

    # --- the files ---

    def sizes(self) -> dict[Path, int]:
        return {path: path.stat().st_size for path in self.logs.glob("*.csv")}

    def tear(self, before, share) -> None:
        """Cut what the last call added to a file, at any byte of it."""
        for path, size in self.sizes().items():
            first = len(path.read_bytes().partition(b"\n")[0]) + 1
            start = before.get(path, first)  # a file is made with its first line, at once
            with path.open("r+b") as file:
                file.truncate(start + round(share * (size - start)))

    def the_journal_holds_the_model(self, journal) -> None:
        back = journal.read()
        rows = {row["prediction_id"]: row for row in back.to_pylist()}
        assert len(rows) == back.num_rows
        assert set(rows) == set(self.rows)
        keys = [(row["occurred_at"], name) for name, row in rows.items()]
        assert keys == sorted(keys)
        for name, (features, when, answer) in self.rows.items():
            row = rows[name]
            assert {key: row[key] for key in features} == features
            assert row["occurred_at"] == when
            assert (int(row["prediction"]), row["probability"], row["model_version"]) == tuple(
                answer[key] for key in ANSWER
            )
        for as_of in (None, AT, AT + 2 * HOUR, self.clock.now()):
            read = journal.read(as_of=as_of).to_pylist()
            for row in read:
                known = [
                    (label, when)
                    for label, when, came in self.labels.get(row["prediction_id"], [])
                    if as_of is None
                    or (when <= as_of and (came <= as_of or row["recorded_at"] > as_of))
                ]
                assert (row["label"], row["labelled_at"]) == (known[-1] if known else (None, None))


def plain_rows_whole(logs) -> list[dict]:
    """The rows of the plain files without what is torn, which a fresh journal cuts off."""
    FileJournal(logs).catch_up()
    return plain_rows(logs)


@pytest.fixture(scope="module", autouse=True)
def releases(tmp_path_factory):
    root = tmp_path_factory.mktemp("releases")
    promote(root, objects(seed=0))
    Serve.releases = FileReleases(root / "models")


def fixed(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize(
    ("examples", "steps"),
    [(25, 20), pytest.param(400, 40, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
def test_no_order_of_events_tells_the_journal_from_its_model(examples, steps):
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Serve, settings=fixed(examples, steps))
