"""A real server process, and a client that speaks to it over HTTP.

Takes a project's folder; `homeostat serve` runs in a child for as long as the context is open.
Any refused request ends the demo with the server's own words.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from homeostat.errors import HomeostatError

START = 60.0  # seconds within which the server must be ready
SWAP = 30.0  # seconds within which it must have taken up a release


class Server:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._log = root / ".homeostat" / "server.log"
        self.url = ""  # known once it runs
        self._client: httpx.Client
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        port = _free_port()
        command = [sys.executable, "-m", "homeostat", "serve", "--project", str(self._root)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [*command, "--port", str(port)], stdout=log, stderr=subprocess.STDOUT
            )
        self.url = f"http://127.0.0.1:{port}"
        self._client = httpx.Client(base_url=self.url, timeout=60)
        try:
            self._wait(START, lambda: self._client.get("/health/ready").status_code == 200)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def predict(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            self._post("/predict", rows)

    def feedback(self, labels: list[dict[str, Any]]) -> None:
        if labels:
            self._post("/feedback", labels)

    def wait_for(self, release: str) -> None:
        """Return once the server answers with this release."""
        self._wait(SWAP, lambda: self._client.get("/model").json()["model_version"] == release)

    def _post(self, path: str, body: list[dict[str, Any]]) -> None:
        answer = self._client.post(path, json=body)
        if answer.status_code != 200:
            raise HomeostatError(f"{path} answered {answer.status_code}: {answer.text[:500]}")

    def _wait(self, seconds: float, ready: Any) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                if ready():
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        tail = self._log.read_text(errors="replace")[-2000:]
        raise HomeostatError(f"the server did not get ready: {tail}")

    def _stop(self) -> None:
        self._client.close()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
