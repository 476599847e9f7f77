"""The command line as it is typed: exit codes, documents for programs, one line for an error."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib

import pandas as pd
import pytest
from loop_fixtures import (
    LOADED,
    SABOTAGED,
    CountingEngine,
    InProcess,
    copied,
    days,
    make,
    project,
    rewrite,
    serve,
    stream,
    turning,
)

from homeostat import __version__, build, cli, settings
from homeostat.settings import Settings

VERBS = [
    "init", "doctor", "key", "train", "adopt", "monitor", "step", "retrain", "rollback",
    "approve", "pin", "unpin", "run",
    "serve", "score", "status", "history", "verify", "labels", "labels add", "log", "log export",
    "log import",
    "log erase", "quarantine",
    "replay", "demo",
]  # fmt: skip


class Ran:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def document(self):
        return json.loads(self.out)


@pytest.fixture
def homeostat(capfd, monkeypatch):
    """Runs the command line, with fits in this process and Evidently only counted."""
    fits, draws = InProcess(), CountingEngine()

    def engine(*, section="training", **_):
        return draws if section == "monitor" else fits

    monkeypatch.setattr(build, "LocalEngine", engine)

    def run(*words):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        told = capfd.readouterr()
        return Ran(ended.value.code or 0, told.out, told.err)

    return run


@pytest.fixture(scope="module")
def frame():
    """A stream that ends now, so that the wall clock of the command line fits it."""
    made = stream()
    shift = pd.Timestamp.now("UTC").floor("D") - pd.Timestamp("2025-01-29", tz="UTC")
    return made.assign(original=made["occurred_at"], occurred_at=made["occurred_at"] + shift)


def between(frame, first, last):
    chosen = days(frame.assign(occurred_at=frame["original"]), first, last).index
    return frame.loc[chosen].drop(columns="original")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, frame):
    return make(tmp_path_factory.mktemp("untrained"), between(frame, 0, LOADED))


@pytest.fixture(scope="module")
def trained(untrained, tmp_path_factory):
    root = copied(untrained, tmp_path_factory.mktemp("trained") / "p")
    with turning(root, InProcess(), 10_000) as loop:
        loop.train()
    return root


@pytest.fixture
def fresh(tmp_path):
    return lambda root: copied(root, tmp_path / "p")


@pytest.fixture
def drifted(trained, fresh, frame):
    root = fresh(trained)
    serve(root, between(frame, LOADED, 28))
    return root


# --- one line, one exit code ---


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(homeostat, verb):
    ran = homeostat(*verb.split(), "--help")
    assert ran.code == 0
    assert f"Usage: homeostat {verb}" in " ".join(ran.out.split())


def test_the_list_of_verbs_is_whole(homeostat):
    listed = re.findall(r"^│ (\w+)  ", homeostat("--help").out, flags=re.MULTILINE)
    assert set(listed) == {verb.split()[0] for verb in VERBS}


def test_the_version_is_told(homeostat):
    assert homeostat("--version").out == f"homeostat {__version__}\n"


@pytest.mark.parametrize(
    "words", [["nonsense"], ["status", "--nonsense"], ["key", "owner"], ["demo", "--weeks", "49"]]
)
def test_what_cannot_be_meant_is_a_usage_error(homeostat, words):
    ran = homeostat(*words)
    assert (ran.code, ran.out) == (2, "")
    assert "Traceback" not in ran.err


FOLDERS = ["train", "monitor", "step", "retrain", "rollback", "run", "serve", "status", "history",
           "verify"]  # fmt: skip


@pytest.mark.parametrize("verb", FOLDERS)
def test_a_folder_that_is_not_there_is_refused_in_one_line_and_not_made(homeostat, tmp_path, verb):
    ran = homeostat(verb, "--project", tmp_path / "nowhere")
    assert (ran.code, ran.out) == (1, "")
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith("error there is no folder")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("verb", ["monitor", "step", "retrain", "rollback"])
def test_before_the_first_training_a_turn_is_refused_in_one_line(homeostat, untrained, fresh, verb):
    ran = homeostat(verb, "--project", fresh(untrained))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "error there is no champion yet. Run `homeostat train` first.\n"


def test_wrong_settings_are_told_by_name_without_the_value(homeostat, fresh, untrained):
    root = fresh(untrained)
    (root / settings.FILE).write_text('[serving]\nport = "secret"\n')
    ran = homeostat("status", "--project", root)
    assert (ran.code, len(ran.err.splitlines())) == (1, 1)
    assert "serving.port" in ran.err
    assert "secret" not in ran.err


# --- a year in six commands ---


def test_the_first_training_and_what_can_be_asked_of_it(homeostat, untrained, fresh):
    root = fresh(untrained)
    trained = homeostat("train", "--project", root, "--json")
    assert trained.code == 0
    outcome = trained.document
    assert (outcome["promoted"], outcome["decision"]["trigger"]) == (True, "first")
    status = homeostat("status", "-p", root, "--json").document
    assert status["champion"]["id"] == outcome["release"]
    lines = homeostat("history", "-p", root, "--json").document
    assert [line["kind"] for line in lines] == ["first", "promoted"]
    (newest,) = homeostat("history", "-p", root, "--json", "--limit", 1).document
    assert newest["kind"] == "promoted"
    verified = homeostat("verify", "-p", root, "--json").document
    assert verified == {"audit_lines": 2, "releases": 1, "frames": 1}
    assert "verified 2 lines of the audit chain, 1 releases" in homeostat("verify", "-p", root).out
    checks = homeostat("doctor", "-p", root, "--json").document
    assert {check["result"] for check in checks} <= {"well", "note"}
    assert outcome["release"][:12] in homeostat("status", "-p", root).out
    table = homeostat("history", "-p", root).out
    assert "promoted" in table
    assert "The first model" in " ".join(table.split())


def test_a_step_over_drift_promotes_and_rollback_goes_back(homeostat, drifted):
    before = project(drifted).releases.champion().id
    stepped = homeostat("step", "-p", drifted, "--exit-code", "--json")
    assert stepped.code == 3
    outcome = stepped.document
    assert outcome["promoted"]
    assert outcome["evidence"]["state"] == "drift"
    assert outcome["verdict"]["difference"] < 0
    shown = homeostat("status", "-p", drifted, "--markdown").out
    assert "## Drift: drift" in shown
    assert "## Gate: promoted" in shown
    assert homeostat("status", "-p", drifted, "--json").document["last"]["promoted"] is True
    wrong = homeostat("rollback", "0123", "-p", drifted)
    assert (wrong.code, len(wrong.err.splitlines())) == (1, 1)
    assert "0123" in wrong.err
    back = homeostat("rollback", "-p", drifted, "--json").document
    assert (back["release"], back["promoted"]) == (before, True)
    again = homeostat("rollback", "-p", drifted)
    assert (again.code, len(again.err.splitlines())) == (1, 1)


def test_monitor_and_retrain_do_in_two_steps_what_a_step_does(homeostat, drifted):
    looked = homeostat("monitor", "-p", drifted, "--exit-code")
    assert looked.code == 3
    assert "amount" in looked.out
    assert "drift_report.html" in looked.out
    retrained = homeostat("retrain", "-p", drifted, "--exit-code")
    assert retrained.code == 0
    assert "promoted release" in retrained.out
    assert "log_loss" in retrained.out
    assert "hold" in homeostat("retrain", "-p", drifted).out


def test_a_decision_that_was_recorded_is_exit_code_0_unless_more_is_asked(homeostat, drifted):
    assert homeostat("monitor", "-p", drifted).code == 0
    assert homeostat("step", "-p", drifted).code == 0


def test_exit_code_5_says_that_there_was_not_enough_data(homeostat, fresh, trained):
    root = fresh(trained)
    assert homeostat("monitor", "-p", root, "--exit-code").code == 5
    assert homeostat("step", "-p", root, "--exit-code").code == 5
    assert homeostat("step", "-p", root).code == 0


def test_exit_code_6_says_that_the_gate_refused(homeostat, fresh, trained, frame):
    root = fresh(trained)
    calm = stream(shift=0).assign(occurred_at=frame["occurred_at"], original=frame["original"])
    serve(root, between(calm, LOADED, 28))
    rewrite(root, SABOTAGED)
    assert homeostat("retrain", "-p", root, "--force", "--exit-code").code == 6
    refused = homeostat("status", "-p", root, "--json").document["last"]
    assert (refused["promoted"], refused["verdict"]["promote"]) == (False, False)


def test_exit_code_4_says_that_the_data_are_broken(homeostat, fresh, trained, frame):
    root = fresh(trained)
    serve(root, between(frame, LOADED, 28).assign(gap=float("nan")))
    ran = homeostat("step", "-p", root, "--exit-code", "--json")
    assert (ran.code, ran.document["decision"]["action"]) == (4, "stop_and_call")


def test_exit_code_1_says_that_the_look_failed(homeostat, drifted):
    release = project(drifted).releases.champion()
    (drifted / "models" / "objects" / release.manifest["objects"]["reference"]).unlink()
    ran = homeostat("step", "-p", drifted, "--exit-code", "--json")
    assert (ran.code, ran.document["evidence"]["state"]) == (1, "failed")
    assert homeostat("step", "-p", drifted).code == 0


def test_a_broken_chain_does_not_verify(homeostat, fresh, trained):
    root = fresh(trained)
    chain = root / "reports" / "decisions.jsonl"
    chain.write_text(chain.read_text().replace("first", "worst"))
    ran = homeostat("verify", "-p", root)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (1, "", 1)
    assert "line 1" in ran.err


def test_the_doctor_ends_with_1_when_something_is_wrong(homeostat, fresh, untrained):
    root = fresh(untrained)
    (root / "src" / "training" / "train.py").unlink()
    ran = homeostat("doctor", "-p", root)
    assert ran.code == 1
    assert "wrong training script" in ran.out


# --- files, keys, projects ---


def test_labels_and_rows_go_in_and_out(homeostat, fresh, trained, tmp_path):
    root, log = fresh(trained), tmp_path / "log.csv"
    rows = homeostat("log", "export", log, "-p", root, "--json").document["rows"]
    again = homeostat("log", "import", log, "-p", root, "--json").document
    assert (again["rows_written"], again["rows_known"]) == (0, rows)
    pd.DataFrame({"prediction_id": ["id-0"], "label": [1]}).to_csv(tmp_path / "l.csv", index=False)
    assert "written" in homeostat("labels", "add", tmp_path / "l.csv", "-p", root).out
    missing = homeostat("labels", "add", tmp_path / "none.csv", "-p", root)
    assert (missing.code, len(missing.err.splitlines())) == (1, 1)


@pytest.mark.parametrize("name", ["client", 'a "quoted" [name] \\ of \t one'])
def test_a_key_is_shown_once_and_only_its_hash_is_for_keeping(
    homeostat, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    ran = homeostat("key", "feedback", "--name", name)
    assert ran.code == 0
    secret = re.search(r"shown this once: (\S+)", ran.out)[1]
    kept = ran.out.partition("homeostat.toml:")[2]
    assert secret not in kept
    (key,) = tomllib.loads(kept)["serving"]["keys"]
    assert key == {
        "name": name,
        "role": "feedback",
        "sha256": hashlib.sha256(secret.encode()).hexdigest(),
    }
    assert Settings.model_validate(tomllib.loads(kept)).serving.keys[0].role == "feedback"
    assert [*tmp_path.rglob("*")] == []
    assert secret not in homeostat("key", "feedback").out


def test_init_makes_a_project_of_a_file_and_says_what_it_inferred(homeostat, tmp_path):
    stream().head(300).drop(columns="prediction_id").to_csv(tmp_path / "rides.csv", index=False)
    words = ["--data", tmp_path / "rides.csv", "--target", "target", "--time", "occurred_at"]
    ran = homeostat("init", tmp_path / "p", *words, "--json")
    assert ran.code == 0
    assert "homeostat.toml" in ran.document["written"]
    again = homeostat("init", tmp_path / "p", "--data", tmp_path / "rides.csv")
    assert (again.code, len(again.err.splitlines())) == (1, 1)
    assert "--target" in again.err


def test_run_goes_on_after_a_refusal_and_stops_when_it_is_told(untrained, fresh):
    command = [sys.executable, "-m", "homeostat", "run", "--project", str(fresh(untrained))]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "HOMEOSTAT_RUN__PORT": "0"},
    ) as running:  # fmt: skip
        assert running.stdout.readline().startswith("Acting alone has to be earned by a replay")
        assert running.stdout.readline().startswith("The page is at http://127.0.0.1:")
        assert running.stderr.readline().startswith("error there is no champion yet.")
        assert running.stdout.readline() == "Next step in 1 day, 0:00:00.\n"
        began = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
        assert time.monotonic() - began < 20


def test_a_folder_that_is_no_project_stays_as_it_is(homeostat, tmp_path):
    done = homeostat("train", "--project", tmp_path)
    assert done.code == 1
    assert "is no project" in done.err
    assert list(tmp_path.iterdir()) == []
