"""The documentation: made from the code where it can be, and held to it everywhere else."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from homeostat import __version__
from homeostat.cli import app
from homeostat.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted(DOCS.glob("*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^(<!-- runs -->\n)?```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^()\s]+)\)")
TEST = re.compile(r"^(?:async )?(?: {4})?def (test_\w+)", re.M)
SECTIONS = {
    name: type(field.default).model_fields
    for name, field in Settings.model_fields.items()
    if isinstance(field.default, BaseModel)
}
NO_COMMANDS = {"homeostat champion pointer 1"}  # what a signature begins with


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    return FENCE.sub("", text_of(page))


def spans(page: Path) -> list[str]:
    """What stands between backticks in running text."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generator", ROOT / ".ci" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- made from the code ---


@pytest.mark.parametrize("name", ["docs/settings.md", "docs/cli.md"])
def test_the_page_is_what_the_code_says_of_itself(name):
    assert text_of(ROOT / name) == generator().PAGES[name](), "run `make settings`"


def test_every_setting_is_on_the_page():
    lines = text_of(DOCS / "settings.md").splitlines()
    for section, fields in SECTIONS.items():
        rest = lines[lines.index(f"## `[{section}]`") + 1 :]
        end = next((n for n, line in enumerate(rest) if line.startswith("## ")), len(rest))
        told = re.findall(r"^\| `(\w+)` \|", "\n".join(rest[:end]), re.M)
        assert told == list(fields)


# --- held to the code ---


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_relative_link_leads_somewhere(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_index():
    linked = set(LINK.findall(text_of(DOCS / "index.md")))
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_verb_and_option_that_is_shown_exists(page):
    for command in commands(page):
        verb, words = typer.main.get_command(app), command[1:]
        while words and hasattr(verb, "commands") and not words[0].startswith("-"):
            assert words[0] in verb.commands, command
            verb, words = verb.commands[words[0]], words[1:]
        known = {name for parameter in verb.params for name in parameter.opts} | {"--help"}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, command


def commands(page: Path) -> list[list[str]]:
    """Calls of `homeostat` in code, split into words; `VERB` stands for any verb."""
    blocks = [body for _, kind, body in FENCE.findall(text_of(page)) if kind != "python"]
    indented = re.findall(r"^ {4}(homeostat .+)$", prose(page), re.M)
    lines = [line.strip() for line in "\n".join(blocks).splitlines()] + indented
    found = {line for line in [*lines, *spans(page)] if line.startswith("homeostat ")}
    split = [shlex.split(line.replace("'", ""), comments=True) for line in found - NO_COMMANDS]
    return [words for words in split if len(words) > 1 and words[1] != "VERB"]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_setting_that_is_named_exists(page):
    for span in spans(page):
        match = re.match(r"([a-z]+)\.(?!csv|lock)([a-z_]+)\b", span)
        if match and match[1] in SECTIONS:
            assert match[2] in SECTIONS[match[1]], span


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_source_and_test_that_is_named_exists(page):
    for span in spans(page):
        path, _, rest = span.partition("::")
        if re.match(r"(src|tests|docs|\.ci|\.github)/[\w./-]+$", path):
            assert (ROOT / path).exists(), span
        if rest:
            assert rest.split("::")[-1] in TEST.findall(text_of(ROOT / path)), span


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_in_the_documentation_is_python(page, tmp_path, monkeypatch):
    """A block after `<!-- runs -->` is executed, all others are compiled."""
    monkeypatch.chdir(tmp_path)
    for runs, kind, body in FENCE.findall(text_of(page)):
        if kind == "python":
            code = compile(body, str(page), "exec")
            if runs:
                exec(code, {})


def test_every_module_has_its_place_in_the_architecture():
    told = set(spans(DOCS / "architecture.md"))
    package = ROOT / "src" / "homeostat"
    for part in package.iterdir():
        name = f"src/homeostat/{part.name}"
        if part.suffix == ".py" and not part.name.startswith("__"):
            assert name in told
        elif (part / "__init__.py").is_file():
            assert f"{name}/" in told


def test_every_trigger_and_every_kind_of_line_is_told():
    told = set(spans(DOCS / "decisions.md"))
    code = "".join(text_of(ROOT / f"src/homeostat/{name}.py") for name in ("decide", "loop"))
    triggers = re.findall(r"Action\.[A-Z_]+, \"(\w+)\"|_held\(outcome, \"(\w+)\"", code)
    kinds = re.findall(r"audit\.write\(\s*\"(\w+)\"", code)
    assert len(triggers) > 8
    assert len(kinds) > 8
    assert {name for pair in triggers for name in pair if name} | {*kinds, "repaired"} <= told


def test_the_arrows_are_those_that_are_tested():
    config = tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]["importlinter"]
    layers = " ".join(config["contracts"][0]["layers"]).replace("homeostat.", "").split()
    block = re.search(r"^ {4}cli$.*?(?=\n\n)", text_of(DOCS / "architecture.md"), re.M | re.S)
    assert block is not None
    assert block[0].split() == layers


def test_the_changelog_names_this_version():
    versions = re.findall(r"^## ([\d.]+)", text_of(ROOT / "CHANGELOG.md"), re.M)
    assert versions[0] == __version__
