"""Write docs/settings.md and docs/cli.md: what the settings and the command line say of themselves.

It takes the settings' models and the command line's own help. It gives one Markdown page of each,
the same text for the same code; `make settings` runs it, and a test compares.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import tomlkit
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from homeostat.cli import app
from homeostat.listening import Key
from homeostat.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    str: "text",
    Path: "path",
    bool: "`true` or `false`",
    int: "whole number",
    float: "number",
    timedelta: "length of time",
    Key: "tables, see below",
}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

SETTINGS = """\
# Settings

Made from the code by `make settings`; a test fails when this page and the code disagree.

All settings of a project stand in `homeostat.toml` in its folder, in the sections below; a missing
file or line means the default. `homeostat init` writes the file with every setting as a comment,
and with `--data` it sets what it inferred: target, time, task, time zone, and lengths of time that
fit the data.

- **Lengths of time** are a number and a unit: `30s`, `5m`, `12h`, `7d`, `2w`.
- **A variable beats the file**: `HOMEOSTAT_SERVING__PORT=9000` sets `serving.port`, and
  `HOMEOSTAT_ALERTS__URLS='["json://localhost"]'` a list, as JSON.
- **What does not hold is refused** with the name of the field and what it must be; the value is not
  repeated, since it may be a secret. An unknown name in the file is refused, too.
"""

CLI = """\
# The command line

Made from the code by `make settings`; a test fails when this page and the code disagree.

`homeostat VERB --help` shows the same in a terminal; `python -m homeostat` is the same command, and
`homeostat --version` prints the version.

| exit code | means |
| --- | --- |
| 0 | a decision was recorded, or what was asked for was done; a refused challenger is a decision |
| 1 | refused to run or crashed, with the reason; with `--exit-code` a look that failed, too |
| 2 | wrong usage |
| 3, 4, 5, 6 | with `--exit-code` only: drift, broken data, not enough data, gate refused |

One process at a time changes a project: `train`, `adopt`, `approve`, `pin`, `unpin`, `monitor`,
`step`, `retrain`, `rollback`, `run`, `log import` and a release by `quarantine` take its lock: a
second is refused.
`serve` and `score` need neither lock nor key, and may run at the same time.

`adopt` reads a pickle, and whoever wrote it can run any code on this machine by that: adopt only a
file that you trust. It is read in a child process that does not see the signing key, and never
again: what is released is the estimator as it was read, tried and pickled anew.

`score` checks, answers and journals each row as the server would (`source` is `serve`: the monitor
looks at such rows as at any other), but takes any `occurred_at`. With a column of ids the same file
may be scored again: known rows are answered as they were and not journalled twice. Without ids
every run journals new rows. `--on-error stop` ends before the batch of the first row that is
refused, and says which it is; what was answered until then is in the output file. `--on-error skip`
leaves such rows out, and counts them by code.
"""


def settings() -> str:
    """The text of docs/settings.md."""
    lines = [SETTINGS]
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            section = type(field.default)
            lines += [f"## `[{name}]`", "", str(section.__doc__), "", *_fields(section), ""]
    lines += ["## `[[serving.keys]]`", "", f"{Key.__doc__} There may be any number.", ""]
    return "\n".join([*lines, *_fields(Key)]) + "\n"


def _fields(section: type[BaseModel]) -> Iterator[str]:
    yield from _table_head("setting", "default", "type", "meaning")
    held = section.model_construct().model_dump(mode="json")
    for name, field in section.model_fields.items():
        default = "required"
        if not field.is_required():
            default = "unset"
            if held[name] is not None:
                default = f"`{tomlkit.item(held[name]).as_string()}`"
        yield _line(f"`{name}`", default, _kind(field), str(field.description))


def _kind(field: FieldInfo) -> str:
    text = _type(field.annotation)
    unset = NoneType in get_args(field.annotation) and field.default is not None
    bounds = [
        f"{sign} {limit:g}"
        for bound in field.metadata
        for name, sign in BOUNDS.items()
        if (limit := getattr(bound, name, None)) is not None
    ]
    return " ".join([text, " and ".join(bounds)]).strip() + (" or `none`" if unset else "")


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return _type(next(part for part in inner if part is not NoneType))
    if origin is tuple:
        return "list of " + _type(inner[0])
    if hasattr(annotation, "__metadata__"):
        return _type(inner[0])
    return NAMES[annotation]


def cli() -> str:
    """The text of docs/cli.md."""
    verbs = list(_verbs(typer.main.get_command(app), ("homeostat",)))
    lines = [CLI, *_table_head("verb", "does")]
    lines += [_line(f"[`{path}`](#{path.replace(' ', '-')})", verb.help) for path, verb in verbs]
    for path, verb in verbs:
        lines += ["", f"## `{path}`", "", verb.help, "", f"    {_usage(path, verb)}", ""]
        lines += _table_head("argument or option", "default", "meaning")
        lines += [_line(f"`{_name(p)}`", _default(p), p.help) for p in verb.params]
    return "\n".join(lines) + "\n"


def _verbs(group: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, verb in group.commands.items():
        if hasattr(verb, "commands"):
            yield from _verbs(verb, (*path, name))
        else:
            yield " ".join((*path, name)), verb


def _usage(path: str, verb: Any) -> str:
    """What has to be given, in the order of the verb's own parameters."""
    parts = []
    for parameter in verb.params:
        if parameter.param_type_name == "argument":
            parts.append(_name(parameter) if parameter.required else f"[{_name(parameter)}]")
        elif parameter.required:
            parts.append(f"{_name(parameter)} …")
    return " ".join([path, *parts, "[OPTIONS]"])


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    return ", ".join(parameter.opts)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.default is None or parameter.default is False:
        return ""
    return f"`{parameter.default}`"


def _table_head(*columns: str) -> Sequence[str]:
    return _line(*columns), _line(*["---"] * len(columns))


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


PAGES = {"docs/settings.md": settings, "docs/cli.md": cli}


def main() -> None:
    for name, text in PAGES.items():
        (ROOT / name).write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
