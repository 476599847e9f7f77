"""The composition root: from settings to wired objects.

`load_project` gives a `Project`, whose properties are the stores of one project folder; its
`loop()` holds the project's lock while a turn runs. `predictor` wires what a server needs, which
is less: no key, no user code, no reporter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from homeostat import autonomy, decide, release, settings
from homeostat.alerts import alerts
from homeostat.audit import ChainAudit
from homeostat.blocks import Kept
from homeostat.contracts import Clock, Engine, Watcher
from homeostat.engines.local import LocalEngine
from homeostat.errors import HomeostatError, ProjectError
from homeostat.journal import FileJournal
from homeostat.loop import Loop
from homeostat.notes import requests
from homeostat.predictor import Predictor
from homeostat.report import FileReporter
from homeostat.settings import Settings
from homeostat.tracking import tracker
from homeostat.train import ScriptTrainer


class WallClock:
    """The machine's clock, in UTC."""

    def now(self) -> datetime:
        return datetime.now(UTC)


@dataclass(frozen=True)
class Project:
    """One project folder and its stores. Reading needs no lock; `loop()` takes it."""

    settings: Settings

    @property
    def root(self) -> Path:
        return self.settings.root

    @cached_property
    def journal(self) -> FileJournal:
        chosen = self.settings.journal
        return FileJournal(
            self.settings.path("data", "logs"),
            ack=chosen.ack,
            tail=chosen.tail,
            orphans=chosen.orphans,
            keep=chosen.keep,
        )

    @cached_property
    def audit(self) -> ChainAudit:
        return ChainAudit(self.settings.path("reports", "decisions.jsonl"))

    @cached_property
    def releases(self) -> release.FileReleases:
        """The store for reading; `loop()` opens it with the signing key."""
        return release.FileReleases(self.settings.path("models"))

    def trainer(self, engine: Engine) -> ScriptTrainer:
        """The trainer that runs the script in `engine`."""
        chosen = self.settings
        return ScriptTrainer(
            engine,
            script=chosen.script,
            project=chosen.project,
            training=chosen.training,
            block=chosen.monitor.block,
            segments=chosen.monitor.segments,
        )

    def copy(self) -> list[Path]:
        """Re-make `models/model.pkl` and `data/processed/reference.csv` where they differ."""
        return self.releases.copies(
            self.settings.path("models", "model.pkl"),
            self.settings.path("data", "processed", "reference.csv"),
        )

    @contextmanager
    def loop(self, *, clock: Clock | None = None, watch: Watcher | None = None) -> Iterator[Loop]:
        """The loop, under the project's lock; what a killed turn left undone is finished first.

        Raises HomeostatError when another turn runs in this folder, ProjectError where there are
        neither settings nor a training script: nothing is written into a folder by mistake.
        """
        if not self.settings.path(settings.FILE).is_file() and not self.settings.script.is_file():
            raise ProjectError(f"{self.root} is no project.", hint="`homeostat init` makes one.")
        with ExitStack() as stack:
            stack.enter_context(self.locked())
            rooms = self._rooms(stack, clock or WallClock(), watch)
            notes = requests(self.settings.path(".homeostat"))
            found = notes.found()
            rooms.recover([*found.values()])
            notes.clear([*found])
            yield rooms

    @contextmanager
    def unattended(self, *, clock: Clock | None = None) -> Iterator[Loop]:
        """`loop()` for a process that acts without a human: by the mode `approve` where no replay
        has earned it `auto`.
        """
        with self.loop(clock=clock) as rooms:
            unearned = autonomy.unearned(self.settings, self.audit.lines())
            yield replace(rooms, settings=autonomy.held(rooms.settings)) if unearned else rooms

    @contextmanager
    def locked(self, wait: timedelta = timedelta(0)) -> Iterator[None]:
        """The one writer's lock. Raises HomeostatError when another process holds it for longer
        than `wait`.
        """
        folder = self.settings.path(".homeostat")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(folder / "loop.lock", timeout=wait.total_seconds())
        try:
            lock.acquire()
        except Timeout as error:
            raise HomeostatError(
                f"another turn of the loop runs in {self.root}.", hint="Wait until it has ended."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _signing(self) -> release.FileReleases:
        """The store with its key, which is made where there is none and the machine stays."""
        home, models = self.settings.path(".homeostat"), self.settings.path("models")
        make = not thrown_away(os.environ)
        key = release.signing_key(home, models, os.environ, make=make)
        return release.FileReleases(models, key)

    def _rooms(self, stack: ExitStack, clock: Clock, watch: Watcher | None) -> Loop:
        chosen = self.settings
        reports = chosen.path("reports")
        fits = LocalEngine(
            timeout=chosen.training.timeout,
            memory=chosen.training.memory,
            threads=chosen.training.threads,
        )
        stack.callback(fits.close)
        drawing = LocalEngine(timeout=chosen.monitor.timeout, memory=None, section="monitor")
        stack.callback(drawing.close)
        tracked = tracker(chosen.root, chosen.tracking, chosen.project.name, os.environ)
        stack.callback(tracked.close)
        return Loop(
            settings=chosen,
            clock=clock,
            journal=self.journal,
            releases=self._signing(),
            audit=self.audit,
            trainer=self.trainer(fits),
            reporter=FileReporter(
                reports,
                drawing,
                sample=chosen.monitor.sample,
                seed=chosen.project.seed,
                rules=chosen.monitor,
                lines=self.audit.lines,
            ),
            tracker=tracked,
            alerts=alerts(chosen.alerts.urls),
            policy=decide.policy(chosen.decide),
            copy=self.copy,
            watch=watch or ignore,
            report=reports / "drift_report.html",
            kept=Kept(self.journal, chosen.path(".homeostat", "profiles")),
            engine=fits,
            beside=True,
        )


def ignore(outcome: object) -> None:
    """A watcher that sees nothing."""


def thrown_away(environ: Mapping[str, str]) -> bool:
    """Whether this machine is a runner of GitHub's, gone after the run with any key made on it."""
    return environ.get("GITHUB_ACTIONS", "").lower() == "true"


def load_project(path: Path | str = ".") -> Project:
    """The project in a folder. Raises SettingsError for settings that do not hold, ProjectError
    where there is no such folder.
    """
    if not Path(path).is_dir():
        raise ProjectError(f"there is no folder {path}.", hint="`homeostat init` makes a project.")
    return Project(settings.read(path))


def predictor(chosen: Settings) -> Predictor:
    """What a server needs to answer; the champion is loaded by `Predictor.refresh`."""
    project = Project(chosen)
    return Predictor(project.releases, project.journal, WallClock(), serving=chosen.serving)
