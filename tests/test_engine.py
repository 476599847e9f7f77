import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from homeostat.engines import LocalEngine
from homeostat.errors import EngineError, TrainingError
from homeostat.testing import EngineContract


def add(left, right):
    return left + right


def pid():
    return os.getpid()


def sleep(seconds):
    time.sleep(seconds)


def fail():
    raise ValueError("no such thing")


def refuse():
    raise TrainingError("too few rows.", hint="Load more.")


def leave():
    sys.exit(3)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def grab(mebibytes):
    return len(bytearray(mebibytes * 2**20))


def unpicklable():
    return (part for part in ())


def environment(name):
    return os.environ.get(name)


def grandchild():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path("grandchild").write_text(str(child.pid))
    time.sleep(60)


def within(seconds, condition):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def gone(process):
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(timeout=timedelta(seconds=30), memory=1024) as engine:
        yield engine


class TestContract(EngineContract):
    pass


def test_a_function_runs_in_another_process_that_stays_warm(engine):
    assert engine.run(add, 1, right=2) == 3
    first = engine.run(pid)
    assert first != os.getpid()
    assert engine.run(pid) == first


def test_a_call_that_takes_too_long_is_ended_and_the_next_gets_a_fresh_child():
    with LocalEngine(timeout=timedelta(seconds=3), memory=None) as engine:
        first = engine.run(pid)
        started = time.monotonic()
        with pytest.raises(EngineError, match=r"sleep took longer than 3 s.*training\.timeout"):
            engine.run(sleep, 60)
        assert time.monotonic() - started < 10
        assert gone(first)
        assert engine.run(pid) != first


def test_what_a_call_started_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with LocalEngine(timeout=timedelta(seconds=2), memory=None) as engine:
        with pytest.raises(EngineError):
            engine.run(grandchild)
        started = int(Path("grandchild").read_text())
        assert within(5, lambda: gone(started))


def test_an_exception_comes_back_as_text_with_its_traceback(engine):
    before = engine.run(pid)
    with pytest.raises(EngineError, match="fail raised ValueError: no such thing") as caught:
        engine.run(fail)
    assert 'raise ValueError("no such thing")' in str(caught.value)
    assert engine.run(pid) != before


def test_a_refusal_of_the_house_passes_through_and_the_child_stays(engine):
    before = engine.run(pid)
    with pytest.raises(TrainingError) as caught:
        engine.run(refuse)
    assert (caught.value.message, caught.value.hint) == ("too few rows.", "Load more.")
    assert engine.run(pid) == before


def test_a_call_that_leaves_the_interpreter_is_an_error(engine):
    with pytest.raises(EngineError, match="leave raised SystemExit: 3"):
        engine.run(leave)


def test_a_child_that_dies_is_an_error_that_names_the_likely_cause(engine):
    with pytest.raises(EngineError, match=r"died during die.*SIGKILL.*\n?.*1024 MiB"):
        engine.run(die)
    assert engine.run(add, 1, 1) == 2


def test_a_child_that_died_between_calls_is_replaced_unnoticed(engine):
    idle = engine.run(pid)
    os.kill(idle, signal.SIGKILL)
    # The thread that watches over the child ends once it has seen the death.
    assert within(5, lambda: not any("Manager" in t.name for t in threading.enumerate()))
    assert engine.run(add, 1, 1) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="address space is bounded on Linux only")
def test_a_call_that_wants_too_much_memory_is_an_error_that_names_the_setting(engine):
    with pytest.raises(EngineError, match=r"grab ran out of memory.*training\.memory"):
        engine.run(grab, 4096)
    assert engine.run(grab, 1) == 2**20


def test_what_cannot_travel_is_an_error_and_not_a_hang(engine):
    with pytest.raises(EngineError, match="pickl"):
        engine.run(add, (part for part in ()), 1)
    with pytest.raises(EngineError, match="pickl"):
        engine.run(unpicklable)
    assert engine.run(add, 1, 1) == 2


def test_the_child_gets_its_threads_and_never_the_signing_key(monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_SIGNING_KEY", "secret")
    with LocalEngine(timeout=timedelta(seconds=30), memory=None, threads=2) as engine:
        assert engine.run(environment, "OMP_NUM_THREADS") == "2"
        assert engine.run(environment, "HOMEOSTAT_SIGNING_KEY") is None


def test_closing_twice_is_fine_and_a_closed_engine_refuses():
    engine = LocalEngine(timeout=timedelta(seconds=30), memory=None)
    child = engine.run(pid)
    engine.close()
    engine.close()
    assert gone(child)
    with pytest.raises(EngineError, match="closed"):
        engine.run(pid)


SCRIPT = """
import os, time
from datetime import timedelta
from pathlib import Path
from homeostat.engines import LocalEngine
print("imported", flush=True)
engine = LocalEngine(timeout=timedelta(seconds=60), memory=None)
Path("child").write_text(str(engine.run(os.getpid)))
Path("ready").touch()
{then}
"""


def script(folder, then):
    file = folder / "script.py"
    file.write_text(textwrap.dedent(SCRIPT).format(then=then))
    return subprocess.Popen(
        [sys.executable, str(file)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_script_without_a_main_guard_runs_once_and_ends_quietly(tmp_path):
    out, err = script(tmp_path, "").communicate(timeout=30)
    assert out.decode().splitlines() == ["imported"]
    assert err.decode() == ""
    assert gone(int((tmp_path / "child").read_text()))


def test_a_killed_parent_leaves_no_child_behind(tmp_path):
    with script(tmp_path, "engine.run(time.sleep, 60)") as parent:
        assert within(20, (tmp_path / "ready").exists)
        child = int((tmp_path / "child").read_text())
        assert not gone(child)
        parent.kill()
        parent.communicate(timeout=20)
        assert within(10, lambda: gone(child))
