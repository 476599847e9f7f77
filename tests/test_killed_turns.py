"""A turn killed or overtaken at any stage of train, gate and release keeps the champion."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from loop_fixtures import LOADED, InProcess, copied, days, make, project, serve, stream, turning

DAY = timedelta(days=1)
END, LATER = 28, 33

CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from multiprocessing import get_context
from pathlib import Path
import sklearn.compose, sklearn.linear_model, sklearn.pipeline
from loop_fixtures import InProcess, turning
from homeostat import files
from homeostat.audit import ChainAudit
from homeostat.errors import ReleaseError
from homeostat.release import FileReleases
from homeostat.train import ScriptTrainer

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def turn(root):
    with turning(root, InProcess(), 28) as loop:
        return loop.retrain(force=True)
"""

KILLED = (
    CHILD
    + """
def refit(self, *args, fit=ScriptTrainer.fit, **options):
    setattr(ScriptTrainer, "fit", die)
    return fit(self, *args, **options)

def line(kind):
    def write(self, what, at, body, write=ChainAudit.write):
        die() if what == kind else write(self, what, at, body)
    return write

def file(part, after):
    def write(path, content, mode=0o666, write=files.write):
        if part not in str(path):
            return write(path, content, mode)
        if after:
            write(path, content, mode)
        die()
    return write

POINTS = {
    "fit": lambda: setattr(ScriptTrainer, "fit", die),
    "blend": lambda: setattr(ScriptTrainer, "finished", die),
    "score": lambda: setattr(ScriptTrainer, "score", die),
    "trained": lambda: setattr(ChainAudit, "write", line("trained")),
    "query": lambda: setattr(ScriptTrainer, "query", die),
    "gate": lambda: setattr(ChainAudit, "write", line("gate")),
    "refit": lambda: setattr(ScriptTrainer, "fit", refit),
    "refitted": lambda: setattr(ChainAudit, "write", line("refitted")),
    "twin": lambda: setattr(ScriptTrainer, "with_twin", die),
    "object": lambda: setattr(files, "write", file("/objects/", after=True)),
    "manifest": lambda: setattr(files, "write", file("/manifests/", after=False)),
    "stored": lambda: setattr(files, "write", file("/manifests/", after=True)),
    "pointer": lambda: setattr(files, "write", file("/champion.json", after=False)),
}

for root in map(Path, sys.argv[2:]):
    child = os.fork()  # the imports, which take longest, are shared
    if not child:
        POINTS[root.name]()
        turn(root)
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL, root.name
"""
)
POINTS = (
    *("fit", "blend", "score", "trained", "query", "gate", "refit", "refitted", "twin"),
    *("object", "manifest", "stored", "pointer"),
)

RIVALS = (
    CHILD
    + """
def compete(root, barrier, promote=FileReleases.promote):
    def together(self, release):
        barrier.wait(60)  # both have stored a release for the same champion
        promote(self, release)

    FileReleases.promote = together
    try:
        print(f"promoted {turn(root).release}", flush=True)
    except ReleaseError as error:
        print(f"fenced {error.message}", flush=True)

fork = get_context("fork")
barrier = fork.Barrier(2)
rivals = [fork.Process(target=compete, args=(Path(root), barrier)) for root in sys.argv[2:]]
for rival in rivals:
    rival.start()
for rival in rivals:
    rival.join(90)
    assert rival.exitcode == 0
"""
)


def ran(script, *roots):
    command = [sys.executable, "-c", script, str(Path(__file__).parent), *map(str, roots)]
    return subprocess.run(command, check=True, timeout=300, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def frame():
    return stream()


@pytest.fixture(scope="module")
def drifted(tmp_path_factory, frame):
    """A trained project, with two weeks of drifted and labelled traffic."""
    root = make(tmp_path_factory.mktemp("drifted") / "p", days(frame, 0, LOADED))
    with turning(root, InProcess(), LOADED) as loop:
        loop.train()
    serve(root, days(frame, LOADED, END))
    return root


@pytest.fixture(scope="module")
def killed(drifted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    roots = {point: copied(drifted, folder / point) for point in POINTS}
    ran(KILLED, *roots.values())
    return roots


def sound(root):
    """The champion, once every byte of it, the chain, and the copies for people were checked."""
    here = project(root)
    assert here.audit.verify() > 0
    assert here.releases.verify() > 0
    champion = here.releases.champion()
    assert (root / "models" / "model.pkl").read_bytes() == here.releases.object(champion, "model")
    return champion


@pytest.mark.parametrize("point", POINTS)
def test_a_turn_killed_before_its_pointer_moved_keeps_the_champion_and_the_next_one_is_clean(
    killed, drifted, frame, point
):
    root, old = killed[point], project(drifted).releases.champion()
    assert sound(root) == old
    serve(root, days(frame, END, LATER))
    with turning(root, InProcess(), LATER) as loop:  # the lock is free
        outcome = loop.retrain(force=True)
    assert outcome.promoted
    assert sound(root).manifest["parent"] == old.id


def test_of_two_turns_in_two_processes_one_is_fenced_off_at_promotion(drifted, tmp_path):
    """Two hosts that share the releases, but no lock of the loop."""
    one = copied(drifted, tmp_path / "one")
    two = copied(drifted, tmp_path / "two")
    for path in sorted((two / "models").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (two / "models").rmdir()
    (two / "models").symlink_to(one / "models")
    told = ran(RIVALS, one, two).splitlines()
    assert sorted(line.split()[0] for line in told) == ["fenced", "promoted"]
    champion = project(one).releases.champion()
    assert f"promoted {champion.id}" in told
    assert "another change of champion came first" in "".join(told)
    kinds = [[line["kind"] for line in project(root).audit.lines()] for root in (one, two)]
    ends = sorted(next(k for k in reversed(own) if "promoted" in k) for own in kinds)
    assert ends == ["not_promoted", "promoted"]
    assert project(one).releases.verify() == 2
