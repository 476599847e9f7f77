"""Kill -9 at the calls by which a process writes or syncs, and what is left of what was answered.

strace sends SIGKILL as the k-th such call of a thread begins, so the call is not made. Only
processes that died of that signal are counted.
"""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from fault_findings import NOTHING, compare, filed_rows, plain_labels, plain_rows
from fault_fixtures import CALLS, Memory, Nursery, attach, journal_files, load
from serving_fixtures import objects, promote, serving, until

from homeostat.journal import FileJournal

CLIENTS, REQUESTS = 3, 25
PATIENCE = 3  # runs for each kill that is wanted, before a test gives up


def soaked(short: int, full: int):
    """A few in the ordinary run, all of them in `make soak`."""
    long = pytest.param(full, marks=[pytest.mark.soak, pytest.mark.timeout(3600)], id=f"{full}")
    return [pytest.param(short, id=f"{short}"), long]


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
    return tmp_path


def names(turn: object) -> list[str]:
    return [f"{turn}-{number}" for number in range(CLIENTS)]


def calls_of(log) -> dict[str, int]:
    """The most calls of each name that one thread made, from strace's log."""
    made = Counter(re.findall(r"^(\d+) +(\w+)\(", log.read_text(), re.M))
    most: dict[str, int] = {}
    for (_, name), count in made.items():
        most[name] = max(most.get(name, 0), count)
    return most


def filters(root) -> list[tuple[str, ...]]:
    """All calls of the process, and those alone that touch the journal's files."""
    files = tuple(word for path in journal_files(root) for word in ("-P", str(path)))
    return [files, ()]


def profile(nursery, root, memory, filtered) -> dict[str, int]:
    """What one whole life of a server calls, and how often."""
    child = nursery.start("serve", root, strace=(*filtered, "-e", f"trace={','.join(CALLS)}"))
    load(child.up(), memory, names(f"profile{len(filtered)}"), REQUESTS)
    child.end()
    return calls_of(child.log.with_suffix(".strace"))


def kill(nursery, root, memory, turn, arguments, k: int) -> bool:
    """One life of a server that is to end at the k-th call; whether it did."""
    call, filtered = arguments
    inject = (*filtered, "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={k}")
    child = nursery.start("serve", root, strace=inject)
    address = child.up()
    if address is not None:
        load(address, memory, names(turn), REQUESTS)
    child.end()
    return child.killed


@pytest.mark.parametrize("kills", soaked(10, 220))
def test_what_a_server_answered_is_there_wherever_it_is_killed(nursery, root, kills):
    """One folder through all its servers' deaths, with clients that try again."""
    memory, plan = Memory(), []
    for filtered in filters(root):
        plan += [
            ((call, filtered), most)
            for call, most in profile(nursery, root, memory, filtered).items()
        ]
    assert {"write", "fsync"} <= {call for (call, _), _ in plan}
    killed: Counter = Counter()
    for turn in range(PATIENCE * kills):
        arguments, most = plan[turn % len(plan)]
        k = 1 + (turn // len(plan) * 7919 + turn) % most
        if kill(nursery, root, memory, turn, arguments, k):
            killed[arguments[0]] += 1
            assert compare(root, memory) == NOTHING, (arguments[0], k)
        if killed.total() == kills:
            break
    print(f"{killed.total()} servers killed, {len(memory.answers)} rows answered: {dict(killed)}")
    assert killed.total() == kills
    assert len(memory.answers) > 10 * kills
    child = nursery.start("serve", root)
    load(child.up(), memory, names("last"), 2 * REQUESTS)
    child.end()
    assert compare(root, memory) == NOTHING
    assert not memory.refused


@pytest.mark.parametrize("most", soaked(2, 40))
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_journal_whose_first_writes_are_cut_off_begins_again(
    nursery, tmp_path, artefacts, call, most
):
    """Every k in turn, each in a folder without a journal, until a server lives through it."""
    for k in range(1, most + 1):
        root = tmp_path / str(k)
        root.mkdir()
        promote(root, artefacts)
        memory = Memory()
        died = kill(nursery, root, memory, "first", (call, filters(root)[0]), k)
        child = nursery.start("serve", root)
        load(child.up(), memory, names("second"), 5)
        child.end()
        assert compare(root, memory) == NOTHING, k
        if not died:
            break
    assert k > 1


@pytest.mark.parametrize("kills", soaked(6, 120))
def test_rows_of_two_schemas_and_labels_outlive_their_writer(nursery, tmp_path, kills):
    """The journal alone: one thread, every k in turn for each call, files set aside and begun."""
    logs = tmp_path / "data" / "logs"
    rows, labels, killed, turn = set(), set(), 0, 0
    calls, step = ("write", "fsync", "rename"), max(1, 40 // kills)
    while killed < kills:
        call, k = calls[turn % 3], 1 + step * (turn // 3)
        child = nursery.start(
            *("append", tmp_path),
            strace=("-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={k}"),
            name=f"t{turn}",
            count=24,
            batch=3,
        )
        until(child.ended)
        child.end()
        killed += child.killed
        for line in child.log.read_text().splitlines():
            fact = json.loads(line) if line.startswith("{") and line.endswith("}") else {}
            rows |= set(fact.get("rows", ()))
            labels |= set(fact.get("labels", ()))
        turn += 1
        assert child.killed or child.code == 0, child.log.read_text()
        assert turn <= PATIENCE * kills
        read = FileJournal(logs).read().column("prediction_id").to_pylist()
        FileJournal(logs).catch_up()  # cuts off what is torn
        recorded = Counter(row["prediction_id"] for row in plain_rows(logs))
        versions = plain_labels(logs)
        assert rows <= set(recorded)
        assert recorded == Counter(read)
        assert set(recorded.values()) <= {1}
        assert labels <= set(versions)
        assert all(texts == ["1"] for texts in versions.values())
    assert rows
    print(f"{killed} writers killed, {len(rows)} rows and {len(labels)} labels acknowledged")


@pytest.mark.parametrize("most", soaked(3, 80))
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "linkat", "unlink", "mkdir"])
def test_a_sealer_killed_at_any_call_moves_each_row_once(nursery, root, call, most):
    """Every k in turn, beside a server under load, until a sealer lives through it."""
    logs, memory, killed = root / "data" / "logs", Memory(again=False), 0
    server = nursery.start("serve", root)
    address = server.up()
    load(address, memory, names("before"), 10)
    for k in range(1, most + 1):
        inject = ("-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={k}")
        sealer = nursery.start("seal", root, strace=inject)
        load(address, memory, names(k), 6)
        until(sealer.ended, what="the sealer")
        sealer.end()
        assert sealer.killed or sealer.code == 0, sealer.log.read_text()
        assert compare(root, memory) == NOTHING, k
        killed += sealer.killed
        if not sealer.killed:
            break
    load(address, memory, names("after"), 10)
    server.end()
    last = nursery.start("seal", root)
    until(last.ended, what="the last sealer")
    assert last.code == 0, last.log.read_text()
    assert compare(root, memory) == NOTHING
    assert killed
    assert plain_rows(logs) == []
    assert FileJournal(logs).sealed.rows == len(filed_rows(logs)) >= len(memory.answers)
    assert not memory.refused
    print(f"{killed} sealers killed at {call}, {len(memory.answers)} rows answered")


@pytest.mark.parametrize("kills", soaked(1, 5))
def test_a_server_that_was_started_by_hand_is_no_different(root, kills):
    """The process that the documentation tells to start, instead of a fork."""
    memory = Memory()
    for turn in range(kills):
        with serving(root) as server:
            strace = attach(
                *(server.process.pid, root / "strace.log", root / "strace.errors"),
                *(*filters(root)[0], "-e", "trace=fsync"),
                *("-e", f"inject=fsync:signal=SIGKILL:when={12 + 3 * turn}"),
            )
            load(("127.0.0.1", int(server.url.rpartition(":")[2])), memory, names(turn), REQUESTS)
            assert server.process.wait(20) == -9
            strace.wait(20)
        assert compare(root, memory) == NOTHING
    assert memory.answers


def test_no_answer_leaves_before_its_row_is_flushed(nursery, root):
    """The order of system calls, which is what a power cut would show: row written, file synced,
    and only then the bytes of the answer.
    """
    memory = Memory()
    calls = "write,pwrite64,writev,fsync,fdatasync,sendto,sendmsg"
    child = nursery.start("serve", root, strace=("-yy", "-s", "1000000", "-e", f"trace={calls}"))
    load(child.up(), memory, names("order"), REQUESTS)
    child.end()
    flushed = flushes(child.log.with_suffix(".strace").read_text().splitlines())
    assert set(flushed["answered"]) == set(memory.answers)
    early = [n for n, at in flushed["answered"].items() if flushed["synced"].get(n, at) >= at]
    assert early == []


def flushes(lines) -> dict[str, dict[str, int]]:
    """At which line of strace's log each id was written, synced and answered."""
    told: dict[str, dict[str, int]] = {"written": {}, "synced": {}, "answered": {}}
    begun: dict[str, set[str]] = {}  # by thread: ids that were written when its fsync began
    id_in = re.compile(r"prediction_id\\?\\?\":\\?\\?\"([\w.-]+)")
    for at, line in enumerate(lines):
        thread = line.split(maxsplit=1)[0]
        if re.search(r"^\d+ +p?write\w*\(\d+<[^>]*predictions\.csv>", line):
            for name in re.findall(r'(?:"|\\n)\\"([\w.-]+)\\",', line):
                told["written"].setdefault(name, at)
        elif re.search(r"^\d+ +f\w*sync\(\d+<[^>]*predictions\.csv>", line):
            begun[thread] = set(told["written"])
        elif "<TCP" in line:
            for name in id_in.findall(line) if "200 OK" in line or "prediction_id" in line else ():
                told["answered"].setdefault(name, at)
        if re.search(r"f\w*sync.*= 0$", line) and thread in begun:
            for name in begun.pop(thread):
                told["synced"].setdefault(name, at)
    return told
