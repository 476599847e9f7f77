"""The report's page: whole in one file, loading nothing, and no name in it can act."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from report_fixtures import NAMES, evidence

from homeostat.findings import findings
from homeostat.page import HEAT, PICTURES, page, shown
from homeostat.records import State
from homeostat.report import to_status
from homeostat.settings import Monitor

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Tags with their attributes, the text, and whether each tag was closed in its order."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.text, self.open, self.sound = [], [], [], True
        self.feed(content.decode())
        self.sound = self.sound and not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.sound = self.sound and bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def drawn(known=None, lines=()):
    known = known or evidence()
    found = findings(to_status(known), known.shapes, known.importance, lines, Monitor())
    return page(found, picture="None.", drift_report="drift_report.html")


def test_no_name_or_level_of_any_kind_can_act():
    content = drawn()
    read = Reader(content)
    assert read.sound
    assert not {"script", "img", "iframe", "object", "link"} & {name for name, _ in read.tags}
    for _, attrs in read.tags:
        assert not any(name.startswith("on") or name == "style" for name in attrs)
    assert "</script><img src=x onerror=alert(1)>" in " ".join(read.text)
    for raw in ("\u202e", "\u2066", "\x00", "<img"):
        assert raw not in content.decode()
    assert "👩‍🚒 größe" in content.decode()
    assert "49" not in "".join(text for text in read.text if "quoted" in text)


def test_it_loads_nothing_and_its_policy_lets_nothing_but_its_own_style_hold():
    content = drawn()
    read = Reader(content)
    (policy,) = [m["content"] for m in read.of("meta") if m.get("http-equiv")]
    style = re.search(r"<style>(.*?)</style>", content.decode(), re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert b"http://" not in content
    assert b"https://" not in content
    assert "url(" not in style
    assert [a["href"] for a in read.of("a")] == ["drift_report.html"]


def test_it_is_for_phones_and_for_dark_and_light():
    read = Reader(drawn())
    metas = {meta.get("name"): meta["content"] for meta in read.of("meta") if "name" in meta}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert metas["color-scheme"] == "light dark"
    assert b"prefers-color-scheme: dark" in drawn()


def test_every_drawing_says_in_words_what_it_shows():
    read = Reader(drawn())
    drawings = read.of("svg")
    assert len(drawings) == 2 * len(NAMES) + 1
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 10 for svg in drawings)
    assert any("They differ most at" in svg["aria-label"] for svg in drawings)


def test_three_hundred_columns_are_all_in_the_table_and_only_the_first_are_drawn():
    names = tuple(f"column {place}" for place in range(300))
    content = drawn(evidence(names))
    read = Reader(content)
    assert read.sound
    text = " ".join(read.text)
    assert f"{PICTURES} of 300 columns are drawn; the table has all." in text
    assert f"{HEAT} of 300 columns are drawn." in text
    assert all(f"<td><bdi>{name}</bdi>" in content.decode() for name in names)
    assert len(content) < 500_000


def test_the_same_evidence_gives_the_same_bytes():
    assert drawn() == drawn()


@pytest.mark.parametrize("state", list(State))
def test_each_verdict_has_a_page_with_or_without_anything_that_was_tested(state):
    bare = {"columns": (), "shapes": (), "importance": {}, "performance": None, "findings": ()}
    for more in ({}, bare):
        known = evidence(state=state, prediction_drift=None, **more)
        read = Reader(drawn(known))
        assert read.sound
        assert read.of("header")[0]["class"] == state.value


def test_numbers_that_are_not_known_are_dashes():
    known = evidence(("a",))
    odd = known.columns[0].__class__
    column = odd("a", "ks, rows", float("nan"), float("inf"), 1.0, float("nan"), False, 0.1, 0)
    read = Reader(drawn(evidence(("a",), columns=(column,))))
    assert read.sound
    assert "not tested" in " ".join(read.text)


def test_signs_that_hide_or_turn_text_are_shown_by_their_number():
    assert shown("a\u202eb\n\ud800") == "a‹U+202E›b‹U+000A›‹U+D800›"
    assert shown("שלום 🏳️‍🌈") == "שלום 🏳️‍🌈"
    assert len(shown("x" * 500)) == 80
