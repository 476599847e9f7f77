"""The command line: one thin verb per room.

Every verb takes `--project DIR`; those that report take `--json`. Exit codes: 0 a decision was
recorded, whatever it was; 1 refused to run or crashed, with the reason; 2 usage; with
`--exit-code` also 3 drift, 4 broken data, 5 not enough data, 6 gate refused.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from homeostat import __version__, screen, verbs
from homeostat.build import Project, load_project
from homeostat.errors import HomeostatError
from homeostat.records import Evidence, Outcome, State
from homeostat.verbs import HERE, AsJson, Folder

app = typer.Typer(
    name="homeostat",
    help="Keeps a deployed tabular model fit, unattended, and can prove that it did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(verbs.labels, name="labels")
app.add_typer(verbs.log, name="log")

ExitCode = Annotated[
    bool,
    typer.Option("--exit-code", help="3 drift, 4 broken data, 5 not enough data, 6 gate refused."),
]


def main(argv: list[str] | None = None) -> None:
    """Run one verb and exit; errors raised on purpose, and what the machine refuses, become one
    line and exit code 1.
    """
    try:
        app(args=argv, prog_name="homeostat")
    except HomeostatError as error:
        screen.problem(error)
        sys.exit(1)
    except OSError as error:
        hint = "See to the folder's rights and the disk's free space."
        screen.problem(HomeostatError(f"the machine refused: {error}.", hint=hint))
        sys.exit(1)


def _version(asked: bool) -> None:
    if asked:
        screen.say(f"homeostat {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


# --- a project ---


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where the project goes.")] = HERE,
    data: Annotated[
        Path | None, typer.Option(help="CSV or Parquet of labelled rows to start from.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    time: Annotated[str | None, typer.Option(help="Column of the event time.")] = None,
    task: Annotated[
        str | None, typer.Option(help="binary, multiclass or regression; inferred if unset.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A column that is no feature; may be repeated.")
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(help="Zone in which naive times are read; UTC if unset.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a project: of your own data with --data, else the flights example."""
    from homeostat import project

    made = project.init(
        folder,
        data=data,
        target=target,
        time=time,
        task=task,
        exclude=tuple(exclude or ()),
        timezone=timezone,
    )
    screen.made(made, as_json=as_json)


@app.command()
def doctor(folder: Folder = HERE, as_json: AsJson = False) -> None:
    """Check that the project can run: settings, files, key, champion, disk, optional parts."""
    from homeostat import doctor as checks

    found = checks.examine(folder)
    screen.checks(found, as_json=as_json)
    if any(check.result == "wrong" for check in found):
        raise typer.Exit(1)


@app.command()
def key(
    role: Annotated[
        Literal["viewer", "predict", "feedback", "admin"], typer.Argument(help="Its rights.")
    ],
    name: Annotated[str, typer.Option(help="Who holds it.")] = "client",
) -> None:
    """Make an API key: the key itself once, and the lines with its hash for homeostat.toml."""
    from homeostat import project

    secret, lines = project.new_key(role, name)
    screen.say(f"Key, shown this once: {secret}")
    screen.say(f"For homeostat.toml:\n\n{lines}")


# --- the loop ---


@app.command()
def train(folder: Folder = HERE, as_json: AsJson = False) -> None:
    """Train the first release; with a champion in place, a challenger that the gate judges."""
    project = load_project(folder)
    with screen.working("training"), project.loop() as loop:
        outcome = loop.train()
    _report(project, outcome, as_json=as_json)


app.command()(verbs.adopt)


@app.command()
def monitor(folder: Folder = HERE, as_json: AsJson = False, exit_code: ExitCode = False) -> None:
    """Look at the newest window: evidence and reports, nothing is decided."""
    project = load_project(folder)
    with screen.working("looking at the newest window"), project.loop() as loop:
        evidence = loop.monitor()
    screen.evidence(evidence, project.settings.path("reports"), as_json=as_json)
    if exit_code:
        raise typer.Exit(_code(evidence))


@app.command()
def step(folder: Folder = HERE, as_json: AsJson = False, exit_code: ExitCode = False) -> None:
    """Monitor, decide, act: what cron calls."""
    project = load_project(folder)
    with screen.working("taking one step"), project.loop() as loop:
        outcome = loop.step()
    _report(project, outcome, as_json=as_json)
    if exit_code:
        raise typer.Exit(_code(outcome.evidence, outcome))


@app.command()
def retrain(
    folder: Folder = HERE,
    force: Annotated[bool, typer.Option("--force", help="Train without drift, too.")] = False,
    as_json: AsJson = False,
    exit_code: ExitCode = False,
) -> None:
    """Act on the last drift_status.json: train if it says drift, release if the gate agrees."""
    project = load_project(folder)
    with screen.working("acting on the last status"), project.loop() as loop:
        outcome = loop.retrain(force=force)
    _report(project, outcome, as_json=as_json)
    if exit_code:
        raise typer.Exit(_code(None, outcome))


@app.command()
def rollback(
    release: Annotated[str | None, typer.Argument(help="Id; the predecessor if unset.")] = None,
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Make an earlier release the champion again."""
    project = load_project(folder)
    with project.loop() as loop:
        outcome = loop.roll_back(release)
    _report(project, outcome, as_json=as_json)


app.command()(verbs.approve)
app.command()(verbs.pin)
app.command()(verbs.unpin)


@app.command()
def run(folder: Folder = HERE) -> None:
    """Take a step now and then on the schedule of `run.every`, until stopped; serve the page, and
    carry out what is asked for there.
    """
    from homeostat.wall.run import run as go

    project = load_project(folder)
    go(
        project,
        report=lambda outcome: _report(project, outcome, as_json=False),
        problem=screen.problem,
        say=screen.say,
    )


@app.command()
def serve(
    folder: Folder = HERE,
    host: Annotated[str | None, typer.Option(help="Instead of serving.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Instead of serving.port.")] = None,
) -> None:
    """Serve the champion over HTTP; new releases are picked up without a restart."""
    import uvicorn

    from homeostat.web.metrics import shared

    serving = load_project(folder).settings.serving
    host, port = host or serving.host, serving.port if port is None else port
    os.chdir(folder)
    screen.say(f"Serving on http://{host}:{port}, with its documentation at /docs.")
    with shared(serving.workers):
        uvicorn.run(
            "homeostat.web.api:create_app",
            factory=True,
            host=host,
            port=port,
            workers=serving.workers,
            log_level="warning",
            access_log=False,  # serving.log asks for lines of requests
            proxy_headers=False,  # nothing here depends on a client's address
            server_header=False,
            timeout_graceful_shutdown=math.ceil(serving.timeout.total_seconds()),
        )


app.command()(verbs.score)


# --- what happened ---


app.command()(verbs.quarantine)


@app.command()
def status(
    folder: Folder = HERE,
    as_json: AsJson = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Tables of drift and gate, for a job summary.")
    ] = False,
) -> None:
    """Which model serves, and what the last look found."""
    screen.status(load_project(folder), as_json=as_json, markdown=markdown)


@app.command()
def history(
    folder: Folder = HERE,
    limit: Annotated[int, typer.Option(help="Newest lines to show.", min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """The newest lines of the audit chain."""
    screen.history(load_project(folder).audit.lines()[-limit:], as_json=as_json)


@app.command()
def verify(folder: Folder = HERE, as_json: AsJson = False) -> None:
    """Recompute the audit chain, the champion's signature, each byte of its line, and the hash of
    every training frame that a release names, as the journal still gives it.
    """
    from homeostat.rebuild import frames

    project = load_project(folder)
    lines, checked = project.audit.verify(), project.releases.verify()
    trainings = project.releases.trainings()
    with screen.working("rebuilding training frames"):
        found = frames(trainings, project.journal, project.releases, project.audit)
    forgets = project.settings.journal.keep is not None
    erased = project.journal.erased()
    if not screen.verified(lines, checked, found, erased, forgets=forgets, as_json=as_json):
        raise typer.Exit(1)


app.command()(verbs.replay)
app.command()(verbs.demo)


def _report(project: Project, outcome: Outcome, *, as_json: bool) -> None:
    screen.outcome(outcome, project.settings.path("reports"), as_json=as_json)


def _code(evidence: Evidence | None, outcome: Outcome | None = None) -> int:
    if outcome is not None and outcome.verdict is not None and not outcome.verdict.promote:
        return 6
    codes: dict[Any, int] = {
        State.DRIFT: 3,
        State.BROKEN_DATA: 4,
        State.INSUFFICIENT_DATA: 5,
        State.FAILED: 1,
    }
    return codes.get(evidence.state, 0) if evidence is not None else 0
