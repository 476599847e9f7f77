"""Alerts: tells people through Apprise what the loop did or cannot do, once per change.

It takes the Apprise URLs of the settings, which hold secrets and so are named by number and scheme,
and the audit chain, from which follow both how things stand and what people were told last. It
gives a `contracts.Alerts` whose `send` never raises, and lines of kind `told` in the chain.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from homeostat.contracts import Alerts, Audit
from homeostat.entries import Sent
from homeostat.errors import SettingsError, cause
from homeostat.past import MOVES
from homeostat.records import Action, Json, State

LOGGER = logging.getLogger(__name__)
LOOSE_TONGUES = ("apprise", "urllib3")
"""Loggers that write addresses, and with them tokens, into their messages."""

WELL = "well"
"""How a subject stands of which nobody need be told; where nothing was told yet, it is taken so."""

TOLD = "told"
"""The kind of line in the audit chain that says what people were told."""

STARTS = frozenset({"decided", "first", "adopted", "rolled_back"})
"""Kinds of line with which a turn begins that ends with the sealing of the journal."""

_FAILS = {
    "training_failed": ("training", "training failed"),
    "calibration_failed": ("recalibration", "recalibration failed"),
    "probation_failed": ("probation", "probation failed"),
    "rollback_failed": ("rollback", "rollback failed"),
    "not_promoted": ("promotion", "not promoted"),
    "seal_failed": ("journal", "the journal could not be sealed"),
}
"""Kinds of line after which a subject does not stand well, and the message's title."""

_WORKS = {
    "trained": ("training", "A challenger was fitted."),
    "calibration_gate": ("recalibration", "A map was judged."),
    "probation": ("probation", "The champion was compared with what it replaced."),
}
"""Kinds of line after which a subject stands well again, and what the message says."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one subject stands, and a title and a sentence for people."""

    state: str
    title: str
    body: str


class NoAlerts:
    """Tells nobody."""

    def send(self, title: str, body: str) -> Sent:  # noqa: ARG002 - the contract names them
        """Nobody took it, and nobody failed to."""
        return Sent(0)


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

    def send(self, title: str, body: str) -> Sent:
        """Tell people; at most some seconds for each address that does not answer."""
        problems = []
        for name, service in self._services:
            try:
                with _silenced():
                    sent = service.notify(title=title, body=body)
                problem = "" if sent else "the service did not take it"
            except Exception as error:  # noqa: BLE001 - the loop goes on untold; the log says why
                problem = type(error).__name__
            if problem:
                problems.append(f"{name}: {problem}")
                LOGGER.warning("No alert through %s: %s.", name, problem)
        return Sent(len(self._services) - len(problems), tuple(problems))


def alerts(urls: Sequence[str]) -> Alerts:
    """Alerts to these Apprise URLs; to nobody where there are none. Raises SettingsError."""
    return AppriseAlerts(urls) if urls else NoAlerts()


def tell(alerts: Alerts, audit: Audit, project: str, now: datetime) -> None:
    """Tell people of each subject that stands otherwise than they were told last.

    A line of kind `told` keeps what was told and which addresses failed. Where none took it, it is
    tried again after the next turn. Never raises: a turn stands, whoever was told of it.
    """
    try:
        _tell(alerts, audit, project, now)
    except Exception as error:  # noqa: BLE001 - the log says why; the next turn tells
        LOGGER.warning("People could not be told: %s.", cause(error))


def _tell(alerts: Alerts, audit: Audit, project: str, now: datetime) -> None:
    lines = audit.lines()
    known = told(lines)
    for subject, standing in standings(lines).items():
        if standing.state == known.get(subject, WELL):
            continue
        sent = alerts.send(f"{project}: {standing.title}", standing.body)
        if sent.taken or sent.problems:
            line = {"subject": subject, "state": standing.state, "taken": sent.taken}
            audit.write(TOLD, now, {**line, "problems": sent.problems})


def told(lines: Sequence[Mapping[str, Json]]) -> dict[str, str]:
    """The state of each subject that somebody was told last."""
    bodies = (line["body"] for line in lines if line["kind"] == TOLD)
    return {body["subject"]: body["state"] for body in bodies if body["taken"]}


def standings(lines: Sequence[Mapping[str, Json]]) -> dict[str, Standing]:
    """How each subject stands after these lines of the audit chain, the oldest first.

    `monitor` has the state of the last look, `stable` being well, and is `needed` where a human is
    called for another reason than broken data; `release` has the id of the release that serves,
    `approval` that of the newest that waits; `training`, `recalibration`, `probation`,
    `rollback`, `promotion` and `journal` are well, or not.
    """
    found: dict[str, Standing] = {}
    for line in lines:
        found |= _after(line["kind"], line["body"])
    return found


def _after(kind: str, body: Mapping[str, Json]) -> dict[str, Standing]:
    """The subjects of which one line of the chain tells."""
    found: dict[str, Standing] = {}
    if kind in STARTS:
        found["journal"] = Standing(WELL, "the journal is sealed again", "It works as before.")
    if kind == "decided":
        found |= _decided(body)
    elif kind == "monitored":
        found["monitor"] = _looked(body)
    elif kind in _FAILS:
        subject, title = _FAILS[kind]
        found[subject] = Standing("failed", title, body["reason"])
    elif kind in _WORKS:
        subject, said = _WORKS[kind]
        found[subject] = Standing(WELL, f"{subject} works again", said)
    elif kind == "waiting":
        short = body["release"][:12]
        said = f"Run `homeostat approve {short}` to let it serve. {body['reason']}"
        found["approval"] = Standing(body["release"], f"release {short} waits", said)
    elif kind in MOVES:
        title = kind.replace("_", " ")
        said = f"{body['release'][:12]} serves now. {body.get('reason', '')}".strip()
        found["release"] = Standing(body["release"], title, said)
        found["approval"] = Standing(WELL, "nothing waits for approval any more", said)
        well = Standing(WELL, "promotions work again", f"{body['release'][:12]} was promoted.")
        found |= {"promotion": well} if kind == "promoted" else {}
        back = Standing(WELL, "rollback works again", said)
        found |= {"rollback": back} if kind == "rolled_back" else {}
    return found


def _decided(body: Mapping[str, Json]) -> dict[str, Standing]:
    decision, look = body["decision"], body["evidence"]
    if decision["action"] == Action.CALL:
        # Broken data and the call that it leads to are one change, and so one message.
        broken = look is not None and look["state"] == State.BROKEN_DATA
        state = State.BROKEN_DATA.value if broken else "needed"
        return {"monitor": Standing(state, "a human is needed", decision["reason"])}
    return {"monitor": _looked(look)} if look else {}


def _looked(look: Mapping[str, Json]) -> Standing:
    state = look["state"]
    return Standing(WELL if state == State.STABLE else state, state, look["reason"])


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
