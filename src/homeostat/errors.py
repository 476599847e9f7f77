"""Every error that the package raises on purpose.

An error says what went wrong, which value caused it, and what to do next. All of them derive from
`HomeostatError`, so that a caller at the edge (CLI, API) can tell a refusal from a defect.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TypeVar

E = TypeVar("E", bound="HomeostatError")


class HomeostatError(Exception):
    """Base of all errors raised on purpose; `hint` names the remedy in one sentence."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        # Below what goes over several lines, such as a traceback, the remedy has its own.
        between = "\n" if "\n" in self.message else " "
        return f"{self.message}{between}{self.hint}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and errors cross processes.
        return _rebuild, (type(self), dict(self.__dict__), self.args)


def _rebuild(
    kind: type[HomeostatError], state: dict[str, object], args: tuple[object, ...]
) -> HomeostatError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class SettingsError(HomeostatError):
    """`homeostat.toml` or a `HOMEOSTAT_*` variable does not hold what it should."""


class ProjectError(HomeostatError):
    """A project cannot be made in this folder, or not from this data file."""


class SchemaError(HomeostatError):
    """A frame or table does not fit the model's schema, or no schema can be inferred from it."""


class RowError(HomeostatError):
    """One row of a request was refused.

    `code` is stable and machine-readable, `field` the column, `row` the zero-based row in the
    request. The message never contains the refused value.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str | None = None,
        row: int | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.field = field
        self.row = row


class JournalError(HomeostatError):
    """The journal cannot write or read; nothing may be answered until it can."""


class ConflictError(HomeostatError):
    """A `prediction_id` that the journal knows came again with other content."""

    def __init__(self, message: str, *, row: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.row = row


class ReleaseError(HomeostatError):
    """A release is missing, incomplete, or cannot be promoted."""


class VerificationError(ReleaseError):
    """Bytes, signature or sequence are not what the trusted key vouches for; nothing was loaded."""


class AuditError(HomeostatError):
    """The audit chain is broken: a line was altered, removed or inserted."""


class EngineError(HomeostatError):
    """A task in a child process failed, crashed, ran out of time or out of memory."""


class TrainingError(HomeostatError):
    """The user's code did not yield an estimator that can be released."""


class TwinError(HomeostatError):
    """A model cannot become an ONNX graph, or the graph does not answer as the model does."""


class UnavailableError(HomeostatError):
    """No verified champion is loaded, so nothing can be predicted."""


class BusyError(HomeostatError):
    """More waits than can be answered in time; `code` is `busy`, or `timeout` for what waited."""

    def __init__(self, code: str, message: str, *, hint: str = "Try again later.") -> None:
        super().__init__(message, hint=hint)
        self.code = code


def other_format(kind: type[E], what: str, found: object, *reads: int) -> E:
    """The error for content in a format that this version does not read."""
    return kind(
        f"{what} has format {found!r}, this version reads {' and '.join(map(str, reads))}.",
        hint="Install the version of homeostat that wrote it, or a newer one.",
    )


def cause(error: BaseException) -> str:
    """What went wrong, for logs and reports: our own errors' text, and of foreign ones only the
    type and the place, since their text may hold values of features.
    """
    if isinstance(error, HomeostatError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
