"""What Prometheus is told: each thing once, of all workers, and never a name that a client made."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import structlog
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from serving_fixtures import ROW, SOURCE, objects, promote, until

from homeostat.web import logs
from homeostat.web.logs import RequestLog
from homeostat.web.metrics import COUNTS, FOLDER, IDS, Measured, Metrics, shared


class Stub:
    """A predictor that has counted what it is told."""

    champion = None

    def __init__(self, **counted):
        self.counted = counted

    def counts(self):
        return {(name, ""): count for name, count in self.counted.items()}


def samples(text):
    return {
        (s.name, *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def of(made):
    return samples(made.text().decode())


# --- one process ---


def test_requests_and_their_time_are_counted_by_path_and_status():
    made = Metrics(Stub())
    for status in (200, 200, 422):
        made.observe("/predict", status, 0.004)
    told = of(made)
    assert told["homeostat_requests_total", "/predict", "200"] == 2
    assert told["homeostat_requests_total", "/predict", "422"] == 1
    assert told["homeostat_request_seconds_count", "/predict"] == 3
    assert told["homeostat_request_seconds_sum", "/predict"] == pytest.approx(0.012)
    assert told["homeostat_request_seconds_bucket", "/predict", "0.0025"] == 0
    assert told["homeostat_request_seconds_bucket", "/predict", "0.005"] == 3


def test_what_the_predictor_counts_is_taken_over_once_however_often_it_is_scraped():
    stub = Stub(predictions=3)
    made = Metrics(stub)
    assert of(made)["homeostat_predictions_total",] == 3
    assert of(made)["homeostat_predictions_total",] == 3
    stub.counted["predictions"] = 5
    made.look()
    assert of(made)["homeostat_predictions_total",] == 5


def test_a_count_without_labels_is_told_from_the_start_and_an_unknown_one_never():
    told = of(Metrics(Stub(nonsense=7)))
    plain = {f"homeostat_{name}_total" for name, (_, labels) in COUNTS.items() if not labels}
    assert {(name,) for name in plain} <= set(told)
    assert not any("nonsense" in key[0] for key in told)


def test_what_waits_for_the_journal_is_told_as_it_is_now():
    waiting = [(0, 0.0)]
    made = Metrics(Stub(), lambda: waiting[0])
    assert of(made)["homeostat_journal_waiting_rows",] == 0
    waiting[0] = (12, 3.5)
    told = of(made)
    assert told["homeostat_journal_waiting_rows",] == 12
    assert told["homeostat_journal_lag_seconds",] == 3.5


def test_errors_are_counted_by_their_code_and_other_bodies_by_none():
    made = Metrics(Stub())
    made.done("/predict", 422, 0.001, b'{"error": {"code": "wrong_type", "message": "m"}}')
    for body in (b"", b"{", b"[]", b'{"error": 3}', b'{"error": {"code": ["x"]}}', b"\xff"):
        made.done("/predict", 500, 0.001, body)
    codes = {key[1]: value for key, value in of(made).items() if key[0] == "homeostat_errors_total"}
    assert codes == {"wrong_type": 1}


async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": scope["status"], "headers": []})
    for part in scope["parts"]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def nobody():
    return {"type": "http.disconnect"}


def asked(layer, path, status, *parts):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "method": "GET", "status": status, "parts": parts}
    asyncio.run(layer(scope, nobody, send))
    return b"".join(message.get("body", b"") for message in sent)


def test_the_layer_passes_on_what_it_measures_and_names_no_path_that_it_does_not_know():
    made = Metrics(Stub())
    layer = Measured(answer, metrics=made, paths=frozenset({"/model"}))
    refused = b'{"error": {"code": "not_found", "message": "no."}}'
    assert asked(layer, "/model", 200, b"o", b"k") == b"ok"
    assert asked(layer, "/secret", 404, refused[:9], refused[9:]) == refused
    told = of(made)
    assert told["homeostat_requests_total", "/model", "200"] == 1
    assert told["homeostat_requests_total", "404", "other"] == 1
    assert told["homeostat_errors_total", "not_found"] == 1


def test_ids_that_an_endpoint_leaves_in_its_scope_are_logged(capsys):
    async def labelled(scope, receive, send):
        scope[IDS] = ("one", "two")
        await answer(scope, receive, send)

    made = Metrics(Stub(), log=RequestLog("requests"))
    layer = Measured(labelled, metrics=made, paths=frozenset({"/invocations"}))
    (line,) = logged(capsys, lambda: asked(layer, "/invocations", 200, b"ok"))
    assert (line["path"], line["rows"], line["ids"]) == ("/invocations", 2, ["one", "two"])


# --- the log ---


def logged(capsys, call):
    """What one call writes to stderr, read as JSON lines, in a process that configured nothing."""
    structlog.reset_defaults()
    logs.as_json()
    try:
        call()
    finally:
        structlog.reset_defaults()
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_by_default_only_what_was_refused_or_failed_has_a_line(capsys):
    log = RequestLog("none")
    wrong = {"code": "wrong_type", "message": "'amount' must be…", "field": "amount", "row": 3}

    def calls():
        log.request("/predict", 200, 0.001, ids=["a"], rows=[{"amount": 1}])
        log.request("/predict", 422, 0.001, error=wrong)
        log.request("/predict", 503, 0.001, error={"code": "cannot_journal", "message": "m"})

    refused, failed = logged(capsys, calls)
    assert (refused["level"], failed["level"]) == ("info", "warning")
    assert (refused["code"], refused["field"], refused["row"]) == ("wrong_type", "amount", 3)
    assert "message" not in refused
    assert failed["status"] == 503


def test_a_line_names_ids_and_rows_but_no_values_unless_they_are_asked_for(capsys):
    rows = [{"amount": 0.25, "city": "Oslo"}]

    def call(mode):
        log = RequestLog(mode)
        return lambda: log.request("/predict", 200, 0.00123, ids=["one"], rows=rows)

    (plain,) = logged(capsys, call("requests"))
    assert (plain["ids"], plain["rows"], plain["ms"]) == (["one"], 1, 1.23)
    assert "Oslo" not in json.dumps(plain)
    (full,) = logged(capsys, call("values"))
    assert full["values"] == rows


def test_a_large_request_has_a_line_of_bounded_length(capsys):
    log = RequestLog("values")
    ids, rows = [f"id-{i}" for i in range(5000)], [{"a": i} for i in range(5000)]
    (line,) = logged(capsys, lambda: log.request("/predict", 200, 1, ids=ids, rows=rows))
    assert (line["rows"], len(line["ids"]), len(line["values"])) == (5000, logs.IDS, logs.IDS)


def test_a_name_that_a_client_made_up_is_not_logged(capsys):
    error = {"code": "unknown_field", "message": "m", "field": "secret", "row": 0}
    (line,) = logged(capsys, lambda: RequestLog("none").request("/predict", 422, 1, error=error))
    assert (line["code"], line["row"]) == ("unknown_field", 0)
    assert "secret" not in json.dumps(line)


# --- several processes ---


def test_one_worker_needs_no_folder_and_several_have_a_fresh_one_that_goes_again(monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    with shared(1):
        assert FOLDER not in os.environ
    with shared(2):
        folder = Path(os.environ[FOLDER])
        assert list(folder.iterdir()) == []
    assert not folder.exists()
    assert FOLDER not in os.environ


def test_a_folder_that_is_named_already_stays(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with shared(2):
        assert os.environ[FOLDER] == str(tmp_path)
    assert tmp_path.is_dir()
    assert os.environ[FOLDER] == str(tmp_path)


WORKER = """
import sys
from homeostat.web import logs
from homeostat.web.metrics import Metrics
logs.as_json()
class Stub:
    champion = None
    def counts(self): return {("predictions", ""): 2, ("unseen", "city"): 1}
made = Metrics(Stub(), lambda: (5, float(sys.argv[1])))
made.done("/predict", 200, .002)
made.done("/predict", 422, .002, b'{"error": {"code": "wrong_type"}}')
told = made.text().decode()
print(told, flush=True)
sys.stdin.read()
"""


def worker(folder, lag):
    environment = {**os.environ, FOLDER: str(folder), "PYTHONPATH": str(SOURCE)}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(lag)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def until_told(process):
    """All that the worker printed, up to the last family."""
    text = ""
    while "homeostat_champion_sequence gauge" not in text:
        line = process.stdout.readline()
        assert line, "the worker ended"
        text += line
    return samples(text)


def test_the_sum_stays_when_a_worker_dies_but_not_what_it_had_waiting(tmp_path):
    first, second = worker(tmp_path, 1), None
    try:
        assert until_told(first)["homeostat_journal_waiting_rows",] == 5
        second = worker(tmp_path, 4)
        both = until_told(second)
        assert both["homeostat_predictions_total",] == 4
        assert both["homeostat_unseen_total", "city"] == 2
        assert both["homeostat_requests_total", "/predict", "200"] == 2
        assert both["homeostat_errors_total", "wrong_type"] == 2
        assert both["homeostat_request_seconds_count", "/predict"] == 4
        assert both["homeostat_journal_waiting_rows",] == 10
        assert both["homeostat_journal_lag_seconds",] == 4
        for process in (first, second):
            process.kill()
            process.wait()
        third = worker(tmp_path, 2)
        try:
            alone = until_told(third)
        finally:
            third.kill()
            third.communicate()
        assert alone["homeostat_predictions_total",] == 6
        assert alone["homeostat_journal_waiting_rows",] == 5
        assert alone["homeostat_journal_lag_seconds",] == 2
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.communicate()


@contextmanager
def two_workers(root):
    """`homeostat serve` with two processes; its URL, and where their counters lie."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = root / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "TMPDIR": str(temporary)}
    environment |= {"HOMEOSTAT_SERVING__WORKERS": "2", "OMP_NUM_THREADS": "1"}
    environment.pop(FOLDER, None)
    command = [sys.executable, "-m", "homeostat", "serve", "-p", str(root), "--port", str(port)]
    with (root / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}", temporary
    finally:
        process.terminate()
        process.wait(30)


def ready(url):
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/health/ready").status_code == 200
    return False


def test_a_scrape_of_any_worker_tells_the_sum_over_all(tmp_path):
    promote(tmp_path, objects())
    with two_workers(tmp_path) as (url, temporary):
        until(lambda: ready(url), what="the server")
        folder = next(temporary.glob("homeostat-metrics-*"))

        sent = 0
        # A connection of its own for each request, so that the kernel shares them out.
        while sent < 40 or len(took_part(folder)) < 2:
            assert sent < 2_000, "one worker took every connection"
            assert httpx.post(f"{url}/predict", json=ROW).status_code == 200
            sent += 1
        assert httpx.post(f"{url}/predict", json={**ROW, "amount": "x"}).status_code == 422

        def scraped():
            told = samples(httpx.get(f"{url}/metrics").text)
            return (
                told["homeostat_predictions_total",],
                told["homeostat_nulls_total", "gap"],
                told["homeostat_requests_total", "/predict", "200"],
                told.get(("homeostat_errors_total", "wrong_type")),
                told.get(("homeostat_refused_columns_total", "amount")),
            )

        wanted = (sent, sent, sent, 1, 1)
        until(lambda: {scraped() for _ in range(20)} == {wanted}, what=f"{wanted} from each")
    assert list(temporary.glob("homeostat-metrics-*")) == []


def took_part(folder):
    """The processes whose own counters tell of predictions."""
    found = set()
    for file in folder.glob("counter_*.db"):
        told = MultiProcessCollector.merge([str(file)])
        paths = {s.labels.get("path") for metric in told for s in metric.samples if s.value}
        if "/predict" in paths:
            found.add(file.stem)
    return found


# --- the page ---

PAGE = (SOURCE.parent / "docs" / "observability.md").read_text(encoding="utf-8")


def test_the_page_names_every_metric_and_no_other():
    made = Metrics(Stub())
    made.done("/predict", 422, 0.001, b'{"error": {"code": "wrong_type"}}')
    families = text_string_to_metric_families(made.text().decode())
    kinds = {family.name: family.type for family in families}
    told = {f"{name}_total" if kind == "counter" else name for name, kind in kinds.items()}
    assert told == set(re.findall(r"^\| `(homeostat_\w+)`", PAGE, re.MULTILINE))


def test_the_page_names_every_event_of_the_log():
    sources = (SOURCE / "homeostat").rglob("*.py")
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    logged = set(re.findall(r"_log\.(?:info|warning|error)\(\s*\"([a-z ]+)\"", code))
    events = "".join(re.findall(r"^\| (`[a-z ]+`(?:, `[a-z ]+`)*) \| \w+", PAGE, re.MULTILINE))
    assert len(logged) > 8
    assert logged | {"request"} <= set(re.findall(r"`([a-z ]+)`", events))
