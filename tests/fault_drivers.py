"""Processes for tests to kill: forked from one that has imported everything, so that a start is
quick and strace, which is attached before the first line of work, sees all of it.

Reads orders as lines of JSON and answers each with one line. Every driver below is the whole work
of one child.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path

PRELOADED = (
    "deltalake",
    "httptools",
    "onnxruntime",
    "pandas",
    "sklearn.compose",
    "sklearn.impute",
    "sklearn.linear_model",
    "sklearn.pipeline",
    "sklearn.preprocessing",
    "uvicorn",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvloop",
    "homeostat.build",
    "homeostat.testing",
    "homeostat.web.api",
)
PR_SET_PDEATHSIG = 1
PR_SET_PTRACER = 0x59616D61


def serve(port: int = 0) -> None:
    """The service as `uvicorn --factory homeostat.web.api:create_app` runs it."""
    import uvicorn

    uvicorn.run("homeostat.web.api:create_app", factory=True, port=port)


def serve_by(clock: str) -> None:
    """The service with a clock that is off by the seconds that the file `clock` names."""
    import uvicorn

    from homeostat import settings
    from homeostat.journal import FileJournal
    from homeostat.predictor import Predictor
    from homeostat.release import FileReleases
    from homeostat.web.api import create_app_for

    class Wrong:
        def now(self) -> datetime:
            return datetime.now(UTC) + timedelta(seconds=float(Path(clock).read_text()))

    chosen = settings.read()
    predictor = Predictor(
        FileReleases(Path("models")),
        FileJournal(Path("data/logs"), clock=Wrong()),
        Wrong(),
        serving=chosen.serving,
    )
    uvicorn.run(create_app_for(predictor, chosen), port=0)


def append(name: str, count: int, batch: int) -> None:
    """Rows of two schemas and labels, written without HTTP; what is durable is said on stdout."""
    from homeostat.journal import FileJournal
    from homeostat.testing import START, drifting_stream, label_rows, schema_of, served_rows

    frame = drifting_stream(40, seed=3)
    schema, frame = schema_of(frame), frame.head(batch)
    journal = FileJournal(Path("data/logs"))
    for number in range(count):
        rows = served_rows(frame, schema, prefix=f"{name}-{number}")
        if number % 4 == 3:
            rows = rows.drop_columns(["gap"])
        ids = rows.column("prediction_id").to_pylist()
        journal.append(rows)
        say(rows=ids)
        journal.label(label_rows(ids[:1], ["1"], START))
        say(labels=ids[:1])


def seal() -> None:
    """Move into history all that was recorded before now."""
    from homeostat.journal import FileJournal

    FileJournal(Path("data/logs"), tail=timedelta(0)).seal(datetime.now(UTC))


def say(**fact: object) -> None:
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()


DRIVERS = {driver.__name__: driver for driver in (serve, serve_by, append, seal)}


def main() -> None:
    for name in PRELOADED:
        __import__(name)
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            pid, status = os.waitpid(order["wait"], os.WNOHANG)
            say(code=os.waitstatus_to_exitcode(status) if pid else None)
            continue
        pid = os.fork()
        if pid == 0:
            os._exit(child(**order))
        say(pid=pid)


def child(run: str, root: str, log: str, gate: str, options: dict[str, object]) -> int:
    kernel = ctypes.CDLL(None)
    kernel.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    kernel.prctl(PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)  # any process may trace this one
    os.chdir(root)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    Path(gate).read_bytes()  # opened by the test once strace is there
    try:
        DRIVERS[run](**options)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - the child ends here, and its log says why
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
