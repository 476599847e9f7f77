import json
import shutil
import threading
import uuid
from datetime import timedelta

import cloudpickle
import numpy as np
import pytest
from serving_fixtures import AT, ROW, estimator, objects, promote, training_frame

from homeostat.errors import ConflictError, JournalError, RowError, UnavailableError
from homeostat.journal import FileJournal
from homeostat.listening import Serving
from homeostat.predictor import Predictor
from homeostat.records import Window
from homeostat.release import FileReleases
from homeostat.scoring import Calibrator
from homeostat.testing import FakeClock


@pytest.fixture
def clock():
    return FakeClock(AT)


@pytest.fixture
def journal(tmp_path):
    return FileJournal(tmp_path / "data" / "logs")


@pytest.fixture
def predictor(tmp_path, journal, clock):
    return Predictor(FileReleases(tmp_path / "models"), journal, clock, serving=Serving())


def released(predictor, root, **made):
    release = promote(root, objects(**made))
    assert predictor.refresh()
    return release


def patiently(predictor):
    """Look until a release that failed before is tried again."""
    return any(predictor.refresh() for _ in range(200))


class TestPredict:
    def test_the_answer_is_that_of_the_users_estimator(self, predictor, tmp_path):
        release = released(predictor, tmp_path)
        frame = training_frame()
        fitted = estimator().fit(frame.drop(columns="target"), frame["target"])
        sent = json.loads(frame.drop(columns="target").head(40).to_json(orient="records"))
        answers = predictor.predict(sent)
        expected = fitted.predict_proba(frame.drop(columns="target").head(40))[:, 1]
        np.testing.assert_allclose([a["probability"] for a in answers], expected, rtol=1e-9)
        assert [a["prediction"] for a in answers] == (expected > 0.5).astype(int).tolist()
        assert {a["model_version"] for a in answers} == {release.id}
        assert {uuid.UUID(a["prediction_id"]).version for a in answers} == {7}

    def test_a_multiclass_answer_gives_each_class_its_probability(self, predictor, tmp_path):
        released(predictor, tmp_path, task="multiclass")
        (answer,) = predictor.predict([ROW])
        assert set(answer["probabilities"]) == {"a", "b", "c"}
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["prediction"] == max(answer["probabilities"], key=answer["probabilities"].get)
        assert "probability" not in answer

    def test_a_regression_answers_a_number(self, predictor, tmp_path):
        released(predictor, tmp_path, task="regression")
        (answer,) = predictor.predict([{**ROW, "amount": 2.0}])
        assert answer["prediction"] == pytest.approx(6.25)
        assert set(answer) == {"prediction_id", "prediction", "model_version"}

    def test_the_calibrator_of_the_release_is_applied(self, predictor, tmp_path):
        released(predictor, tmp_path)
        (plain,) = predictor.predict([ROW])
        released(predictor, tmp_path, calibrator=Calibrator(2.0, (0.5,)))
        (moved,) = predictor.predict([ROW])
        logit = np.log(plain["probability"] / (1 - plain["probability"]))
        assert moved["probability"] == pytest.approx(1 / (1 + np.exp(-(2 * logit + 0.5))))

    def test_what_is_answered_is_in_the_journal(self, predictor, journal, tmp_path, clock):
        release = released(predictor, tmp_path)
        earlier = clock.now() - timedelta(minutes=30)
        row = {**ROW, "prediction_id": "mine", "occurred_at": earlier.isoformat()}
        (answer,) = predictor.predict([row])
        (kept,) = journal.read().to_pylist()
        assert kept["prediction_id"] == "mine"
        assert (kept["occurred_at"], kept["recorded_at"]) == (earlier, clock.now())
        assert (kept["source"], kept["model_version"]) == ("serve", release.id)
        assert (kept["prediction"], kept["probability"]) == (
            str(answer["prediction"]),
            answer["probability"],
        )
        assert {name: kept[name] for name in ROW} == ROW

    def test_a_second_try_without_a_time_gets_the_first_answer_later_and_from_a_new_release(
        self, predictor, journal, tmp_path, clock
    ):
        released(predictor, tmp_path, task="multiclass")
        row = {**ROW, "prediction_id": "mine"}
        first = predictor.predict([row])
        clock.advance(timedelta(minutes=5))
        released(predictor, tmp_path, seed=1, task="multiclass")
        assert predictor.predict([row]) == first
        assert journal.read().num_rows == 1
        assert predictor.counts()["repeated", ""] == 1

    def test_a_second_try_with_another_time_is_a_conflict(self, predictor, tmp_path, clock):
        released(predictor, tmp_path)
        row = {**ROW, "prediction_id": "mine"}
        predictor.predict([row])
        clock.advance(timedelta(minutes=5))
        with pytest.raises(ConflictError):
            predictor.predict([{**row, "occurred_at": clock.now().isoformat()}])

    def test_tries_at_the_same_moment_all_get_one_answer(self, predictor, journal, tmp_path):
        released(predictor, tmp_path)
        predictor._clock = Restless()
        answers, barrier = [], threading.Barrier(6)

        def ask():
            barrier.wait()
            answers.extend(predictor.predict([{**ROW, "prediction_id": "mine"}]))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 6
        assert all(answer == answers[0] for answer in answers)
        assert journal.read().num_rows == 1

    def test_the_row_of_a_conflict_is_counted_in_the_request(self, predictor, tmp_path):
        released(predictor, tmp_path)
        predictor.predict([{**ROW, "prediction_id": "taken"}])
        twice = {**ROW, "prediction_id": "twice"}
        other = {**ROW, "prediction_id": "taken", "amount": 7}
        with pytest.raises(ConflictError) as caught:
            predictor.predict([twice, twice, twice, other])
        assert caught.value.row == 3

    def test_a_refusal_is_journalled_by_code_and_column(self, predictor, journal, tmp_path, clock):
        released(predictor, tmp_path)
        for row in ({**ROW, "amount": "x"}, {**ROW, "surname": 1}, {}):
            with pytest.raises(RowError):
                predictor.predict([row])
        predictor.flush()
        hour = Window(clock.now() - timedelta(hours=1), clock.now() + timedelta(hours=1))
        assert journal.refused(hour) == {
            "wrong_type:amount": 1,
            "unknown_field": 1,
            "missing_field:amount": 1,
        }
        assert journal.read().num_rows == 0

    def test_when_the_journal_cannot_write_nothing_is_answered(
        self, predictor, tmp_path, clock, journal
    ):
        released(predictor, tmp_path)
        predictor.check()
        logs = tmp_path / "data" / "logs"
        shutil.rmtree(logs)
        logs.write_text("not a folder")
        with pytest.raises(JournalError):
            predictor.predict([ROW])
        logs.unlink()
        with pytest.raises(JournalError):
            predictor.check()
        clock.advance(timedelta(seconds=6))
        predictor.check()
        predictor.predict([ROW])
        predictor.check()


class Fussy:
    """A model that fails on large amounts, and counts how often it is asked."""

    classes_ = (0, 1)
    calls = 0

    def __init__(self, error=ValueError):
        self.error = error

    def predict_proba(self, frame):
        Fussy.calls += 1
        if (frame["amount"] > 1e6).any():
            raise self.error("too large")
        shares = (frame["amount"] + 10) / 20
        return [[1 - share, share] for share in shares]


class Counting(FileJournal):
    """A journal that counts how often it is written to."""

    commits = 0

    def commit(self, columns, entries):
        self.commits += 1
        return super().commit(columns, entries)


class TestRefusedInAGroup:
    """Requests that the model refuses, among others that come at the same time."""

    def desk(self, root, clock):
        journal = Counting(root / "data" / "logs")
        made = Predictor(FileReleases(root / "models"), journal, clock, serving=Serving())
        return made, journal

    @pytest.mark.parametrize(
        ("n", "refused"),
        [
            (1, {0}),
            (2, {1}),
            (7, {0, 6}),
            (7, set()),
            (64, {31}),
            (64, {3, 4, 40}),
            (9, {*range(9)}),
        ],
    )
    def test_the_others_are_answered_by_one_commit_as_if_they_had_come_without_them(
        self, tmp_path, clock, n, refused
    ):
        predictor, journal = self.desk(tmp_path, clock)
        released(predictor, tmp_path, model=Fussy())
        rows = [
            {**ROW, "prediction_id": f"id-{i}", "amount": 1e300 if i in refused else i / 100}
            for i in range(n)
        ]
        results = predictor.answer([predictor.asked([row]) for row in rows])
        assert journal.commits == (len(refused) < n)
        codes = [r.code if isinstance(r, RowError) else None for r in results]
        assert codes == ["model_refused" if i in refused else None for i in range(n)]
        good = [i for i in range(n) if i not in refused]
        assert journal.read().num_rows == len(good)
        for i in good:
            (answer,) = results[i]
            assert answer["prediction_id"] == f"id-{i}"
            assert answer["probability"] == pytest.approx((i / 100 + 10) / 20)
        assert predictor.counts().get(("refused", "model_refused"), 0) == len(refused)
        assert predictor.counts().get(("predictions", ""), 0) == len(good)

    def test_few_calls_of_the_model_find_the_one_that_is_to_blame(self, tmp_path, clock):
        predictor, _ = self.desk(tmp_path, clock)
        released(predictor, tmp_path, model=Fussy())
        rows = [{**ROW, "amount": 1e300 if i == 77 else 0.5} for i in range(256)]
        asked = [predictor.asked([row]) for row in rows]
        Fussy.calls = 0
        predictor.answer(asked)
        assert Fussy.calls <= 2 * 8 + 1

    def test_a_model_that_breaks_is_logged_once_for_each_request_that_broke_it(
        self, tmp_path, clock, capsys
    ):
        predictor, journal = self.desk(tmp_path, clock)
        released(predictor, tmp_path, model=Fussy(KeyError))
        rows = [{**ROW, "amount": 1e300 if i == 3 else 0.5} for i in range(16)]
        results = predictor.answer([predictor.asked([row]) for row in rows])
        assert [r.code for r in results if isinstance(r, RowError)] == ["model_failed"]
        assert journal.commits == 1
        assert capsys.readouterr().out.count("model failed") == 1


class Restless:
    """A clock that gives every caller another time."""

    def __init__(self):
        self._now = AT
        self._lock = threading.Lock()

    def now(self):
        with self._lock:
            self._now += timedelta(milliseconds=1)
            return self._now


class Fixed:
    """A model with one answer for all rows."""

    classes_ = (0, 1)

    def __init__(self, share):
        self.share = share

    def predict_proba(self, frame):
        return [[1 - self.share, self.share]] * len(frame)


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


class TestRefresh:
    def test_before_the_first_release_nothing_is_answered(self, predictor):
        assert not predictor.refresh()
        for act in (
            predictor.check,
            lambda: predictor.predict([ROW]),
            lambda: predictor.feedback([{"prediction_id": "a", "label": 1}]),
        ):
            with pytest.raises(UnavailableError, match="homeostat train"):
                act()

    def test_a_new_release_is_served_and_an_unmoved_pointer_changes_nothing(
        self, predictor, tmp_path
    ):
        first = released(predictor, tmp_path)
        assert not predictor.refresh()
        second = released(predictor, tmp_path, seed=1)
        assert predictor.champion.release.id == second.id != first.id
        assert predictor.failure is None

    def test_a_rollback_is_followed(self, predictor, tmp_path):
        first = released(predictor, tmp_path)
        released(predictor, tmp_path, seed=1)
        FileReleases(tmp_path / "models").roll_back()
        assert predictor.refresh()
        assert predictor.champion.release.id == first.id

    def test_an_older_copy_of_the_pointer_is_refused(self, predictor, tmp_path, capsys):
        released(predictor, tmp_path)
        pointer = tmp_path / "models" / "champion.json"
        old = pointer.read_bytes()
        second = released(predictor, tmp_path, seed=1)
        pointer.write_bytes(old)
        assert not predictor.refresh()
        assert predictor.champion.release.id == second.id
        assert predictor.failure
        assert "went back" in capsys.readouterr().out

    @pytest.mark.parametrize("name", ["model", "schema", "golden"])
    def test_a_tampered_object_keeps_the_old_model_serving(self, predictor, tmp_path, name):
        first = released(predictor, tmp_path)
        new = promote(tmp_path, objects(seed=1, task="multiclass"))
        file = tmp_path / "models" / "objects" / new.manifest["objects"][name]
        content = file.read_bytes()
        file.chmod(0o644)
        file.write_bytes(content + b" ")
        assert not predictor.refresh()
        assert predictor.champion.release.id == first.id
        assert predictor.failure
        assert predictor.predict([ROW])[0]["model_version"] == first.id
        # Files may be still on their way: once they are whole, the release is taken.
        file.write_bytes(content)
        assert patiently(predictor)
        assert predictor.champion.release.id == new.id

    def test_nothing_is_unpickled_before_it_is_verified(self, predictor, tmp_path):
        released(predictor, tmp_path)
        new = promote(tmp_path, objects(seed=1))
        file = tmp_path / "models" / "objects" / new.manifest["objects"]["model"]
        file.chmod(0o644)
        file.write_bytes(cloudpickle.dumps(Trap(str(tmp_path / "sprung"))))
        assert not predictor.refresh()
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("share", [0.6, float("nan")])
    def test_a_model_that_answers_its_golden_rows_otherwise_is_refused(
        self, predictor, tmp_path, share
    ):
        first = released(predictor, tmp_path)
        made = objects(model=Fixed(0.5))
        promote(tmp_path, {**made, "model": cloudpickle.dumps(Fixed(share))})
        assert not predictor.refresh()
        assert predictor.champion.release.id == first.id
        assert predictor.failure

    def test_without_golden_rows_a_release_is_refused(self, predictor, tmp_path, capsys):
        made = objects()
        del made["golden"]
        promote(tmp_path, made)
        assert not predictor.refresh()
        assert "golden" in capsys.readouterr().out
        with pytest.raises(UnavailableError, match=predictor.failure):
            predictor.predict([ROW])

    def test_a_failing_release_is_not_loaded_at_every_look(self, predictor, tmp_path):
        made = objects(model=Fixed(0.5))
        promote(tmp_path, {**made, "model": cloudpickle.dumps(Fixed(0.6))})
        for _ in range(1000):
            predictor.refresh()
        assert predictor.counts()["refresh_failures", ""] < 30

    def test_when_the_pointer_is_gone_the_champion_serves_on(self, predictor, tmp_path, capsys):
        first = released(predictor, tmp_path)
        (tmp_path / "models" / "champion.json").unlink()
        assert not predictor.refresh()
        assert predictor.champion.release.id == first.id
        assert predictor.failure
        assert "gone" in capsys.readouterr().out

    @pytest.mark.parametrize("lost", ["trusted.pub", "manifests", "objects"])
    def test_why_a_release_does_not_serve_is_told_without_a_path_and_logged_with_it(
        self, predictor, tmp_path, lost, capsys
    ):
        promote(tmp_path, objects())
        (tmp_path / "models" / lost).rename(tmp_path / lost)
        predictor.refresh()
        with pytest.raises(UnavailableError) as caught:
            predictor.serving()
        for told in (predictor.failure, str(caught.value)):
            assert "does not verify" in told
            assert "models" not in told
        logged = "".join(capsys.readouterr().out.split())  # one line may be wrapped
        assert f"{tmp_path}/models/{lost}" in logged

    def test_the_text_of_an_error_that_a_library_raised_is_told_to_nobody(
        self, predictor, tmp_path, monkeypatch
    ):
        def failing(*_):
            raise ImportError("cannot import name 'x' from 'y' (/opt/secret/y.py)")

        promote(tmp_path, objects())
        monkeypatch.setattr(cloudpickle, "loads", failing)
        predictor.refresh()
        assert predictor.failure == "the release that the pointer names cannot be loaded."


class TestFeedback:
    def test_labels_are_joined_with_their_rows_and_unknown_ones_are_kept(
        self, predictor, journal, tmp_path, clock
    ):
        released(predictor, tmp_path)
        said = [{"prediction_id": name, "label": 1} for name in ("first", "later")]
        predictor.predict([{**ROW, "prediction_id": "first"}])
        assert predictor.feedback(said) == {"accepted": 2, "repeated": 0, "changed": 0}
        predictor.predict([{**ROW, "prediction_id": "later"}])
        rows = journal.read(labelled=True).to_pylist()
        assert [(row["prediction_id"], row["label"]) for row in rows] == [
            ("first", "1"),
            ("later", "1"),
        ]
        assert rows[0]["labelled_at"] == clock.now()

    def test_a_bad_label_is_refused_and_counted_and_none_of_the_request_is_kept(
        self, predictor, journal, tmp_path
    ):
        released(predictor, tmp_path)
        good = {"prediction_id": "a", "label": 0}
        with pytest.raises(RowError) as caught:
            predictor.feedback([good, {"prediction_id": "b", "label": "maybe"}])
        assert (caught.value.code, caught.value.field, caught.value.row) == (
            "bad_label",
            "label",
            1,
        )
        assert predictor.counts()["refused", "bad_label"] == 1
        assert predictor.feedback([good])["accepted"] == 1
