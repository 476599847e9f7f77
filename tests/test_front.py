import asyncio
import fcntl
import io
import json
import subprocess
import sys
import threading

import httpx
import pyarrow.parquet as pq
import pytest
from serving_fixtures import AT, ROW, SOURCE, objects, promote, serving, until

from homeostat import settings as configuration
from homeostat import twin
from homeostat.journal import FileJournal
from homeostat.predictor import Predictor
from homeostat.release import FileReleases
from homeostat.testing import FakeClock
from homeostat.web.api import create_app_for

JSON = {"Content-Type": "application/json"}


class Slow(FileJournal):
    """A journal whose writes wait until they are let through."""

    def __init__(self, folder):
        super().__init__(folder)
        self.reached, self.through = threading.Event(), threading.Event()

    def commit(self, columns, entries):
        self.reached.set()
        assert self.through.wait(20)
        return super().commit(columns, entries)


@pytest.fixture
def journal(tmp_path):
    return Slow(tmp_path / "data" / "logs")


def application(root, journal, **options):
    promote(root, objects())
    chosen = configuration.read(root, serving=options)
    predictor = Predictor(
        FileReleases(root / "models"), journal, FakeClock(AT), serving=chosen.serving
    )
    predictor.refresh()
    return create_app_for(predictor, chosen)


def client(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


def error(response):
    return response.status_code, response.json()["error"]["code"]


def test_beyond_the_bound_of_waiting_rows_the_answer_is_429_and_says_when_to_come_again(
    tmp_path, journal
):
    app = application(tmp_path, journal, max_waiting=3)

    async def main():
        async with client(app) as http:
            first = asyncio.create_task(http.post("/predict", json=[ROW, ROW]))
            await asyncio.to_thread(journal.reached.wait, 20)
            refused = await http.post("/predict", json=[ROW, ROW])
            single = asyncio.create_task(http.post("/predict", json=ROW))
            journal.through.set()
            return refused, await first, await single

    refused, first, single = asyncio.run(main())
    assert error(refused) == (429, "busy")
    assert int(refused.headers["retry-after"]) > 0
    assert (first.status_code, single.status_code) == (200, 200)
    assert journal.read().num_rows == 3


def test_an_answer_that_takes_too_long_is_given_up_with_503(tmp_path, journal):
    app = application(tmp_path, journal, timeout="0.05s")

    async def main():
        async with client(app) as http:
            response = await http.post("/predict", json=ROW)
            journal.through.set()
            return response

    response = asyncio.run(main())
    assert error(response) == (503, "timeout")
    assert response.headers["retry-after"]


@pytest.mark.parametrize("path", ["/predict", "/feedback"])
def test_a_body_that_does_not_come_is_not_waited_for(tmp_path, journal, path):
    app = application(tmp_path, journal, timeout="0.05s")
    sent = []

    async def receive():
        if not sent:
            sent.append(1)
            return {"type": "http.request", "body": b'{"amount"', "more_body": True}
        return await asyncio.Event().wait()

    answered = []

    async def send(message):
        answered.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(app(scope, receive, send))
    assert answered[0]["status"] == 503
    assert json.loads(answered[1]["body"])["error"]["code"] == "timeout"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_told_which_one_is_taken(tmp_path, journal, method):
    app = application(tmp_path, journal)

    async def main():
        async with client(app) as http:
            return await http.request(method, "/predict")

    response = asyncio.run(main())
    assert error(response) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_many_requests_at_once_are_answered_each_with_its_own_rows(tmp_path, journal):
    journal.through.set()
    app = application(tmp_path, journal)
    bad = {**ROW, "amount": "much"}

    async def main():
        async with client(app) as http:
            rows = [{**ROW, "amount": i / 50, "prediction_id": f"id-{i}"} for i in range(50)]
            twice = http.post("/predict", json={**ROW, "prediction_id": "id-3"})
            asked = [http.post("/predict", json=row) for row in rows]
            return await asyncio.gather(*asked, http.post("/predict", json=bad), twice)

    *good, bad, twice = asyncio.run(main())
    assert [r.json()["prediction_id"] for r in good] == [f"id-{i}" for i in range(50)]
    shares = [r.json()["probability"] for r in good]
    assert shares == sorted(shares)
    assert error(bad) == (422, "wrong_type")
    assert error(twice) == (409, "conflict")
    kept = {row["prediction_id"]: row for row in journal.read().to_pylist()}
    assert [kept[f"id-{i}"]["probability"] for i in range(50)] == shares
    assert len(kept) == 50


def test_a_large_body_is_answered_as_a_small_one_is(tmp_path, journal):
    journal.through.set()
    app = application(tmp_path, journal)

    async def main():
        async with client(app) as http:
            many = await http.post("/predict", json=[ROW] * 3000)
            one = await http.post("/predict", json=ROW)
            return many.json(), one.json()

    many, one = asyncio.run(main())
    assert len(many) == journal.read().num_rows - 1 == 3000
    assert {answer["probability"] for answer in many} == {one["probability"]}


def test_a_server_that_is_asked_to_stop_answers_and_journals_what_waits(tmp_path):
    promote(tmp_path, objects())
    answers = []
    with serving(tmp_path) as server, server.client() as http:
        assert http.post("/predict", json=ROW).status_code == 200
        lock = tmp_path / "data" / "logs" / "predictions.lock"

        def ask():
            answers.append(http.post("/predict", json={**ROW, "prediction_id": "last"}))

        with lock.open("rb+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            asking = threading.Thread(target=ask)
            asking.start()

            def waiting():
                with server.client() as other:
                    text = other.get("/metrics").text
                return "homeostat_journal_waiting_rows 1.0" in text

            until(waiting, what="the row that waits")
            server.process.terminate()
        asking.join()
        server.process.wait(20)
    assert [answer.status_code for answer in answers] == [200]
    journal = FileJournal(tmp_path / "data" / "logs")
    assert "last" in journal.read().column("prediction_id").to_pylist()


READY = """
import asyncio, sys
import httpx
from homeostat.web.api import create_app

async def main():
    app = create_app(".")
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            ready = await http.get("/health/ready")
            engine = (await http.get("/model")).json()["engine"]
    print(ready.status_code, engine)
    print(*(name for name in ("pandas", "sklearn", "mlflow", "evidently") if name in sys.modules))

asyncio.run(main())
"""


def test_a_server_is_ready_on_a_twin_without_the_libraries_that_trained_the_model(tmp_path):
    made = objects()
    rows = pq.read_table(io.BytesIO(made["golden"]))
    found = twin.make(made["model"], made["schema"], made["golden"], rows)
    promote(tmp_path, {**made, "twin": found.content})
    done = subprocess.run(
        [sys.executable, "-c", READY],
        cwd=tmp_path,
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first == "200 onnx"
    assert second == ""
