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

    def _wait(self):
        self.reached.set()
        assert self.through.wait(20)

    def commit(self, columns, entries):
        self._wait()
        return super().commit(columns, entries)


class SlowLabels(Slow):
    """A journal on which labels alone wait."""

    def commit(self, columns, entries):
        return FileJournal.commit(self, columns, entries)

    def label(self, labels):
        self._wait()
        return super().label(labels)


class SlowLook(SlowLabels):
    """A journal that cannot tell whether it can be written, until it is let through."""

    looks = 0

    def label(self, labels):
        return FileJournal.label(self, labels)

    def catch_up(self):
        self.looks += 1
        self._wait()
        super().catch_up()


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


class Upload:
    """A request whose body comes as the test sends it."""

    def __init__(self, app, path="/predict"):
        self._app = app
        self._path = path
        self._coming = asyncio.Queue()
        self._sent = []
        self.task = asyncio.create_task(self._run())

    async def _run(self):
        async def send(message):
            self._sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": self._path,
            "headers": [(b"content-type", b"application/json")],
            "query_string": b"",
            "server": ("127.0.0.1", 80),
        }
        await self._app(scope, self._coming.get, send)
        head, body = self._sent[0], b"".join(m.get("body", b"") for m in self._sent)
        return httpx.Response(head["status"], headers=head["headers"], content=body)

    async def part(self, body, more=True):
        """Send this, and wait until the application wants to have more, or has answered."""
        await self._coming.put({"type": "http.request", "body": body, "more_body": more})
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.mark.parametrize("path", ["/predict", "/invocations", "/feedback"])
def test_bodies_that_arrive_take_bounded_room_together_and_give_it_back(tmp_path, journal, path):
    journal.through.set()
    app = application(tmp_path, journal, max_reception=100)
    whole = json.dumps(ROW).encode()

    async def main():
        first = Upload(app, path)
        await first.part(b" " * 80)
        second = Upload(app, path)
        await second.part(b" " * 40)
        refused = await second.task  # without the end of its body
        small = Upload(app)
        await small.part(whole, more=False)
        answered = await small.task
        await first.part(b"{", more=False)
        await first.task
        third = Upload(app)
        await third.part(b" " * 90)
        await third.part(whole, more=False)
        return refused, answered, await third.task

    refused, answered, third = asyncio.run(main())
    assert error(refused) == (429, "busy")
    assert int(refused.headers["retry-after"]) > 0
    assert (answered.status_code, third.status_code) == (200, 200)


def test_a_body_takes_room_until_it_is_answered_and_one_alone_may_be_of_any_size(tmp_path, journal):
    app = application(tmp_path, journal, max_reception=100)
    whole = json.dumps(ROW).encode()

    async def main():
        first = Upload(app)
        await first.part(b" " * 200)
        await first.part(whole, more=False)
        await asyncio.to_thread(journal.reached.wait, 20)
        second = Upload(app)
        await second.part(b" ")
        journal.through.set()
        return await first.task, await second.task

    first, second = asyncio.run(main())
    assert first.status_code == 200
    assert error(second) == (429, "busy")


def labels(*names, label=1):
    return [{"prediction_id": name, "label": label} for name in names]


def test_labels_that_wait_for_the_disk_hold_up_neither_health_nor_predictions(tmp_path):
    journal = SlowLabels(tmp_path / "data" / "logs")
    app = application(tmp_path, journal, max_waiting=100)

    async def main():
        async with client(app) as http, asyncio.timeout(60):
            waiting = [
                asyncio.create_task(http.post("/feedback", json=labels(f"id-{i}")))
                for i in range(100)
            ]
            await asyncio.to_thread(journal.reached.wait, 20)
            refused = await http.post("/feedback", json=labels("one more"))
            scraped = (await http.get("/metrics")).text
            ready, ping = await http.get("/health/ready"), await http.get("/ping")
            answered = await http.post("/predict", json=ROW)
            journal.through.set()
            return refused, scraped, (ready, ping, answered), await asyncio.gather(*waiting)

    refused, scraped, others, taken = asyncio.run(main())
    assert "homeostat_journal_waiting_rows 100.0" in scraped
    assert error(refused) == (429, "busy")
    assert int(refused.headers["retry-after"]) > 0
    assert [response.status_code for response in others] == [200] * 3
    told = {"accepted": 1, "repeated": 0, "changed": 0}
    assert [response.json() for response in taken] == [told] * 100


def test_labels_that_wait_together_are_counted_and_refused_each_by_itself(tmp_path, journal):
    app = application(tmp_path, journal)

    async def main():
        async with client(app) as http:
            await http.post("/feedback", json=labels("known", "moved"))
            asked = (
                labels("known", "new"),
                labels("moved", label=0),
                [*labels("never"), *labels("bad", label="x")],
                labels("a", "b", "c"),
            )
            return await asyncio.gather(*(http.post("/feedback", json=each) for each in asked))

    one, two, bad, four = asyncio.run(main())
    assert one.json() == {"accepted": 1, "repeated": 1, "changed": 0}
    assert two.json() == {"accepted": 1, "repeated": 0, "changed": 1}
    assert error(bad) == (422, "bad_label")
    assert four.json() == {"accepted": 3, "repeated": 0, "changed": 0}
    assert "never" not in (tmp_path / "data" / "logs" / "labels.csv").read_text()


def test_a_defect_in_one_request_for_feedback_is_not_that_of_another(
    tmp_path, journal, monkeypatch
):
    taken = Predictor.feedback

    def broken(self, items):
        if len(items) == 2:
            raise KeyError
        return taken(self, items)

    monkeypatch.setattr(Predictor, "feedback", broken)
    app = application(tmp_path, journal)

    async def main():
        async with client(app) as http:
            asked = (labels("a"), labels("b", "c"), labels("d"))
            return await asyncio.gather(*(http.post("/feedback", json=each) for each in asked))

    one, broke, three = asyncio.run(main())
    assert error(broke) == (500, "internal")
    assert (one.status_code, three.status_code) == (200, 200)


def test_however_many_ask_whether_it_is_ready_a_look_that_stalls_costs_one_thread(tmp_path):
    journal = SlowLook(tmp_path / "data" / "logs")
    app = application(tmp_path, journal)

    async def main():
        async with client(app) as http, asyncio.timeout(60):
            paths = ["/health/ready", "/health", "/ping"] * 20
            probes = [asyncio.create_task(http.get(path)) for path in paths]
            await asyncio.to_thread(journal.reached.wait, 20)
            asset = await http.get("/docs/swagger-ui.css")  # it needs a thread of the pool
            journal.through.set()
            return asset, await asyncio.gather(*probes)

    asset, probes = asyncio.run(main())
    assert {asset.status_code, *(probe.status_code for probe in probes)} == {200}
    assert journal.looks <= 2


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
