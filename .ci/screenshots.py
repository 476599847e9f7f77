"""Write docs/page.png, page_drift.png and page_decisions.png: the page as a finished demo fills it.

It takes a demo's folder, or runs a short demo. It gives pictures of a real page in Debian's
chromium, beside a real server that is asked for a while; the folder itself stays as it is.
"""

import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import uvicorn
from playwright.sync_api import Page, sync_playwright

from homeostat import settings
from homeostat.build import Project
from homeostat.demo import run as demo
from homeostat.notes import orders
from homeostat.testing import FakeClock
from homeostat.wall.app import create_app
from homeostat.wall.run import wall
from homeostat.wall.turns import Turns

DOCS = Path(__file__).resolve().parents[1] / "docs"
PARTS = ("homeostat.toml", "models", "reports", "src")  # of a project, that the page reads
WEEKS = 20
WIDE, HIGH = 1280, 860
PATIENCE = 120_000  # milliseconds


def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def served(root: Path) -> Iterator[str]:
    """A server of the project, asked without a pause while the block runs."""
    at = port()
    command = [
        sys.executable,
        "-m",
        "homeostat",
        "serve",
        "--project",
        str(root),
        "--port",
        str(at),
    ]
    stop = threading.Event()
    url = f"http://127.0.0.1:{at}"

    def ask() -> None:
        transport = httpx.HTTPTransport(retries=100)
        with httpx.Client(base_url=url, timeout=60, transport=transport) as client:
            features = client.get("/model").json()["features"]
            row = {each["name"]: each["example"] for each in features}
            while not stop.wait(0.02):
                client.post("/predict", json=row)

    with subprocess.Popen(command) as server:  # noqa: S603 - it is this very package
        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield url
        finally:
            stop.set()
            thread.join()
            server.terminate()


@contextmanager
def shown(root: Path, server: str) -> Iterator[str]:
    """The page of the project; its loop takes no step."""
    project = Project(settings.read(root, run={"servers": (server,)}))
    held = orders(project.settings.path(".homeostat"))
    # Of the time when the demo ended, so that its last look is the newest that can be.
    ended = datetime.fromisoformat(project.audit.lines()[-1]["at"])
    turns = Turns(project.loop, held, FakeClock(ended), timedelta(days=1))
    made, at = wall(project, turns), port()
    running = uvicorn.Server(uvicorn.Config(create_app(made), port=at, log_level="error"))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{at}"
    finally:
        made.closing.set()
        running.should_exit = True
        thread.join()


CUT = """(high) => {
  document.querySelector("header").style.display = "none";
  const sides = document.querySelector(".sides").style;
  sides.maxHeight = `${high}px`;
  sides.overflow = "hidden";
}"""
"""Parts of the page as pictures: without what stays at the top, and not endless."""


def pictures(page: Page) -> None:
    page.wait_for_selector("#performance-chart[data-drawn]")
    page.wait_for_selector("#heat-chart[data-drawn]")
    page.get_by_text("Median").wait_for()
    page.locator("#traffic dd", has_text="–").first.wait_for(state="detached")
    page.screenshot(path=DOCS / "page.png")
    page.locator("#columns button").first.click()
    page.wait_for_selector("#column .shape[data-drawn]")
    page.evaluate(CUT, HIGH)
    page.locator("#drift").screenshot(path=DOCS / "page_drift.png")
    page.locator(".sides").screenshot(path=DOCS / "page_decisions.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as held:
        root = Path(held) / "project"
        if len(sys.argv) > 1:
            for name in PARTS:
                source = Path(sys.argv[1]) / name
                copy = shutil.copytree if source.is_dir() else shutil.copy
                root.mkdir(exist_ok=True)
                copy(source, root / name)
        else:
            demo(root, weeks=WEEKS)
        with served(root) as server, shown(root, server) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox"]
            )
            page = browser.new_page(
                viewport={"width": WIDE, "height": HIGH}, timezone_id="UTC", locale="en-GB"
            )
            page.set_default_timeout(PATIENCE)
            page.goto(url)
            pictures(page)
            browser.close()


if __name__ == "__main__":
    main()
