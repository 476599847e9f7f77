"""A server as a process of its own on cores of its own, from its start until nothing of it is left.

It takes a command and its environment. It gives the address once the server answers, and ends the
whole process group however the block is left.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from load import BenchmarkError

START = 90  # seconds that a server may take to answer
END = 10  # seconds that it may take to end before it is killed
LOG_LINES = 15


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    cores: Sequence[int],
    ready: Callable[[], bool],
) -> Iterator[None]:
    """A server in `folder` on `cores`, once `ready()`. Raises BenchmarkError if it ends or is not
    ready in time, with the end of its log.
    """
    log = folder / "server.log"
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned, env=env, cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                said = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
                raise BenchmarkError(f"the server did not start:\n{said}")
            time.sleep(0.1)
        yield
    finally:
        _end(process)


def posted(address: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of one answer; status 0 where nothing answers."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    except http.client.HTTPException:
        return 0, b""
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: some peers leave children behind when their parent is told to stop."""
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END)
    finally:  # a second Ctrl-C, too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
