"""Alerts: tells people through Apprise what the loop did or cannot do.

It takes the Apprise URLs of the settings, which hold secrets and so are named by number and scheme.
It gives a `contracts.Alerts` whose `send` never raises; a failed alert is one line in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from homeostat.contracts import Alerts
from homeostat.errors import SettingsError

LOGGER = logging.getLogger(__name__)
LOOSE_TONGUES = ("apprise", "urllib3")
"""Loggers that write addresses, and with them tokens, into their messages."""


class NoAlerts:
    """Tells nobody."""

    def send(self, title: str, body: str) -> None:
        """Does nothing."""


class AppriseAlerts:
    """Tells every address; one that fails does not keep the others from being told.

    Raises SettingsError, without the address, when one is no Apprise URL or Apprise is missing.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        if find_spec("apprise") is None:
            raise SettingsError(
                "alerts.urls is set, but Apprise is not installed.",
                hint="Install homeostat[alerts].",
            )
        self._services = [_service(place, url) for place, url in enumerate(urls)]

    def send(self, title: str, body: str) -> None:
        """Tell people; at most some seconds for each address that does not answer."""
        for name, service in self._services:
            try:
                with _silenced():
                    sent = service.notify(title=title, body=body)
                problem = "" if sent else "the service did not take it"
            except Exception as error:  # noqa: BLE001 - the loop goes on untold; the log says why
                problem = type(error).__name__
            if problem:
                LOGGER.warning("No alert through %s: %s.", name, problem)


def alerts(urls: Sequence[str]) -> Alerts:
    """Alerts to these Apprise URLs; to nobody where there are none. Raises SettingsError."""
    return AppriseAlerts(urls) if urls else NoAlerts()


def _service(place: int, url: str) -> tuple[str, Any]:
    from apprise import Apprise

    service = Apprise()
    with _silenced():
        known = service.add(url)
    if not known:
        raise SettingsError(
            f"alerts.urls[{place}] is no URL that Apprise knows.",
            hint="It looks like mailto://… or slack://…; see Apprise's list of services.",
        )
    return f"alerts.urls[{place}] ({url.partition(':')[0]})", service


@contextmanager
def _silenced() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOOSE_TONGUES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
