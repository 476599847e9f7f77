"""Runs functions in one warm child process on this machine, under limits of time and memory.

It takes a module-level function with picklable arguments; the child is started by the first call,
without importing the caller's `__main__`, and kept for the next one.
It gives the function's result, or `EngineError` and a fresh child for the next call.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from homeostat.errors import EngineError, HomeostatError

if TYPE_CHECKING:
    from loky import ProcessPoolExecutor

P = ParamSpec("P")
T = TypeVar("T")

SECRETS = ("HOMEOSTAT_SIGNING_KEY",)
"""Variables that a child must not see: it runs the user's code."""

FIXED = {
    "PYTHONHASHSEED": "0",  # the order of sets of text must not differ from fit to fit
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_WAIT_POLICY": "passive",
}
TRACEBACK_LINES = 12
ORPHAN_POLL = 0.5  # seconds after which a child notices that its parent is gone


class LocalEngine:
    """An `Engine` with one child process; calls from several threads take turns.

    `timeout` bounds each call, the start of the child included. `memory` is address space in MiB,
    on Linux only, None for no bound. `threads` is what OpenMP and BLAS may use in the child.
    `section` is the part of the settings that an error names as the place to raise a limit.
    """

    def __init__(
        self,
        *,
        timeout: timedelta,
        memory: int | None,
        threads: int = 1,
        section: str = "training",
    ) -> None:
        self._section = section
        self._timeout = timeout
        self._memory = memory
        self._threads = threads
        self._turn = threading.Lock()
        self._executor: ProcessPoolExecutor | None = None
        self._closed = False

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(*args, **kwargs)`, computed in the child.

        A HomeostatError that the function raises comes through as it is. Anything else that it
        raises, a child that dies, and a limit that is passed raise EngineError.
        """
        with self._turn:
            try:
                result: T = self._result(function, args, kwargs)
            except HomeostatError as error:
                if isinstance(error, EngineError):
                    self._stop()
                raise
            except BaseException:
                # An interrupt: what still runs in the child has nobody to answer to.
                self._stop()
                raise
            return result

    def _result(
        self, function: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> T:
        from loky.process_executor import BrokenProcessPool, ShutdownExecutorError

        try:
            future = self._submit(function, args, kwargs)
            result: T = future.result(self._timeout.total_seconds())
        except HomeostatError:
            raise
        except TimeoutError:
            raise EngineError(
                f"{_name(function)} took longer than {self._timeout.total_seconds():g} seconds and "
                "was ended.",
                hint=f"Make it faster, or raise {self._section}.timeout.",
            ) from None
        except ShutdownExecutorError:
            raise EngineError(f"{_name(function)} was ended: the engine was closed.") from None
        except BrokenProcessPool as error:
            raise self._died(function, error) from error
        except Exception as error:
            # The arguments or the result could not cross between the processes.
            raise EngineError(
                f"{_name(function)}: {type(error).__name__}: {error}",
                hint="Arguments and result must be picklable.",
            ) from error
        return result

    def _submit(
        self, function: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Future[T]:
        from loky.process_executor import BrokenProcessPool

        future: Future[T]
        try:
            future = self._started().submit(_call, self._section, function, args, kwargs)
        except BrokenProcessPool:
            # The idle child was killed since the last call: nothing of this call was lost.
            self._stop()
            future = self._started().submit(_call, self._section, function, args, kwargs)
        return future

    def _started(self) -> ProcessPoolExecutor:
        from loky import ProcessPoolExecutor

        if self._closed:
            raise EngineError("the engine is closed.", hint="Make a new one.")
        if self._executor is None:
            threads = str(self._threads)
            limits = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
            self._executor = ProcessPoolExecutor(
                max_workers=1,
                env={**FIXED, **limits, **dict.fromkeys(SECRETS, "")},
                initializer=_prepare,
                initargs=(os.getpid(), self._memory),
            )
        return self._executor

    def _died(self, function: Callable[..., object], error: Exception) -> EngineError:
        limit = f", or its limit of {self._memory} MiB ({self._section}.memory)"
        return EngineError(
            f"the child process died during {_name(function)}: {_first_line(error)}",
            hint=f"Most often memory ran out{limit if self._memory else ''}; "
            "a crash in compiled code looks the same.",
        )

    def _stop(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, kill_workers=True)

    def close(self) -> None:
        """End the child, and with it a call that another thread waits for. May be repeated."""
        self._closed = True
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _prepare(parent: int, memory: int | None) -> None:
    """Runs once in the child: limits, and no life after the parent's."""
    for name in SECRETS:
        os.environ.pop(name, None)
    # An interrupt at the terminal is the parent's to handle: it ends the child.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if memory is not None and sys.platform == "linux":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = memory * 2**20
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    # The kernel's own death signal goes by the thread that started the child, which may end early.
    while os.getppid() == parent:
        time.sleep(ORPHAN_POLL)
    os._exit(1)


def _call(
    section: str,
    function: Callable[..., T],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> T:
    """Runs in the child: foreign exceptions become text, for their classes may not travel."""
    try:
        return function(*args, **kwargs)
    except HomeostatError:
        raise
    except MemoryError:
        raise EngineError(
            f"{_name(function)} ran out of memory.",
            hint=f"Use fewer rows or a smaller model, or raise {section}.memory.",
        ) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - fails closed: raised as EngineError
        lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
        tail = "\n".join(lines[-TRACEBACK_LINES:])
        raise EngineError(
            f"{_name(function)} raised {type(error).__name__}: {error}\n{tail}"
        ) from None


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _first_line(error: Exception) -> str:
    codes = [line for line in str(error).splitlines() if "exit codes" in line]
    return (codes or str(error).splitlines() or [type(error).__name__])[0]
