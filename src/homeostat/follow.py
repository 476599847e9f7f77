"""When a server looks at the pointer again: as it moves, and now and then after a failure.

It takes the marks of a pointer, which change when it may have moved, and what became of each look.
It gives whether to look now, and why the release that the pointer names does not serve: to the log
in full, to others in a sentence.
"""

from __future__ import annotations

import structlog

from homeostat.errors import HomeostatError, ReleaseError, VerificationError

PATIENCE = 64  # looks that are skipped, at most, before a release that failed is tried again

_log = structlog.get_logger("homeostat.predictor")
_NEVER = object()


class Follower:
    """What is remembered from look to look. For one thread at a time."""

    def __init__(self) -> None:
        self.failure: str | None = None  # for anyone to read: no path, no foreign text
        self._reason = ""  # for the log
        self._mark: object = _NEVER
        self._skip = self._backoff = 0

    def due(self, mark: object) -> bool:
        """Whether the pointer with this mark is to be looked at."""
        if mark == self._mark and not self._again():
            return False
        self._mark = mark
        return True

    def _again(self) -> bool:
        if self.failure is None:
            return False
        self._skip -= 1
        return self._skip < 0

    def succeeded(self) -> None:
        self.failure = None
        self._skip = self._backoff = 0

    def failed(self, error: Exception) -> None:
        """Remember why, tell the log once, and wait twice as long as before."""
        reason = _explain(error)
        if self.failure is None or reason != self._reason:
            _log.error("release not served", reason=reason)
        self.failure, self._reason = _told(error), reason
        self._backoff = min(2 * self._backoff or 1, PATIENCE)
        self._skip = self._backoff


def _told(error: Exception) -> str:
    """A sentence for whoever asks a server, who may hold no key."""
    if isinstance(error, VerificationError):
        return "the pointer, or the release that it names, does not verify."
    if isinstance(error, ReleaseError):
        return "the pointer names no release that is fit to serve."
    return "the release that the pointer names cannot be loaded."


def _explain(error: Exception) -> str:
    """A text for the log. That of a foreign error may hold values, unless it names an import."""
    if isinstance(error, HomeostatError | ImportError | AttributeError | OSError):
        return str(error)
    return f"{type(error).__name__} while the release was loaded."
