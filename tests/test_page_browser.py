"""The page in a real browser: each view, an approval and a rollback by clicks, hostile names, many
columns, nothing yet, and a connection that is lost.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from serving_fixtures import ROW, serving, until
from wall_fixtures import ADMIN, HOSTILE, KEYS, VIEWER, bare, invented, lived, showing

from homeostat.audit import ChainAudit
from homeostat.testing import START

CHROMIUM = Path("/usr/bin/chromium")
NEEDED = bool(os.environ.get("HOMEOSTAT_REQUIRE_SYSTEM"))
api = (
    import_module("playwright.sync_api")
    if NEEDED
    else pytest.importorskip("playwright.sync_api", exc_type=ImportError)
)
expect = api.expect

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists() and not NEEDED, reason="Debian's chromium is missing"),
    pytest.mark.journey,
]

PATIENCE = 60_000  # milliseconds; a browser beside other tests has little of a core
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return lived(tmp_path_factory.mktemp("lived") / "p")


@pytest.fixture(scope="module")
def shown(root):
    with showing(root) as page:
        yield page


@pytest.fixture
def show():
    """Serves the page of a project until the tabs are closed."""
    with ExitStack() as stack:
        yield lambda root: stack.enter_context(showing(root))


@pytest.fixture
def tab(browser, show):
    """Opens a page; at the end nothing may have been refused or failed in it."""
    said, open_ = [], []

    def tab(url, *, wait=True, **options):
        context = browser.new_context(**{"timezone_id": "Asia/Tokyo", "locale": "en-GB", **options})
        open_.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: message.type == "error" and said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        if wait:
            expect(page.locator("#connection")).to_have_text("live")
        page.said = said
        return page

    yield tab
    for context in open_:
        context.close()
    assert said == []


def drawn(page, name):
    """A chart, once it is drawn."""
    chart = page.locator(name)
    expect(chart).to_have_attribute("data-drawn", re.compile(r"\d"))
    return chart


# --- views ---


def test_the_top_tells_how_the_model_is_in_the_viewers_own_time(tab, shown):
    page = tab(shown.url)
    expect(page.locator("h1")).to_contain_text("A release waits for approval")
    expect(page.locator("#top")).to_contain_text("first release")
    # The last look ended at midnight in UTC, which is nine in the morning in Tokyo.
    expect(page.locator("#top .parts time").last).to_have_text("19 Feb 2025, 09:00")
    expect(page.locator("#top .parts time").last).to_have_attribute("title", "2025-02-19 00:00 UTC")
    expect(page.locator("#traffic")).to_contain_text("does not answer")


def test_performance_is_drawn_and_arrow_keys_tell_of_each_decision(tab, shown):
    page = tab(shown.url)
    chart = drawn(page, "#performance-chart")
    chart.focus()
    page.keyboard.press("Home")
    expect(page.locator("#performance-said")).to_contain_text("first release (asked for)")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#performance-said")).not_to_contain_text("first release (asked for)")
    box = chart.bounding_box()
    chart.hover(position={"x": box["width"] - 20, "y": box["height"] / 2})
    expect(page.locator("#performance-said")).to_contain_text("waits for approval")
    page.locator("#performance summary").click()
    expect(page.locator("#performance tbody tr")).to_have_count(5)


def test_a_click_in_the_heat_map_shows_the_column_and_where_its_threshold_comes_from(tab, shown):
    page = tab(shown.url)
    chart = drawn(page, "#heat-chart")
    box = chart.bounding_box()
    chart.click(position={"x": box["width"] * 0.6, "y": box["height"] * 0.1})
    column = page.locator("#column")
    expect(column).to_contain_text("In the look at")
    expect(column).to_contain_text("The threshold is")
    expect(column).to_contain_text("Nulls:")
    drawn(page, "#column .shape")
    page.locator("#column summary").click()
    expect(page.locator("#column table")).to_contain_text("null")


def test_the_heat_map_can_be_walked_with_the_keyboard(tab, shown):
    page = tab(shown.url)
    drawn(page, "#heat-chart").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#heat-said")).to_contain_text("its threshold")
    page.keyboard.press("Enter")
    expect(page.locator("#column h3")).to_be_visible()


def test_decisions_are_found_by_words_and_open_with_their_evidence(tab, shown):
    page = tab(shown.url)
    rows = page.locator("#turns tr.turn")
    expect(rows).to_have_count(6)
    page.locator("#search").fill("harm retrain")
    expect(page.locator("#turns [role=status]")).not_to_have_text("6 of 6")
    rows.first.get_by_role("button").click()
    expect(page.locator("#turns .detail")).to_contain_text("Data window")
    page.locator("#search").fill("no such words")
    expect(page.locator("#turns")).to_contain_text("None has all")


def test_evidentlys_report_runs_in_a_sandbox_and_reaches_nothing(tab, shown):
    page = tab(shown.url)
    title = page.title()
    page.locator("#turns button.link").first.click()
    page.locator("#turns details summary").click()
    frame = page.locator("iframe.report")
    frame.scroll_into_view_if_needed()
    until(lambda: any("evidently" in each.url for each in page.frames))
    inside = next(each for each in page.frames if "evidently" in each.url)
    inside.wait_for_load_state()
    assert inside.evaluate("document.title") == "ran"
    assert inside.evaluate("origin") == "null"
    assert page.title() == title
    assert frame.bounding_box()["width"] > 1000  # a report is laid out for a wide page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_dark_and_light_follow_the_system_until_the_viewer_chooses(tab, shown, scheme):
    page = tab(shown.url, color_scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    assert (before == "rgb(16, 22, 28)") == (scheme == "dark")
    page.locator("#theme").click()
    assert page.evaluate(ground) != before
    page.reload()
    assert page.evaluate(ground) != before


def test_a_phone_shows_it_without_scrolling_sideways(tab, shown):
    page = tab(shown.url, viewport={"width": 375, "height": 720}, has_touch=True, is_mobile=True)
    drawn(page, "#performance-chart")
    drawn(page, "#heat-chart")
    expect(page.locator("#turns tr.turn").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_text_stands_out_from_its_ground_in_both_themes(tab, shown):
    for scheme in ("dark", "light"):
        page = tab(shown.url, color_scheme=scheme)
        expect(page.locator("#turns tr.turn").first).to_be_visible()
        assert page.evaluate(CONTRAST) == []


CONTRAST = """() => {
  const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map((v) => {
    v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if (!/^rgba.*, 0\\)$/.test(c)) return c; }
    return "rgb(255, 255, 255)"; };
  const poor = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.checkVisibility() || ["SCRIPT", "NOSCRIPT"].includes(e.tagName)) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(`${e.tagName} ${e.textContent.slice(0, 30)}`);
  }
  return poor;
}"""


def test_each_control_has_a_name_and_headings_follow_one_another(tab, shown):
    page = tab(shown.url)
    expect(page.locator("#turns tr.turn").first).to_be_visible()
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, a, input, [role]')].filter((e) => "
        "!(e.innerText || e.ariaLabel || e.labels?.length || e.type === 'hidden' || e.title"
        " || e.role === 'status')).map((e) => e.outerHTML)"
    )
    assert nameless == []
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((e) => Number(e.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


# --- acts ---


@contextmanager
def load(server):
    """A client that asks the server without a pause; gives what it was answered."""
    stop, answers = threading.Event(), []

    def run():
        with server.client() as client:
            while not stop.is_set():
                answer = client.post("/predict", json=ROW)
                answers.append((answer.status_code, answer.json().get("model_version")))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join(60)


def click(page, what):
    """One of the acts, and its confirmation."""
    page.locator("#releases").get_by_role("button", name=what).first.click()
    page.locator("dialog button.sure").click()
    expect(page.locator("dialog")).to_contain_text("Asked for")
    page.locator("dialog").get_by_role("button", name="Close").click()


def test_an_approval_and_a_rollback_by_clicks_while_the_server_is_under_load(
    tab, show, root, tmp_path
):
    mine = shutil.copytree(root, tmp_path / "p")
    settings = mine / "homeostat.toml"
    text = settings.read_text()
    with serving(mine) as server:
        settings.write_text(f'{text}\n[run]\nservers = ["{server.url}"]\n')
        shown = show(mine)
        with load(server) as answers:
            page = tab(shown.url)
            before = shown.project.releases.champion().id
            waits = shown.bodies("waiting")[0]["release"]
            click(page, "Approve")
            expect(page.locator("#line li.serves")).to_contain_text(waits[:12])
            until(lambda: answers[-1][1] == waits, what="the server to follow")
            expect(page.locator("#traffic")).to_contain_text(waits[:12])
            click(page, "Roll back to it")
            expect(page.locator("#line li.serves")).to_contain_text(before[:12])
            until(lambda: answers[-1][1] == before, what="the server to follow")
            by = {"by": "someone on this machine"}
            assert shown.bodies("approved") == [{"release": waits, **by}]
            assert shown.bodies("rolled_back") == [{"from": waits, "release": before, **by}]
            assert shown.project.audit.verify() > 0
    assert {status for status, _ in answers} == {200}


def test_a_pin_by_clicks_is_shown_and_taken_back(tab, show, root, tmp_path):
    shown = show(shutil.copytree(root, tmp_path / "p"))
    page = tab(shown.url)
    click(page, "Pin")
    expect(page.locator("#releases")).to_contain_text("Pinned by someone on this machine")
    click(page, "Approve")
    expect(page.locator("#top")).to_contain_text("Not done")
    click(page, "Unpin")
    expect(page.locator("#releases")).not_to_contain_text("Pinned by")
    assert [len(shown.bodies(kind)) for kind in ("pinned", "unpinned")] == [1, 1]


def test_saying_no_asks_for_nothing(tab, shown):
    page = tab(shown.url)
    page.locator("#releases").get_by_role("button", name="Approve").click()
    page.locator("dialog").get_by_role("button", name="No").click()
    expect(page.locator("dialog")).not_to_be_visible()
    assert shown.bodies("approved") == []


def test_a_viewer_logs_in_and_sees_but_cannot_act(tab, show, root, tmp_path):
    mine = shutil.copytree(root, tmp_path / "p")
    settings = mine / "homeostat.toml"
    settings.write_text(settings.read_text() + KEYS)
    shown = show(mine)
    page = tab(shown.url, wait=False)
    page.get_by_label("A key").fill(VIEWER)
    page.get_by_role("button", name="Enter").click()
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator("#line li").first).to_be_visible()
    expect(page.locator("#line button")).to_have_count(0)
    page.get_by_role("button", name="Leave").click()
    page.get_by_label("A key").fill(ADMIN)
    page.get_by_role("button", name="Enter").click()
    click(page, "Approve")
    expect(page.locator("#line li.serves")).to_contain_text("by")
    until(lambda: shown.bodies("approved"))
    assert shown.bodies("approved")[0]["by"] == "ada"


# --- what may go wrong ---


def test_hostile_names_are_text(tab, show, tmp_path):
    shown = show(invented(tmp_path / "p", 4, HOSTILE))
    page = tab(shown.url)
    title = page.title()
    drawn(page, "#heat-chart")
    for place in range(len(HOSTILE)):
        page.locator("#columns button").nth(place).click()
        drawn(page, "#column .shape")
        page.locator("#column summary").click()
        expect(page.locator("#column table")).to_be_visible()
    assert page.title() == title
    assert page.locator("#column img, #columns img").count() == 0


def test_three_hundred_columns_over_three_years_are_shown(tab, show, tmp_path):
    columns = [f"column {place}" for place in range(300)]
    shown = show(invented(tmp_path / "p", 3 * 365, columns))
    page = tab(shown.url)
    assert drawn(page, "#heat-chart").get_attribute("data-drawn") == "300x1095"
    assert drawn(page, "#performance-chart").get_attribute("data-drawn") == "1095"
    expect(page.locator("#columns button")).to_have_count(300)
    expect(page.locator("#turns")).to_contain_text("1095 of 1095")
    page.locator("#columns button").nth(250).click()
    expect(page.locator("#column h3")).to_be_visible()


def test_where_nothing_happened_yet_the_page_says_so(tab, show, tmp_path):
    shown = show(bare(tmp_path / "p"))
    page = tab(shown.url)
    expect(page.locator("h1")).to_contain_text("There is no model yet")
    for place, text in {
        "#performance-said": "nothing to draw yet", "#heat-said": "nothing to draw yet",
        "#columns": "Nothing was compared yet", "#line": "There is no release yet",
        "#turns": "Nothing was decided yet", "#replays": "No replay yet",
    }.items():  # fmt: skip
        expect(page.locator(place)).to_contain_text(text)


def test_what_the_loop_writes_appears_by_itself(tab, show, tmp_path):
    root = bare(tmp_path / "p")
    shown = show(root)
    page = tab(shown.url)
    invented(root, 3, ["a", "b"])
    expect(page.locator("#turns tr.turn")).to_have_count(3)
    expect(page.locator("#columns button")).to_have_count(2)
    assert drawn(page, "#heat-chart").get_attribute("data-drawn") == "2x3"


def test_a_lost_connection_is_shown_and_found_again(tab, tmp_path):
    root = invented(tmp_path / "p", 3, ["a", "b"])
    with showing(root) as shown:
        page = tab(shown.url)
        expect(page.locator("#turns tr.turn")).to_have_count(3)
    expect(page.locator("#connection")).to_contain_text("connection lost")
    page.locator("#columns button").first.click()
    with showing(root, port=shown.port):
        expect(page.locator("#connection")).to_have_text("live")
        page.locator("#columns button").first.click()
        expect(page.locator("#column h3")).to_be_visible()
    # That it could not be reached meanwhile is what the browser has to say.
    assert all("ERR_" in text or "htmx" in text for text in page.said)
    page.said.clear()


def test_only_what_the_package_ships_is_loaded(browser, shown):
    context = browser.new_context()
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(shown.url)
    drawn(page, "#heat-chart")
    context.close()
    assert len(asked) > 8
    assert all(httpx.URL(url).host == "127.0.0.1" for url in asked)


# --- what a viewer is doing ---


def step(root, number, **told):
    """One more look in the chain, a day after the last of `invented`, with its decision."""
    end = START + number * timedelta(days=1)
    window = {"start": (end - timedelta(days=1)).isoformat(), "end": end.isoformat()}
    look = {
        "state": "stable", "hurts": "no", "reason": "So.", "release": "c" * 64, "window": window,
        "distances": {}, **told,
    }  # fmt: skip
    decision = {"action": "hold", "trigger": "none", "reason": "New.", "numbers": {}}
    audit = ChainAudit(root / "reports" / "decisions.jsonl")
    audit.write("decided", end, {"decision": decision, "evidence": look})


def changed(root, **told):
    """Write something into the status file."""
    path = root / "reports" / "drift_status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))


def focused(page):
    return page.evaluate("document.activeElement.id")


def swiped(page, name):
    """How far the page scrolls as a finger moves up by 180 pixels over the middle of a chart."""
    chart = page.locator(name)
    chart.evaluate("(e) => e.scrollIntoView({ block: 'center', behavior: 'instant' })")
    box = chart.bounding_box()
    before = page.evaluate("scrollY")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    finger = page.context.new_cdp_session(page)

    def touch(kind, *points):
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    touch("touchStart", {"x": x, "y": y})
    for moved in range(10, 190, 10):
        touch("touchMove", {"x": x, "y": y - moved})
    touch("touchEnd")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.evaluate("scrollY") - before


@pytest.mark.parametrize("name", ["#performance-chart", "#heat-chart"])
def test_a_finger_scrolls_the_page_over_a_chart(tab, shown, name):
    page = tab(shown.url, viewport={"width": 390, "height": 720}, has_touch=True, is_mobile=True)
    drawn(page, "#performance-chart")
    drawn(page, "#heat-chart")
    assert swiped(page, name) > 100


def test_a_later_page_stays_as_it_is_when_a_decision_comes_and_tells_of_it(tab, show, tmp_path):
    root = invented(tmp_path / "p", 60, ["a"])
    page = tab(show(root).url)
    page.locator("#decisions-older").click()
    expect(page.locator("#turns")).to_contain_text("page 2 of 3")
    row = page.locator("#turns tr.turn").nth(3)
    name = row.locator("button").get_attribute("id")
    row.locator("button").click()
    expect(page.locator("#turns .detail")).to_contain_text("Data window")
    page.locator(f"#{name}").focus()
    step(root, 60)
    expect(page.locator("#turns [role=status]")).to_have_text("61 of 61")
    expect(page.locator("#turns")).to_contain_text("page 2 of 3")
    expect(page.locator("#turns .detail")).to_contain_text("Data window")
    assert page.locator("#turns tr.turn").nth(3).locator("button").get_attribute("id") == name
    assert focused(page) == name
    expect(page.locator(f"#{name}")).to_have_attribute("aria-expanded", "true")
    page.get_by_role("button", name="1 new").click()
    expect(page.locator("#turns tr.turn").first).to_contain_text("New.")


def test_the_newest_decision_stays_open_and_tells_what_came_of_it(tab, show, tmp_path):
    root = invented(tmp_path / "p", 3, ["a"])
    page = tab(show(root).url)
    page.locator("#turns tr.turn button").first.click()
    expect(page.locator("#turns .detail")).to_contain_text("Data window")
    audit = ChainAudit(root / "reports" / "decisions.jsonl")
    audit.write("held", START + timedelta(days=3), {"reason": "Too few rows."})
    expect(page.locator("#turns tr.turn").first).to_contain_text("Too few rows.")
    expect(page.locator("#turns .detail")).to_contain_text("Too few rows.")
    step(root, 4)
    expect(page.locator("#turns tr.turn").first).to_contain_text("New.")
    expect(page.locator("#turns tr.turn")).to_have_count(4)
    expect(page.locator("#turns .detail")).to_contain_text("Too few rows.")


def test_a_second_click_closes_a_decision(tab, shown):
    page = tab(shown.url)
    button = page.locator("#turns tr.turn button").first
    expect(button).to_have_attribute("aria-expanded", "false")
    button.click()
    expect(page.locator("#turns .detail")).to_be_visible()
    expect(button).to_have_attribute("aria-expanded", "true")
    button.click()
    expect(page.locator("#turns .detail")).to_have_count(0)
    expect(button).to_have_attribute("aria-expanded", "false")


def test_a_decision_takes_few_lines_until_it_is_opened(tab, shown):
    page = tab(shown.url)
    rows = page.locator("#turns tr.turn")
    expect(rows).to_have_count(6)
    heights = page.evaluate(
        "[...document.querySelectorAll('#turns tr.turn')].map((e) => e.offsetHeight)"
    )
    assert max(heights) < 130
    expect(rows.first).to_contain_text("A release waits for approval.")
    expect(rows.first).not_to_contain_text("The gate lets it pass")
    rows.first.locator("button").click()
    expect(page.locator("#turns .detail")).to_contain_text("The gate lets it pass")


def test_focus_in_the_column_list_and_its_open_segments_outlast_a_look(tab, show, tmp_path):
    root = invented(tmp_path / "p", 3, ["a", "b"])
    one = {
        "column": "city", "level": "x", "rows": 9, "verdict": "stable", "furthest": "a",
        "distance": 0.1, "threshold": 0.2,
    }  # fmt: skip
    changed(root, segments=[one])
    page = tab(show(root).url)
    page.locator("#segments summary").click()
    page.locator("#columns button").nth(1).focus()
    changed(root, segments=[{**one, "rows": 17}])
    expect(page.locator("#segments")).to_contain_text("17")
    expect(page.locator("#segments table")).to_be_visible()
    assert focused(page) == "column-1"


def test_the_open_column_is_told_of_anew_with_each_look(tab, show, tmp_path):
    root = invented(tmp_path / "p", 3, ["a", "b"])
    page = tab(show(root).url)
    page.locator("#columns button").first.click()
    expect(page.locator("#column")).to_contain_text("newest look, which ends 3 Jan")
    end = START + timedelta(days=7)
    changed(root, window={"start": START.isoformat(), "end": end.isoformat()})
    expect(page.locator("#column")).to_contain_text("newest look, which ends 8 Jan")


def test_a_column_chosen_in_the_list_is_brought_into_view(tab, show, tmp_path):
    root = invented(tmp_path / "p", 3, [f"column {place}" for place in range(60)])
    page = tab(show(root).url, viewport={"width": 390, "height": 720})
    page.locator("#columns button").first.click()
    expect(page.locator("#column-head")).to_be_in_viewport()
    assert focused(page) == "column-head"


# --- what the charts tell ---


def test_a_broken_column_comes_first_and_what_is_quarantined_is_told(tab, show, tmp_path):
    root = invented(tmp_path / "p", 3, ["a", "b", "c"])
    status = json.loads((root / "reports" / "drift_status.json").read_text())
    features = status["features"]
    features["c"]["quality"] = [{"check": "nulls", "message": "Nulls.", "severity": "block"}]
    held = {"id": "ab12cd34", "window": status["window"], "columns": ["c"], "reason": "Nulls."}
    changed(root, features=features, quarantined=[held])
    page = tab(show(root).url)
    expect(page.locator("#columns button").first).to_contain_text("c broken")
    expect(page.locator("#columns button").nth(1)).not_to_contain_text("broken")
    expect(page.locator("#columns")).to_contain_text("homeostat quarantine --release ab12cd34")
    chart = drawn(page, "#heat-chart")
    chart.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#heat-said")).to_contain_text("c, 3 Jan 2025")
    expect(page.locator("#heat-said")).to_contain_text("broken")


def test_the_keyboards_cursor_stays_in_view_among_many_columns(tab, show, tmp_path):
    root = invented(tmp_path / "p", 5, [f"column {place}" for place in range(300)])
    page = tab(show(root).url)
    chart = drawn(page, "#heat-chart")
    chart.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Home")
    expect(page.locator("#heat-said")).to_contain_text("1 Jan 2025")
    for _ in range(4):
        page.keyboard.press("PageDown")
    below = page.locator("#heat-said").inner_text().partition(",")[0]
    assert rows_seen(page)[0] <= 156 <= rows_seen(page)[1]
    step(root, 5)  # what comes live leaves the zoom, and the cursor at its column
    expect(chart).to_have_attribute("data-drawn", "300x6")
    assert rows_seen(page)[0] <= 156 <= rows_seen(page)[1]
    page.keyboard.press("End")
    expect(page.locator("#heat-said")).to_contain_text(f"{below}, 6 Jan 2025")


def rows_seen(page):
    return page.evaluate(
        "(() => { const zoom = echarts.getInstanceByDom(document.getElementById('heat-chart'))"
        ".getOption().dataZoom.find((one) => one.yAxisIndex !== undefined);"
        " return [zoom.startValue, zoom.endValue]; })()"
    )


def test_looks_of_one_day_are_told_apart_by_their_time(tab, show, tmp_path):
    root = invented(tmp_path / "p", 2, ["a"])
    hour = (START + timedelta(days=1, hours=3)).isoformat()
    told = {"start": START.isoformat(), "end": hour}
    step(root, 9, window=told, distances={"a": [0.1, 0.2]})
    page = tab(show(root).url)
    drawn(page, "#heat-chart").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#heat-said")).to_contain_text("2 Jan 2025, 12:00")


def test_nothing_compared_has_a_colour_far_from_no_distance(tab, shown):
    for scheme in ("light", "dark"):
        page = tab(shown.url, color_scheme=scheme)
        zero, none, broken = (
            [int(part) for part in re.findall(r"\d+", colour)]
            for colour in page.evaluate(
                "['c0', 'c4', 'c5'].map((name) => "
                "getComputedStyle(document.querySelector(`.${name}`)).backgroundColor)"
            )
        )
        for one, other in ((zero, none), (zero, broken), (none, broken)):
            assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 80


def test_without_figures_there_are_words_in_the_place_of_the_chart(tab, show, tmp_path):
    root = bare(tmp_path / "p")
    (root / "reports").mkdir()
    step(root, 1)
    page = tab(show(root).url)
    expect(page.locator("#performance-said")).to_contain_text("no look has figures")
    expect(page.locator("#performance-chart")).to_be_hidden()
    expect(page.locator("#signs")).to_be_hidden()


def test_a_single_look_is_drawn_large_with_the_baseline_across(tab, show, tmp_path):
    page = tab(show(invented(tmp_path / "p", 1, ["a"])).url)
    drawn(page, "#performance-chart")
    told = page.evaluate(
        "(() => { const option = echarts.getInstanceByDom("
        "document.getElementById('performance-chart')).getOption();"
        " const of = (id) => option.series.find((one) => one.id === id);"
        " return { size: of('realised').symbolSize, across: of('baseline').data,"
        " ends: [option.xAxis[0].min, option.xAxis[0].max], look: of('realised').data[0][0] }; })()"
    )
    assert told["size"] >= 8
    assert [told["across"][0][0], told["across"][-1][0]] == told["ends"]
    assert told["ends"][0] < told["look"] < told["ends"][1]
    expect(page.locator("#signs")).to_contain_text("kept the model")


def test_the_charts_own_name_is_kept_and_its_hint_is_true(tab, shown):
    page = tab(shown.url)
    chart = drawn(page, "#performance-chart")
    assert "arrow keys" in chart.get_attribute("aria-label")
    expect(page.locator("#performance-said")).to_have_text(
        "The pointer tells of each look, arrow keys of each decision."
    )
    box = chart.bounding_box()
    chart.hover(position={"x": box["width"] - 20, "y": box["height"] / 2})
    expect(page.locator("#performance-said")).to_contain_text("realised")
    expect(page.locator("#performance-said")).to_contain_text("estimated")
    chart.focus()
    page.keyboard.press("End")
    expect(page.locator("#performance-said")).to_contain_text("trained a challenger")


def test_the_tooltip_tells_the_whole_look_in_short_lines(tab, shown):
    page = tab(shown.url)
    drawn(page, "#performance-chart")
    lines = page.evaluate(
        "(() => { const option = echarts.getInstanceByDom("
        "document.getElementById('performance-chart')).getOption();"
        " const last = option.series.find((one) => one.id === 'realised').data.at(-1)[0];"
        " return option.tooltip[0].formatter([{ axisValue: last }]).split('\\n'); })()"
    )
    text = " ".join(lines)
    assert all(word in text for word in ("realised", "estimated", "first release", "baseline"))
    assert "trained a challenger" in text
    assert max(len(line) for line in lines) <= 40


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_act_that_fails_says_so(tab, show, root, tmp_path, method):
    shown = show(shutil.copytree(root, tmp_path / "p"))
    page = tab(shown.url)
    page.route(
        "**/ask/pin*",
        lambda route: route.abort() if route.request.method == method else route.continue_(),
    )
    page.locator("#releases").get_by_role("button", name="Pin").click()
    if method == "POST":
        page.locator("dialog button.sure").click()
    expect(page.locator("dialog [role=alert]")).to_contain_text("cannot be reached")
    expect(page.locator("dialog")).to_be_visible()
    page.locator("dialog").get_by_role("button", name=re.compile("Close|No")).click()
    expect(page.locator("dialog")).not_to_be_visible()
    page.said.clear()
