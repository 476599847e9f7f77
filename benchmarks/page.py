"""How fast the page is, in a real browser: three years of daily looks at 300 columns.

It invents a project, serves its page in this process and opens it in Debian's chromium over
loopback. It gives medians and the slowest of so many visits and acts, in seconds, beside the aims;
`--json FILE` writes the same. A search waits .1 s for more letters before it asks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from table import Row, main

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from wall_fixtures import invented, showing

LOOKS, COLUMNS = 3 * 365, 300
VISITS, ACTS = 7, 21
PAINTED, ACTED = 1.0, 0.2  # seconds that are aimed at
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def visits(browser: Any, url: str) -> Iterator[tuple[float, float]]:
    """First contentful paint, and both charts drawn, of visits that have nothing kept."""
    for _ in range(VISITS):
        tab = browser.new_page()
        began = time.perf_counter()
        tab.goto(url)
        tab.wait_for_selector("#performance-chart[data-drawn]")
        tab.wait_for_selector("#heat-chart[data-drawn]")
        drawn = time.perf_counter() - began
        yield float(tab.evaluate(PAINT)), drawn
        tab.close()


def acts(tab: Any) -> dict[str, list[float]]:
    """Columns opened, searches, steps with the arrow keys in the heat map, and themes."""
    buttons = tab.locator("#columns button")

    def column(number: int) -> None:
        # By the page itself: a click of the driver's waits until nothing moves.
        name = buttons.nth(number).evaluate("e => (e.click(), e.innerText.split(/\\s/)[0])")
        tab.wait_for_function(
            "name => document.querySelector('#column-head')?.textContent === name"
            " && document.querySelector('#column .shape[data-drawn]')",
            arg=name,
        )

    def search(number: int) -> None:
        words = f"hold no {'reason' if number % 2 else 'drifted'}"
        with tab.expect_response(lambda answer: "part/decisions?q=" in answer.url):
            tab.locator("#search").fill(words)

    def step(_: int) -> None:
        said = tab.locator("#heat-said").inner_text()
        tab.keyboard.press("ArrowLeft")
        tab.wait_for_function(
            "said => document.querySelector('#heat-said').innerText !== said", arg=said
        )

    found = {"a column opened and drawn": [timed(lambda n=n: column(n)) for n in range(ACTS)]}
    found["a search, answered"] = [timed(lambda n=n: search(n)) for n in range(ACTS)]
    tab.locator("#heat-chart").focus()
    found["a step in the heat map"] = [timed(lambda n=n: step(n)) for n in range(ACTS)]
    return found


def measured(sizes: tuple[int, int], folder: Path) -> Iterator[Row]:
    """`sizes` are looks and columns."""
    from playwright.sync_api import sync_playwright

    looks, columns = sizes
    root = invented(folder / "p", looks, [f"column_{place:03}" for place in range(columns)])
    with sync_playwright() as playwright, showing(root) as shown:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        paints, drawn = zip(*visits(browser, shown.url), strict=True)
        tab = browser.new_page()
        tab.goto(shown.url)
        tab.wait_for_selector("#heat-chart[data-drawn]")
        done = acts(tab)
        browser.close()
    yield from told("first contentful paint", paints, PAINTED)
    yield from told("both charts drawn", drawn, None)
    for what, seconds in done.items():
        yield from told(what, seconds, ACTED)


def told(what: str, seconds: Sequence[float], most: float | None) -> Iterator[Row]:
    for how, value in (("median", median(seconds)), ("slowest", max(seconds))):
        aim = f"< {most:g}" if most else ""
        yield Row(f"{what}, {how}", value, "s", aim, None if most is None else value < most)


if __name__ == "__main__":
    main("The page in a real browser.", measured, (LOOKS, COLUMNS), (30, 30), decimals=3)
