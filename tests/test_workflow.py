"""The workflow: what it may do, and its steps executed in order on a machine of its own."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from homeostat import project, settings

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LOOP = ROOT / ".github" / "workflows" / "monitor-and-retrain.yml"
PINNED = {
    "actions/checkout": "3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1",
    "actions/setup-python": "5fda3b95a4ea91299a34e894583c3862153e4b97 # v7.0.0",
    "actions/upload-artifact": "043fb46d1a93c77aae656e7c1c64a875d1fc6a0a # v7.0.1",
    "actions/download-artifact": "3e5f45b2cfb9172054b4087a40e8e0b5a5461e7c # v8.0.1",
}


def read(file: Path) -> dict[str, Any]:
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    raw["on"] = raw.pop(True)  # YAML 1.1 takes the key `on` for a truth
    return raw


def steps(file: Path) -> list[dict[str, Any]]:
    return [step for job in read(file)["jobs"].values() for step in job["steps"]]


# --- what it may do ---


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_action_is_pinned_to_a_commit_known_to_be_good(file):
    used = re.findall(r"uses: (\S+)@(.+)", file.read_text(encoding="utf-8"))
    assert used
    for name, pin in used:
        assert PINNED[name] == pin


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_expression_is_pasted_into_a_shell_line(file):
    assert not [step["run"] for step in steps(file) if "${{" in step.get("run", "")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_is_permitted_but_what_a_job_asks_for(file):
    workflow = read(file)
    assert workflow["permissions"] == {}
    rights = {name: job["permissions"] for name, job in workflow["jobs"].items()}
    if file == LOOP:
        assert rights == {"loop": {"contents": "read"}, "save": {"contents": "write"}}
    else:
        assert all(right == {"contents": "read"} for right in rights.values())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_checkout_leaves_its_credentials_behind(file):
    for step in steps(file):
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False


def test_it_runs_daily_at_an_odd_minute_and_by_hand_one_at_a_time():
    workflow = read(LOOP)
    assert set(workflow["on"]) == {"schedule", "workflow_dispatch"}
    (schedule,) = workflow["on"]["schedule"]
    minute, hour, *rest = schedule["cron"].split()
    assert int(minute) % 2 == 1
    assert 0 <= int(hour) < 24
    assert rest == ["*", "*", "*"]
    assert workflow["concurrency"] == {"group": "homeostat-state", "cancel-in-progress": False}


def test_the_signing_key_reaches_only_the_steps_that_train():
    with_key = [step["id"] for step in steps(LOOP) if "secrets." in json.dumps(step)]
    assert with_key == ["first", "retrain"]


def test_the_job_that_may_write_runs_nothing_but_git():
    save = read(LOOP)["jobs"]["save"]
    used = [step["uses"].split("@")[0] for step in save["steps"] if "uses" in step]
    assert used == ["actions/checkout", "actions/download-artifact"]
    (script,) = [step["run"] for step in save["steps"] if "run" in step]
    assert not re.search(r"python|pip|homeostat[^-]|make|npm|\./", script.replace("refs/", ""))


# --- a machine for it ---


@dataclass
class Machine:
    """Runs the jobs of a workflow as GitHub does, with a folder for origin and for artifacts.

    Steps that use an action are imitated, `pip` is only noted down; all else is executed.
    """

    folder: Path
    origin: Path
    secrets: dict[str, str]
    artifacts: Path = field(init=False)
    summary: str = ""
    installed: list[str] = field(default_factory=list)
    runs: int = 0

    def __post_init__(self) -> None:
        self.artifacts = self.folder / "artifacts"
        tools = self.folder / "bin"
        tools.mkdir(parents=True)
        python = (
            f'#!/bin/sh\nif [ "$1 $2" = "-m pip" ]; then shift 2; echo "$@" >> "$PIP_LOG"\n'
            f'else exec "{sys.executable}" "$@"; fi\n'
        )
        call = "from homeostat.cli import main; main()"
        homeostat = f'#!/bin/sh\nexec "{sys.executable}" -c \'{call}\' "$@"\n'
        for name, text in (("python", python), ("homeostat", homeostat)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)

    def run(self) -> dict[str, list[str]]:
        """One run of the workflow; the names of the steps that ran, by job."""
        self.runs += 1
        self.summary = ""
        shutil.rmtree(self.artifacts, ignore_errors=True)
        ran: dict[str, list[str]] = {}
        needs: dict[str, Any] = {}
        for name, job in read(LOOP)["jobs"].items():
            context = {"needs": needs, "github": {"token": "t"}, "secrets": self.secrets}
            if "if" in job and not evaluate(job["if"], context):
                continue
            room = self.folder / f"run-{self.runs}-{name}"
            (room / "temp").mkdir(parents=True)
            context |= {"runner": {"temp": str(room / "temp")}, "steps": {}}
            ran[name] = [s["name"] for s in job["steps"] if self._step(s, job, room, context)]
            outputs = {k: filled(v, context) for k, v in job.get("outputs", {}).items()}
            needs[name] = {"outputs": outputs, "result": "success"}
        return ran

    def _step(self, step: dict[str, Any], job: Any, room: Path, context: Any) -> bool:
        if not evaluate(step.get("if", "true"), context):
            return False
        inputs = {k: filled(str(v), context) for k, v in step.get("with", {}).items()}
        outputs: dict[str, str] = {}
        if "uses" in step:
            action = step["uses"].split("@")[0].removeprefix("actions/").replace("-", "_")
            getattr(self, action)(room, inputs)
        else:
            env = {**job.get("env", {}), **step.get("env", {})}
            given = {k: filled(str(v), context) for k, v in env.items()}
            outputs = self._shell(step["run"], room, given)
        if "id" in step:
            context["steps"][step["id"]] = {"outputs": outputs, "outcome": "success"}
        return True

    def _shell(self, script: str, room: Path, env: dict[str, str]) -> dict[str, str]:
        files = {n: room / "temp" / n for n in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for file in files.values():
            file.write_text("")
        (room / "temp" / "script.sh").write_text(script)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("HOMEOSTAT_")}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(room / "temp" / "script.sh")],
            cwd=room / "workspace",
            env={
                **inherited,
                **{name: str(file) for name, file in files.items()},
                **env,
                "CI": "true",
                "GITHUB_ACTIONS": "true",
                "GITHUB_RUN_ID": str(self.runs),
                "HOME": str(room),
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "PIP_LOG": str(room / "temp" / "pip"),
                "PYTHONPATH": str(ROOT / "src"),
                "RUNNER_TEMP": str(room / "temp"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        assert "PRIVATE" not in done.stdout + done.stderr
        self.summary += files["GITHUB_STEP_SUMMARY"].read_text()
        if (room / "temp" / "pip").exists():
            self.installed = (room / "temp" / "pip").read_text().splitlines()
        lines = files["GITHUB_OUTPUT"].read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def checkout(self, room: Path, inputs: dict[str, str]) -> None:
        target = room / "workspace" / inputs.get("path", "")
        git("clone", "-q", "--depth", "1", "--branch", inputs.get("ref", "main"),
            self.origin.as_uri(), str(target))  # fmt: skip

    def setup_python(self, room: Path, inputs: dict[str, str]) -> None:
        assert inputs["python-version"]

    def upload_artifact(self, room: Path, inputs: dict[str, str]) -> None:
        target = self.artifacts / inputs["name"]
        for path in inputs["path"].splitlines():  # files of one folder, or one folder
            source = room / "workspace" / path
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*"))
            elif source.is_file():
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
            else:
                assert inputs["if-no-files-found"] == "ignore", source

    def download_artifact(self, room: Path, inputs: dict[str, str]) -> None:
        shutil.copytree(self.artifacts / inputs["name"], inputs["path"])

    def state(self, target: Path) -> Path:
        """The branch of the state, checked out."""
        git("clone", "-q", "--branch", "homeostat-state", self.origin.as_uri(), str(target))
        return target

    def branches(self) -> set[str]:
        listed = git("-C", str(self.origin), "for-each-ref", "--format=%(refname:short)")
        return set(listed.split())


def evaluate(condition: str, context: dict[str, Any]) -> Any:
    """The few forms of expression that the workflow uses; what is not there is empty."""
    literals = condition.replace("always()", "true").replace("||", " or ").replace("&&", " and ")
    python = re.sub(r"(?<!['\w.])[a-z][\w.]*\.[\w.]+", lambda m: f"look({m[0]!r})", literals)

    def look(path: str) -> Any:
        found: Any = context
        for part in path.split("."):
            found = found.get(part, "") if isinstance(found, dict) else ""
        return found

    return eval(python, {"__builtins__": {}}, {"look": look, "true": True})


def filled(text: str, context: dict[str, Any]) -> str:
    return re.sub(r"\$\{\{(.*?)\}\}", lambda m: str(evaluate(m[1].strip(), context)), text)


def git(*args: str) -> str:
    who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    done = subprocess.run(["git", *who, *args], check=True, capture_output=True, text=True)
    return done.stdout


# --- a project on it ---


def sales(start: str, days: int, *, dearer: float = 0, seed: int = 0) -> pd.DataFrame:
    """Forty sales a day; cheap ones sell, or the dear ones once all has become dearer."""
    rng = np.random.default_rng(seed)
    count = 40 * days
    price = rng.uniform(1, 9, count) + dearer
    score = (price - 5 if not dearer else 5 + dearer - price) + rng.normal(size=count)
    when = pd.date_range(start, periods=count, freq=timedelta(days=1) / 40, tz="UTC")
    shop = rng.choice(["north", "south"], count)
    sold = np.where(score > 0, "yes", "no")
    frame = pd.DataFrame({"when": when, "price": price.round(3), "shop": shop, "sold": sold})
    return frame.assign(when=frame["when"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"))


OLD = sales("2024-01-01", 56)
NEW = sales("2024-02-26", 21, dearer=8, seed=1)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A bare repository with a project made by `homeostat init` from a file of sales."""
    work, bare = tmp_path / "work", tmp_path / "origin.git"
    work.mkdir()
    OLD.to_csv(work / "sales.csv", index=False)
    project.init(work, data=work / "sales.csv", target="sold", time="when")
    file = work / settings.FILE
    overridden = file.read_text().replace('# max_skew = "1h"', 'max_skew = "none"')
    file.write_text(overridden)
    git("init", "-q", "-b", "main", str(work))
    committed(work, "A project")
    git("clone", "-q", "--bare", str(work), str(bare))
    git("-C", str(work), "remote", "add", "origin", str(bare))
    return bare


def committed(work: Path, message: str) -> None:
    git("-C", str(work), "add", "--all")
    git("-C", str(work), "commit", "-q", "-m", message)


def traffic_comes_in(machine: Machine, frame: pd.DataFrame) -> None:
    """Serve `frame` from the released state, and push the journal as a server's host would."""
    from homeostat import build

    work = machine.folder.parent / "work"
    state = machine.state(machine.folder / "state")
    for part in ("models", "data", "reports"):
        if (state / part).is_dir():
            shutil.copytree(state / part, work / part)
    predictor = build.predictor(settings.read(work))
    predictor.refresh()
    asked = frame.drop(columns="sold").rename(columns={"when": "occurred_at"})
    assert len(predictor.predict(asked.to_dict("records"))) == len(frame)
    shutil.copytree(work / "data", state / "data", dirs_exist_ok=True)
    committed(state, "Traffic")
    git("-C", str(state), "push", "-q")
    pd.concat([OLD, NEW]).to_csv(work / "sales.csv", index=False)
    committed(work, "More sales")
    git("-C", str(work), "push", "-q", "origin", "main")


def champion(state: Path) -> str:
    return json.loads((state / "models" / "champion.json").read_text())["release"]


def key() -> dict[str, str]:
    return {"HOMEOSTAT_SIGNING_KEY": base64.b64encode(secrets.token_bytes(32)).decode()}


def test_the_steps_of_the_workflow_run_in_order(tmp_path, origin):
    machine = Machine(tmp_path / "machine", origin, key())

    first = machine.run()
    assert "Check out the state" not in first["loop"]
    assert "Retrain on drift" not in first["loop"]
    assert first["save"][-1] == "Write it to its branch"
    assert machine.branches() == {"main", "homeostat-state"}
    assert machine.installed == ["install -r requirements.txt"]
    state = machine.state(tmp_path / "first")
    assert (state / "models" / "trusted.pub").is_file()
    assert (state / "reports" / "decisions.jsonl").is_file()
    assert not list(state.rglob("*.key"))
    was = champion(state)

    traffic_comes_in(machine, NEW)
    second = machine.run()
    assert {"Check out the state", "Retrain on drift", "Hand the state on"} <= set(second["loop"])
    assert "Keep the unsigned candidate" not in second["loop"]
    state = machine.state(tmp_path / "second")
    assert json.loads((state / "reports" / "drift_status.json").read_text())["data_drift"] is True
    assert champion(state) != was, (state / "reports" / "decisions.jsonl").read_text()
    for word in ("| price |", "| challenger |"):
        assert word in machine.summary, machine.summary
    reports = machine.artifacts / "drift-report"
    for name in ("drift_report.html", "monitor_report.html"):
        assert "<html" in (reports / name).read_text().lower()
    assert (reports / "monitor_report.png").read_bytes().startswith(b"\x89PNG")
    assert len(git("-C", str(state), "rev-list", "HEAD").split()) == 3


def test_without_a_key_the_run_ends_in_an_unsigned_candidate_that_is_kept(tmp_path, origin):
    machine = Machine(tmp_path / "machine", origin, {})
    ran = machine.run()
    assert "Keep the unsigned candidate" in ran["loop"]
    assert "save" not in ran
    assert machine.branches() == {"main"}
    kept = machine.artifacts / "unsigned-candidate" / "models"
    assert list((kept / "manifests").glob("*.json"))
    assert not (kept / "champion.json").exists()
    assert "not released" in machine.summary


def test_a_training_that_fails_fails_the_run_and_saves_nothing(tmp_path, origin):
    work = tmp_path / "work"
    script = (work / project.TRAIN).read_text()
    (work / project.TRAIN).write_text(script.replace("read_csv(DATA", "read_csv('gone.csv'"))
    committed(work, "A script that fails")
    git("-C", str(work), "push", "-q", "origin", "main")
    for held in ({}, key()):
        machine = Machine(tmp_path / f"machine-{len(held)}", origin, held)
        with pytest.raises(AssertionError, match=r"gone\.csv"):
            machine.run()
        assert machine.summary == ""
    assert machine.branches() == {"main"}


def test_an_unreachable_origin_is_not_taken_for_a_project_without_a_state(tmp_path):
    (look,) = [step["run"] for step in steps(LOOP) if step.get("id") == "state"]
    git("init", "-q", str(tmp_path))
    git("-C", str(tmp_path), "remote", "add", "origin", str(tmp_path / "nowhere"))
    output = tmp_path / "output"
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", look],
        cwd=tmp_path,
        env={**os.environ, "GITHUB_OUTPUT": str(output), "TOKEN": "t"},
        capture_output=True,
        check=False,
    )
    assert done.returncode not in (0, 2)
    assert not output.exists()
