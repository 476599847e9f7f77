"""Checks that a project can run, each with a remedy.

Takes a project's folder and gives one `Check` for each thing that has to be in place; nothing is
changed. `wrong` means that some verb will refuse, `note` that something optional is off.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from homeostat.build import Project, load_project
from homeostat.errors import HomeostatError
from homeostat.release import signing_key

ROOM = 100 * 2**20  # bytes of free disk under which a note is made


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    result: Literal["well", "note", "wrong"]
    message: str


def examine(folder: Path) -> tuple[Check, ...]:
    """All checks on one folder; settings that do not hold end them."""
    try:
        project = load_project(folder)
    except HomeostatError as error:
        return (Check("settings", "wrong", str(error)),)
    return (
        Check("settings", "well", f"{project.settings.project.name} in {project.root}"),
        *_rest(project),
    )


def _rest(project: Project) -> Iterator[Check]:
    script = project.settings.script
    if script.is_file():
        yield Check("training script", "well", str(script))
    else:
        yield Check("training script", "wrong", f"{script} is missing; `homeostat init` writes one")
    yield _guarded("champion", lambda: _champion(project))
    yield _guarded("audit chain", lambda: f"{project.audit.verify()} lines")
    yield _guarded("signing key", lambda: _key(project))
    yield from _erasures(project)
    free = shutil.disk_usage(project.root).free
    enough = "well" if free > ROOM else "note"
    yield Check("disk", enough, f"{free / 2**30:.1f} GiB free")  # type: ignore[arg-type]
    for part, module in (("MLflow", "mlflow"), ("alerts", "apprise")):
        if find_spec(module):
            yield Check(part, "well", "installed")
        else:
            yield Check(part, "note", f"not installed: pip install 'homeostat[{part.lower()}]'")


def _erasures(project: Project) -> Iterator[Check]:
    try:
        left = project.journal.unfinished()
    except HomeostatError as error:
        yield Check("erasures", "wrong", str(error))
        return
    for one in left:
        yield Check("erasures", "note", str(one))
    if not left:
        yield Check("erasures", "well", "none is left unfinished")


def _guarded(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, "well", look())
    except HomeostatError as error:
        return Check(name, "wrong", str(error))


def _champion(project: Project) -> str:
    champion = project.releases.champion()
    if champion is None:
        return "none yet; `homeostat train` makes the first"
    for name in champion.manifest["objects"]:
        project.releases.object(champion, name)
    return f"{champion.short}, signature and {len(champion.manifest['objects'])} objects verified"


def _key(project: Project) -> str:
    folder, models = project.settings.path(".homeostat"), project.settings.path("models")
    if not (models / "trusted.pub").exists():  # with a key at hand it would be written now
        return "the first training makes one (on a runner of GitHub's it must be given)"
    if signing_key(folder, models, os.environ, make=False) is None:
        return "absent: challengers stay unsigned candidates here"
    return "present and trusted"
