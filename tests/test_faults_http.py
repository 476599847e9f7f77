"""A service whose disk, file system, clock or neighbour fails: no answer without its row, the right
refusal, and the way back. All of it over HTTP, with clients that remember what they were told.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager, suppress

import httpx
import pytest
from fault_findings import NOTHING, compare, plain_rows
from fault_fixtures import Memory, Nursery, as_root, load, row_of, system
from serving_fixtures import objects, promote, until

NAMES = ["one", "two", "three"]


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    home = Nursery(tmp_path_factory.mktemp("nursery"))
    yield home
    home.close()


@pytest.fixture(scope="module")
def artefacts():
    return objects(seed=0)


@pytest.fixture
def root(tmp_path, artefacts):
    promote(tmp_path, artefacts)
    (tmp_path / "data" / "logs").mkdir(parents=True)
    return tmp_path


@contextmanager
def running(nursery, root, *strace, driver="serve", **options):
    """A server on `root`, as its address and a client of it; `client.child` is the process."""
    child = nursery.start(driver, root, strace=strace, **options)
    try:
        host, port = child.up()
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=60) as client:
            client.child = child
            yield (host, port), client
    finally:
        child.end()


@contextmanager
def small_disk(folder, size):
    options = f"size={size},uid={os.geteuid()},mode=0755"
    command = as_root("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        system("a small disk can only be mounted by root of a Linux machine")
    try:
        yield
    finally:
        # Lazily: a journal of this process may hold a file open until it is collected.
        subprocess.run(as_root("umount", "--lazy", str(folder)), check=True)


def injected(root, call, error, when):
    file = root / "data" / "logs" / "predictions.csv"
    return ("-P", str(file), "-e", f"trace={call}", "-e", f"inject={call}:error={error}:{when}")


def refused(response) -> None:
    """The one shape, with the time to come again, and without a word of the disk."""
    assert response.status_code == 503, response.text
    error = response.json()["error"]
    assert error["code"] == "cannot_journal"
    assert set(error) <= {"code", "message", "hint"}
    assert int(response.headers["retry-after"]) > 0
    assert "/" not in response.text


def post(client, name, path="/predict"):
    row = {**row_of(name), "prediction_id": name}
    return client.post(
        path, json=row if path == "/predict" else {"prediction_id": name, "label": 1}
    )


def test_a_full_disk_stops_answers_and_a_freed_one_lets_them_go_on(nursery, root):
    logs, memory = root / "data" / "logs", Memory()
    with small_disk(logs, "512k"), running(nursery, root) as (address, client):
        load(address, memory, NAMES, 10)
        assert compare(root, memory) == NOTHING
        ballast = logs / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        before = len(memory.answers)
        load(address, memory, [f"{name}-full" for name in NAMES], 40)
        assert memory.refused[503] > 20
        large = {**row_of("large"), "city": "x" * 50_000}
        refused(client.post("/predict", json=large))
        refused(client.get("/health/ready"))
        assert compare(root, memory) == NOTHING
        ballast.unlink()
        until(lambda: post(client, "after").status_code == 200)
        memory.waiting.add("after")
        refusals = memory.refused[503]
        load(address, memory, [f"{name}-after" for name in NAMES], 10)
        assert memory.refused[503] == refusals
        assert len(memory.answers) > before
        assert client.get("/health/ready").status_code == 200
        assert compare(root, memory) == NOTHING


def test_a_read_only_disk_stops_answers_until_it_can_be_written(nursery, root):
    logs, memory = root / "data" / "logs", Memory()
    with small_disk(logs, "2m"):
        with running(nursery, root) as (address, _):
            load(address, memory, NAMES, 5)
        # A disk on which a file is open for writing cannot be made read-only by hand.
        until(lambda: remounted(logs, "ro"), what="the read-only disk")
        with running(nursery, root) as (address, client):
            load(address, memory, [f"{name}-ro" for name in NAMES], 10)
            assert memory.refused[503] == 30
            refused(client.get("/health/ready"))
            refused(post(client, "x", "/feedback"))
            assert remounted(logs, "rw")
            until(lambda: post(client, "after").status_code == 200)
            memory.waiting.add("after")
            load(address, memory, [f"{name}-rw" for name in NAMES], 5)
            assert client.get("/health/ready").status_code == 200
        assert memory.refused[503] == 30
        assert compare(root, memory) == NOTHING


def remounted(logs, how: str) -> bool:
    command = as_root("mount", "-o", f"remount,{how}", str(logs))
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_a_disk_that_turns_read_only_under_open_files_stops_answers_until_it_recovers(
    nursery, root
):
    """As a file system does that has found an error in itself."""
    memory, logs = Memory(), root / "data" / "logs"
    with running(nursery, root) as (address, _):
        load(address, memory, ["first"], 5)
    strace = injected(root, "write,pwrite64,writev,ftruncate", "EROFS", "when=6+")
    with running(nursery, root, *strace) as (address, client):
        load(address, memory, NAMES, 15)
        assert memory.refused[503] > 15
        refused(post(client, "after"))
        refused(client.get("/health/ready"))
        assert compare(root, memory) == NOTHING
        client.child.strace.terminate()
        client.child.strace.wait(20)
        until(lambda: post(client, "after").status_code == 200)
        memory.waiting.add("after")
        refusals = memory.refused[503]
        load(address, memory, [f"{name}-after" for name in NAMES], 10)
        assert memory.refused[503] == refusals
        assert compare(root, memory) == NOTHING
    assert len(plain_rows(logs)) > 20


def test_a_failed_write_refuses_its_rows_alone(nursery, root):
    memory = Memory()
    with running(nursery, root) as (address, _):
        load(address, memory, ["first"], 5)
    strace = injected(root, "write,pwrite64,writev", "EIO", "when=3+5")
    with running(nursery, root, *strace) as (address, client):
        load(address, memory, NAMES, 30)
        assert 0 < memory.refused[503] < 60
        assert len(memory.answers) > 60
        until(lambda: post(client, "after").status_code == 200)
        memory.waiting.add("after")
        assert compare(root, memory) == NOTHING


def test_after_one_failed_flush_nothing_is_answered_until_a_restart(nursery, root):
    memory = Memory()
    with running(nursery, root) as (address, _):
        load(address, memory, ["first"], 5)
    strace = injected(root, "fsync,fdatasync", "EIO", "when=4")  # once: the next would succeed
    with running(nursery, root, *strace) as (address, client):
        load(address, memory, NAMES, 30)
        assert memory.refused[503] > 40
        answered = len(memory.answers)
        size = (root / "data" / "logs" / "predictions.csv").stat().st_size
        for _ in range(3):
            refused(post(client, "after"))
            refused(post(client, "after", "/feedback"))
            refused(client.get("/health/ready"))
        load(address, memory, ["still"], 5)
        assert len(memory.answers) == answered
        assert client.get("/health/live").status_code == 200
        assert (root / "data" / "logs" / "predictions.csv").stat().st_size == size
    assert compare(root, memory) == NOTHING
    with running(nursery, root) as (address, client):
        assert client.get("/health/ready").status_code == 200
        load(address, memory, [f"{name}-again" for name in NAMES], 10)
    assert len(memory.answers) > answered
    assert compare(root, memory) == NOTHING


def test_a_torn_last_line_is_cut_off_before_and_while_a_server_runs(nursery, root):
    logs, memory = root / "data" / "logs", Memory()
    with running(nursery, root) as (address, _):
        load(address, memory, NAMES, 10)
    tear(logs)
    with running(nursery, root) as (address, _):
        load(address, memory, [f"{name}-next" for name in NAMES], 10)
        tear(logs)
        load(address, memory, [f"{name}-last" for name in NAMES], 10)
    assert not memory.refused
    assert compare(root, memory) == NOTHING
    lines = (logs / "repairs.jsonl").read_text().splitlines()
    torn = [json.loads(line)["file"] for line in lines]
    assert sorted(torn) == ["labels.csv"] * 2 + ["predictions.csv"] * 2


def tear(logs) -> None:
    """Leave behind what a writer leaves that dies in the middle of a record."""
    for name in ("predictions", "labels"):
        with (logs / f"{name}.lock").open() as lock, (logs / f"{name}.csv").open("ab") as file:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file.write(b'"torn","2025-01-29 00:00\n')


def test_a_clock_that_jumps_back_an_hour_changes_no_answer_and_loses_no_label(nursery, root):
    memory, clock = Memory(), root / "clock"
    clock.write_text("0")
    with running(nursery, root, driver="serve_by", clock=str(clock)) as (address, client):
        load(address, memory, NAMES, 15)
        before = post(client, "jump")
        memory.waiting.add("jump")
        clock.write_text("-3600")
        assert post(client, "jump").json() == before.json()
        load(address, memory, [f"{name}-back" for name in NAMES], 30)
        assert client.get("/health/ready").status_code == 200
        clock.write_text("0")
        load(address, memory, [f"{name}-forth" for name in NAMES], 15)
    assert not memory.refused
    assert compare(root, memory) == NOTHING


def test_two_servers_on_one_folder_write_each_row_once_and_give_the_same_answer(nursery, root):
    memory, answers = Memory(), {}
    with running(nursery, root) as (here, one), running(nursery, root) as (there, two):

        def race(client, side):
            answers[side] = [post(client, f"race-{n}").json() for n in range(40)]

        threads = [
            threading.Thread(target=load, args=(here, memory, ["here", "beside"], 40)),
            threading.Thread(target=load, args=(there, memory, ["there"], 40)),
            threading.Thread(target=race, args=(one, "here")),
            threading.Thread(target=race, args=(two, "there")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers["here"] == answers["there"]
        memory.waiting |= {f"race-{n}" for n in range(40)}
        assert not memory.refused
        assert compare(root, memory) == NOTHING
    ids = [row["prediction_id"] for row in plain_rows(root / "data" / "logs")]
    assert len([name for name in ids if name.startswith("race-")]) == 40


def test_a_server_whose_neighbour_is_killed_in_the_middle_goes_on(nursery, root):
    memory = Memory()
    file = root / "data" / "logs" / "predictions.csv"
    with running(nursery, root) as (address, _):
        load(address, memory, ["first"], 5)
        for call in ("write", "fsync"):
            inject = ("-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when=5")
            neighbour = nursery.start("serve", root, strace=("-P", str(file), *inject))
            threads = [
                threading.Thread(target=load, args=(where, memory, [f"{call}-{name}"], 60))
                for name, where in (("here", address), ("there", neighbour.up()))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            neighbour.end()
            assert neighbour.killed
            assert compare(root, memory) == NOTHING
    assert not memory.refused
