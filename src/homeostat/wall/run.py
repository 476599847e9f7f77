"""`homeostat run`: the loop on its schedule, and the page in a thread beside it.

Takes a project. Gives control back when it is told to stop; a page that cannot listen stops neither
the loop nor says so in silence.
"""

from __future__ import annotations

import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from homeostat import autonomy
from homeostat.build import Project, WallClock
from homeostat.errors import HomeostatError
from homeostat.notes import orders
from homeostat.records import Outcome
from homeostat.wall.app import Wall, create_app
from homeostat.wall.board import Board
from homeostat.wall.sessions import Sessions, secret
from homeostat.wall.traffic import Traffic
from homeostat.wall.turns import Turns

ENDS = 5.0  # seconds that connections have to end


def run(
    project: Project,
    *,
    report: Callable[[Outcome], None],
    problem: Callable[[HomeostatError], None],
    say: Callable[[str], None],
) -> None:
    """Steps and orders until SIGINT or SIGTERM; `say` is told where the page is to be found."""
    home = project.settings.path(".homeostat")
    turns = Turns(project.unattended, orders(home), WallClock(), project.settings.run.every)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: turns.stop())

    def waits(every: timedelta) -> None:
        say(f"Next step in {every}.")

    unearned = autonomy.unearned(project.settings, project.audit.lines())
    if unearned:
        say(
            f"{unearned} Until one has won, what the gate promotes waits for `homeostat approve`. "
            "Inside the project `homeostat replay` makes one; decide.proof = 'none' waives it."
        )
    if not project.settings.run.page:
        turns.run(report, problem, waits)
        return
    with page(project, turns, problem, say):
        turns.run(report, problem, waits)


def wall(project: Project, turns: Turns) -> Wall:
    """What the page of a project is made of."""
    chosen = project.settings
    home = chosen.path(".homeostat")
    return Wall(
        settings=chosen,
        board=Board(project),
        traffic=Traffic(
            chosen.run.servers or (_server(project),),
            chosen.run.key,
            expected=bool(chosen.run.servers),
        ),
        sessions=Sessions(secret(home), chosen.serving.keys),
        orders=orders(home),
        doing=lambda: turns.doing,
        now=turns.clock.now,
        wake=turns.wake,
    )


def _server(project: Project) -> str:
    """Where `homeostat serve` answers, by the settings."""
    host, port = project.settings.serving.host, project.settings.serving.port
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - it is not bound
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


@contextmanager
def page(
    project: Project,
    turns: Turns,
    problem: Callable[[HomeostatError], None],
    say: Callable[[str], None],
) -> Iterator[None]:
    """Serve the page in a thread while the block runs."""
    import uvicorn

    host, port = project.settings.run.host, project.settings.run.port
    try:
        listening = _socket(host, port)
    except OSError as error:
        hint = "Set run.port; the loop goes on without its page."
        told = f"the page cannot listen on {host}:{port}: {error.strerror}."
        problem(HomeostatError(told, hint=hint))
        yield
        return
    made = wall(project, turns)
    config = uvicorn.Config(
        create_app(made),
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # the door asks for the connection's own address
        server_header=False,
        timeout_graceful_shutdown=math.ceil(ENDS / 2),
        ws="none",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), name="page", daemon=True)
    thread.start()
    shown = f"[{host}]" if ":" in host else host
    say(f"The page is at http://{shown}:{listening.getsockname()[1]}.")
    try:
        yield
    finally:
        made.closing.set()
        server.should_exit = True
        thread.join(ENDS)


def _socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made
