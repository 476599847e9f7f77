"""What `homeostat init` does: make a project folder, from nothing or from a data file.

It takes a folder, and perhaps a file of labelled rows with the names of its target and time. It
writes the files that the package carries, which are those at the root of its own repository, and
says which it wrote and what it inferred; an existing file is never overwritten.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel

from homeostat import __version__
from homeostat.draft import Draft, draft
from homeostat.errors import ProjectError
from homeostat.listening import Key
from homeostat.settings import FILE, Settings

IGNORE = ".gitignore"
REQUIREMENTS = "requirements.txt"
TRAIN = "src/training/train.py"
FILES = (
    ".github/workflows/monitor-and-retrain.yml",
    IGNORE,
    FILE,
    REQUIREMENTS,
    "src/inference/api.py",
    "src/monitoring/monitor.py",
    "src/training/retrain.py",
    TRAIN,
)
"""A project's files, relative to its folder."""

_MADE = "# what a running project makes"
_ITSELF = "-e .[all]"
_PINNED = "# Homeostat itself, and what it runs on, pinned to versions that were tested together.\n"
_UNSET = {
    "project.task": "binary",
    "project.timezone": "Europe/Vienna",
    "journal.keep": "none",
    "gate.latency": "none",
    "decide.every": "none",
}
"""Something to write where a setting's default is to be unset, which TOML cannot say."""
_HEAD = """\
# The settings of this project. A line such as `# port = 8000` holds its default; take the mark
# away to change it. Lengths of time are written '30s', '5m', '12h', '7d' or '2w'. A variable beats
# this file: HOMEOSTAT_SERVING__PORT=9000 sets serving.port.
"""


@dataclass(frozen=True, slots=True)
class Made:
    """What `init` did."""

    folder: Path
    written: tuple[str, ...]  # new files, relative to the folder
    kept: tuple[str, ...]  # files that were there already and stay as they were
    said: tuple[str, ...]  # what was inferred, and what the user should know; one line each


def init(
    folder: Path | str,
    *,
    data: Path | str | None = None,
    target: str | None = None,
    time: str | None = None,
    task: str | None = None,
    exclude: Sequence[str] = (),
    timezone: str | None = None,
) -> Made:
    """Make a project in `folder`: the flights project, or one of the labelled rows in `data`.

    `data` is a CSV or Parquet file; `target` and `time` name its columns, `exclude` those that
    are no features, `timezone` the zone of times that carry none. Either all files are written or
    none. Raises ProjectError when another file stands where one has to go, and for data from
    which no project can be made.
    """
    root = Path(folder).resolve()
    if data is not None:
        if not target or not time:
            raise ProjectError(
                "a project from a data file needs to know the target and the time.",
                hint="Add --target COLUMN and --time COLUMN.",
            )
        drafted = draft(
            Path(data), root, target, time, task=task, exclude=exclude, timezone=timezone
        )
        return _write(root, _drafted(root.name, drafted), drafted.said)
    if target or time or task or exclude or timezone:
        raise ProjectError(
            "target, time, task, exclude and timezone describe a data file, and none is given.",
            hint="Add --data FILE.",
        )
    return _write(root, _flights(), ())


def _write(root: Path, contents: Mapping[str, str], inferred: Sequence[str]) -> Made:
    said = list(inferred)
    kept = _kept(root, contents)
    written = tuple(name for name in contents if name not in kept)
    for name in written:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents[name], encoding="utf-8")
    if "://" in (itself := requirement()):
        said.append(f"{REQUIREMENTS} installs {itself}: change that line where CI cannot reach it.")
    if IGNORE in kept and (root / IGNORE).read_text(encoding="utf-8") != contents[IGNORE]:
        said.append(
            f"{IGNORE} was there already and stays as it is: see that it has .homeostat/, where "
            "the private key lies, data/, models/ and reports/."
        )
    return Made(root, written, kept, tuple(said))


def new_key(role: str, name: str) -> tuple[str, str]:
    """An API key, and the lines of `homeostat.toml` that let it in; they hold only its hash."""
    secret = secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    kept = Key.model_validate({"name": name, "role": role, "sha256": digest})
    fields = (f"{field} = {tomlkit.item(v).as_string()}" for field, v in kept.model_dump().items())
    return secret, "\n".join(["[[serving.keys]]", *fields])


def settings_toml(overrides: Mapping[str, Mapping[str, Any]]) -> str:
    """`homeostat.toml` with every setting: its meaning, its default as a comment, or its override.

    `overrides` is section → field → value as TOML has it. Raises ProjectError for a section or
    field that does not exist.
    """
    lines = [_HEAD]
    sections = {name: field for name, field in Settings.model_fields.items() if name != "root"}
    _refuse_unknown("settings", overrides, sections)
    for name, field in sections.items():
        section = field.default
        assert isinstance(section, BaseModel)  # noqa: S101 - for the type checker
        lines += [f"[{name}]  # {(type(section).__doc__ or '').strip()}", ""]
        lines += _section(name, section, overrides.get(name, {}))
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, section: BaseModel, overrides: Mapping[str, Any]) -> list[str]:
    lines = []
    fields = type(section).model_fields
    _refuse_unknown(name, overrides, fields)
    defaults = section.model_dump(mode="json")
    for key, field in fields.items():
        lines += textwrap.wrap(
            field.description or "", 98, initial_indent="# ", subsequent_indent="# "
        )
        value, mark = defaults[key], "# "
        if value is None:
            value = _UNSET.get(f"{name}.{key}", "")
        if key in overrides:
            value, mark = overrides[key], ""
        lines += [f"{mark}{key} = {tomlkit.item(value).as_string()}", ""]
    return lines


def _refuse_unknown(where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ProjectError(
            f"{where} has no {unknown[0]!r}.", hint=f"There are {', '.join(map(repr, known))}."
        )


def template() -> Path:
    """The folder of the files that `init` writes: in the package, or the repository's root."""
    packaged = Path(__file__).parent / "template"
    return packaged if packaged.is_dir() else Path(__file__).parents[2]


def _flights() -> dict[str, str]:
    source = template()
    contents = {name: (source / name).read_text(encoding="utf-8") for name in FILES}
    ignore = contents[IGNORE]
    contents[IGNORE] = f".venv/\n__pycache__/\n\n{ignore[ignore.index(_MADE) :]}"
    pins = contents[REQUIREMENTS].partition(f"{_ITSELF}\n")[2]
    contents[REQUIREMENTS] = f"{_PINNED}{requirement()}\n{pins}"
    return contents


def _drafted(name: str, drafted: Draft) -> dict[str, str]:
    overrides = {section: dict(values) for section, values in drafted.settings.items()}
    overrides.setdefault("project", {})["name"] = name or "homeostat"
    changed = {TRAIN: drafted.train, FILE: settings_toml(overrides)}
    return {**_flights(), **changed}


def _kept(root: Path, contents: Mapping[str, str]) -> tuple[str, ...]:
    """The files that need not be written; raises ProjectError for those that stand in the way."""
    kept: list[str] = []
    conflicts: list[str] = []
    for name, content in contents.items():
        path = root / name
        above = [part for part in path.parents if part.is_relative_to(root)]
        if any(os.path.lexists(part) and not part.is_dir() for part in above):
            conflicts.append(name)
        if not os.path.lexists(path):
            continue
        same = path.is_file() and path.read_bytes() == content.encode()
        own = name == IGNORE and path.is_file()
        (kept if same or own else conflicts).append(name)
    if conflicts:
        raise ProjectError(
            f"{', '.join(conflicts)} in {root} would be overwritten; nothing was written.",
            hint="Choose another folder, or move these away.",
        )
    return tuple(kept)


def requirement() -> str:
    """The requirement that installs this very package again, with its extras.

    It names the folder, file or commit that the running package was installed from, as PEP 610
    records it, and the version where it came from an index.
    """
    try:
        found = distribution("homeostat")
    except PackageNotFoundError:
        return f"homeostat[all] @ {Path(__file__).parents[2].as_uri()}"
    text = found.read_text("direct_url.json")
    if text is None:
        return f"homeostat[all]=={__version__}"
    origin = json.loads(text)
    url = origin["url"]
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    fragments = []
    if "subdirectory" in origin:
        fragments.append(f"subdirectory={origin['subdirectory']}")
    sha256 = origin.get("archive_info", {}).get("hashes", {}).get("sha256")
    if sha256:
        fragments.append(f"sha256={sha256}")
    return f"homeostat[all] @ {url}" + (f"#{'&'.join(fragments)}" if fragments else "")


def refresh(folder: Path) -> bool:
    """Write `homeostat.toml` anew from its own overrides; whether it changed.

    For the package's own repository, when a setting was added or described otherwise.
    """
    file = folder / FILE
    before = file.read_text(encoding="utf-8")
    after = settings_toml(tomllib.loads(before))
    if after != before:
        file.write_text(after, encoding="utf-8")
    return after != before
