"""Orders: what people ask of the loop between its turns, carried out one by one.

Takes the loop, under the project's lock, and the orders that were left. Each becomes a line in the
audit chain that names who asked, what it came to, or why it was not done; then it is cleared away.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta

from homeostat.errors import ReleaseError, cause
from homeostat.loop import Loop
from homeostat.notes import Notes, Order

REFUSED = "order_refused"
"""The kind of line in the audit chain that says that an order was not carried out."""

STALE = timedelta(days=1)
"""After which an order that nobody carried out is void: who gave it no longer waits for it."""


def carry_out(loop: Loop, orders: Notes[Order]) -> int:
    """Carry out all that wait, oldest first; how many there were."""
    found = orders.found()
    for path, order in sorted(found.items(), key=lambda item: item[1].at if item[1] else ""):
        if order is not None:
            _carry_out(loop, order)
        orders.clear([path])  # one at a time: a killed loop does none of them twice
    return len(found)


def _carry_out(loop: Loop, order: Order) -> None:
    try:
        _do(loop, order)
    except Exception as error:  # noqa: BLE001 - fails closed: nothing was done, and why
        told = {"action": order.action, "release": order.release, "by": order.by}
        loop.audit.write(REFUSED, loop.clock.now(), {**told, "reason": cause(error)})


def _do(loop: Loop, order: Order) -> None:
    champion = loop.releases.champion()
    if _done(loop, order):
        return  # by a loop that was killed before it could clear the order away
    if _too_old(order, loop.clock.now()):
        raise ReleaseError("it was asked for more than a day ago.")
    if champion is None or champion.id != order.champion:
        raise ReleaseError("another release serves than when this was asked.")
    if order.action == "approve":
        loop.approve(order.release, order.by)
    elif order.action == "roll_back":
        loop.roll_back(order.release, by=order.by)
    elif order.action in ("pin", "unpin"):
        loop.pin(order.by, pinned=order.action == "pin")
    else:
        raise ReleaseError(f"{order.action!r} is no order.")


def _done(loop: Loop, order: Order) -> bool:
    """Whether the chain tells, since the order was given, that it was carried out."""
    kind = {"approve": "approved", "roll_back": "rolled_back"}.get(order.action)
    return any(
        line["kind"] == kind
        and line["at"] >= order.at
        and (line["body"].get("by"), line["body"]["release"]) == (order.by, order.release)
        for line in reversed(loop.audit.lines())
    )


def _too_old(order: Order, now: datetime) -> bool:
    """Also where the time of the order is none."""
    with suppress(ValueError, TypeError):
        return now - datetime.fromisoformat(order.at) > STALE
    return True
