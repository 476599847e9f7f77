import asyncio
import csv
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections import Counter
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest
from serving_fixtures import AT, ROW, Server, objects, promote, serving, until

from homeostat import settings as configuration
from homeostat.journal import FileJournal
from homeostat.predictor import Predictor
from homeostat.release import FileReleases
from homeostat.testing import FakeClock
from homeostat.web.api import create_app_for
from homeostat.web.guards import Guards, is_json, is_local, names_loopback


def body(**changes):
    return json.dumps({**ROW, **changes})


def post(client, content, path="/predict", **headers):
    return client.post(
        path, content=content, headers={"Content-Type": "application/json"} | headers
    )


def journalled(root):
    file = root / "data" / "logs" / "predictions.csv"
    if not file.exists():
        return {}
    with file.open(newline="") as lines:
        return {row["prediction_id"]: row for row in csv.DictReader(lines)}


def refused(root):
    file = root / "data" / "logs" / "rejected.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def refusals(root):
    """How many requests were refused by code, once all are journalled."""
    counts = Counter()
    for line in refused(root):
        counts[line["code"]] += line["count"]
    return counts


def error_of(response, status, code):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert set(error) <= {"code", "message", "field", "row", "hint"}
    return error


def value_of(client, metric):
    found = re.search(rf"^{re.escape(metric)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for the module; it listens on every address, without keys."""
    root = tmp_path_factory.mktemp("project")
    (root / "homeostat.toml").write_text('[serving]\nwatch = "0.05s"\n')
    promote(root, objects(seed=0))
    with serving(root, "--host", "0.0.0.0") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.client() as http:
        yield http


class TestPredict:
    def test_one_row_is_answered_with_one_object_that_is_already_in_the_log(self, client, server):
        answer = post(client, body()).json()
        assert set(answer) == {"prediction_id", "prediction", "probability", "model_version"}
        assert answer["prediction"] in (0, 1)
        assert 0 < answer["probability"] < 1
        row = journalled(server.root)[answer["prediction_id"]]
        assert row["prediction"] == str(answer["prediction"])
        assert float(row["probability"]) == answer["probability"]
        assert (row["source"], row["gap"], row["city"]) == ("serve", "", "Oslo")
        assert row["model_version"] == answer["model_version"]

    def test_many_rows_are_answered_in_their_order_and_all_are_in_the_log(self, client, server):
        rows = [{**ROW, "amount": i / 10, "prediction_id": f"many-{i}"} for i in range(50)]
        answers = post(client, json.dumps(rows)).json()
        assert [a["prediction_id"] for a in answers] == [f"many-{i}" for i in range(50)]
        shares = [a["probability"] for a in answers]
        assert shares == sorted(shares)
        assert {a["prediction_id"] for a in answers} <= set(journalled(server.root))

    def test_the_order_of_the_columns_does_not_matter(self, client):
        backwards = json.dumps(dict(reversed(ROW.items())))
        given, turned = post(client, body()).json(), post(client, backwards).json()
        assert given["probability"] == turned["probability"]

    def test_the_time_of_the_event_is_journalled_in_utc(self, client, server):
        moment = parsedate_to_datetime(client.get("/model").headers["date"])
        answer = post(client, body(occurred_at=moment.isoformat())).json()
        row = journalled(server.root)[answer["prediction_id"]]
        assert row["occurred_at"].startswith(f"{moment:%Y-%m-%d %H:%M:%S}")

    def test_an_unseen_category_is_served_counted_and_journalled(self, client, server):
        metric = 'homeostat_unseen_total{column="city"}'
        before = value_of(client, metric)
        text = 'Nowhere, "quoted"\nline'
        answer = post(client, body(city=text)).json()
        assert journalled(server.root)[answer["prediction_id"]]["city"] == text
        assert value_of(client, metric) == before + 1

    def test_the_same_id_with_the_same_content_gets_the_answer_that_was_recorded(
        self, client, server
    ):
        first = post(client, body(prediction_id="twice")).json()
        again = post(client, json.dumps([{**ROW, "prediction_id": "twice"}, ROW])).json()
        assert again[0] == first
        assert again[1]["prediction_id"] in journalled(server.root)

    def test_the_same_id_with_other_content_is_a_conflict_and_nothing_is_recorded(
        self, client, server
    ):
        post(client, body(prediction_id="taken"))
        rows = [{**ROW, "prediction_id": "fresh"}, {**ROW, "prediction_id": "taken", "amount": 9}]
        error = error_of(post(client, json.dumps(rows)), 409, "conflict")
        assert error["row"] == 1
        assert "fresh" not in journalled(server.root)


SECRET = "5150777"

BAD = [
    ('{"amount": 5150777', 400, "not_json", None),
    ("", 400, "not_json", None),
    ("NaN", 400, "not_json", None),
    (body().replace("0.5", "NaN"), 400, "not_json", None),
    (body().replace("0.5", "Infinity"), 400, "not_json", None),
    (body().replace("0.5", "-Infinity"), 400, "not_json", None),
    (body().replace("Oslo", "\\ud800 5150777"), 400, "not_json", None),
    (body().replace('"amount"', '"\\udfff"'), 400, "not_json", None),
    (body().encode().replace(b"Oslo", b"\xff\xfe"), 400, "not_json", None),
    ("[" * 5000, 400, "not_json", None),
    ('{"amount": 5150777, "amount": 5150777}', 400, "duplicate_key", None),
    (body().replace("0.5", "1e999"), 422, "not_finite", "amount"),
    (body().replace("0.5", "5150777" * 60), 422, "not_finite", "amount"),
    (body().replace("0.5", "-" + "9" * 400), 422, "not_finite", "amount"),
    (body().replace("0.5", "9" * 5000), 422, "not_finite", None),
    (body(amount=True), 422, "wrong_type", "amount"),
    (body(amount="5150777"), 422, "wrong_type", "amount"),
    (body(amount=[5150777]), 422, "wrong_type", "amount"),
    (body(member=1), 422, "wrong_type", "member"),
    (body(city=5150777), 422, "wrong_type", "city"),
    ('{"amount": 5150777}', 422, "missing_field", "gap"),
    (body(extra=5150777), 422, "unknown_field", "extra"),
    ("5150777", 422, "not_an_object", None),
    ("null", 422, "not_an_object", None),
    ("[5150777]", 422, "not_an_object", None),
    ("[]", 422, "no_rows", None),
    (json.dumps([{}] * 10_001), 413, "too_many_rows", None),
    (body(prediction_id=5150777), 422, "bad_id", "prediction_id"),
    (body(prediction_id=""), 422, "bad_id", "prediction_id"),
    (body(prediction_id="x" * 129), 422, "bad_id", "prediction_id"),
    (body(prediction_id="5150777\n"), 422, "bad_id", "prediction_id"),
    (body(occurred_at="5150777"), 422, "bad_time", "occurred_at"),
    (body(occurred_at="2025-01-01T00:00:00"), 422, "bad_time", "occurred_at"),
    (body(occurred_at="1999-01-01T00:00:00Z"), 422, "time_skew", "occurred_at"),
]


class TestBadInput:
    @pytest.mark.parametrize(("content", "status", "code", "field"), BAD)
    def test_it_is_refused_by_code_and_field_without_its_value_and_counted(
        self, client, server, content, status, code, field
    ):
        rows, before = len(journalled(server.root)), refusals(server.root)[code]
        response = post(client, content)
        error = error_of(response, status, code)
        assert error.get("field") == field
        assert SECRET not in response.text
        assert len(journalled(server.root)) == rows
        until(lambda: refusals(server.root)[code] == before + 1)
        assert SECRET not in json.dumps(refused(server.root))

    def test_one_bad_row_refuses_the_whole_request(self, client, server):
        before = len(journalled(server.root))
        rows = [ROW, {**ROW, "amount": "x"}, ROW]
        assert error_of(post(client, json.dumps(rows)), 422, "wrong_type")["row"] == 1
        assert len(journalled(server.root)) == before

    def test_a_name_that_the_client_made_up_is_not_recorded(self, client, server):
        before = refusals(server.root)["unknown_field"]
        post(client, body(my_password_5150777=1))
        until(lambda: refusals(server.root)["unknown_field"] > before)
        assert "password" not in json.dumps(refused(server.root))

    @pytest.mark.parametrize(
        "content_type",
        [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json; charset=latin-1",
            "application/jsonp",
            "",
        ],
    )
    def test_other_content_types_are_refused(self, client, content_type):
        response = post(client, body(), **{"Content-Type": content_type})
        error_of(response, 415, "unsupported_media_type")

    def test_json_may_say_that_it_is_utf_8(self, client):
        response = post(client, body(), **{"Content-Type": 'Application/JSON; charset="UTF-8"'})
        assert response.status_code == 200

    @pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
    def test_a_body_of_100_megabytes_is_refused_before_it_is_parsed(self, client, declared):
        sent = 0

        def stream():
            nonlocal sent
            for _ in range(100):
                sent += 1
                yield b" " * 1_000_000

        length = {"Content-Length": str(100_000_000)} if declared else {}
        error_of(post(client, stream(), **length), 413, "too_large")
        assert post(client, body()).status_code == 200

    def test_a_declared_length_is_enough_to_be_refused(self, server):
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port), timeout=10) as raw:
            head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            raw.sendall(f"{head}Content-Length: 100000000\r\n\r\n".encode())
            assert raw.recv(100).startswith(b"HTTP/1.1 413 ")

    def test_a_client_that_goes_away_and_all_bad_input_so_far_are_no_defects(self, client, server):
        gone = 'homeostat_requests_total{path="/predict",status="400"}'
        before = value_of(client, gone)
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port), timeout=10) as raw:
            head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            raw.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        until(lambda: value_of(client, gone) == before + 1)
        assert post(client, body()).status_code == 200
        assert "internal error" not in server.log
        assert "Traceback" not in server.log
        assert SECRET not in server.log

    def test_paths_and_methods_that_do_not_exist_have_the_same_shape(self, client):
        error_of(client.get("/nope"), 404, "not_found")
        error_of(client.get("/docs/nope.js"), 404, "not_found")
        response = client.get("/predict")
        error_of(response, 405, "method_not_allowed")
        assert response.headers["allow"] == "POST"


class TestFeedback:
    def labels(self, client, *items):
        return post(client, json.dumps(items), path="/feedback")

    def test_labels_are_accepted_repeated_and_changed(self, client):
        name = post(client, body()).json()["prediction_id"]
        said = {"prediction_id": name, "label": 1}
        counts = [
            self.labels(client, said).json(),
            self.labels(client, said).json(),
            self.labels(client, {**said, "label": 0}).json(),
        ]
        assert counts == [
            {"accepted": 1, "repeated": 0, "changed": 0},
            {"accepted": 0, "repeated": 1, "changed": 0},
            {"accepted": 1, "repeated": 0, "changed": 1},
        ]

    def test_a_single_object_will_do_and_an_unknown_id_is_kept(self, client, server):
        said = json.dumps({"prediction_id": "unknown-id", "label": 1})
        assert post(client, said, path="/feedback").json()["accepted"] == 1
        assert "unknown-id" in (server.root / "data" / "logs" / "labels.csv").read_text()

    @pytest.mark.parametrize(
        ("item", "code", "field"),
        [
            ({"prediction_id": "a", "label": 5150777}, "bad_label", "label"),
            ({"prediction_id": "a", "label": None}, "bad_label", "label"),
            ({"prediction_id": "a", "label": [SECRET]}, "bad_label", "label"),
            ({"prediction_id": "a"}, "missing_field", "label"),
            ({"label": 1}, "missing_field", "prediction_id"),
            ({"prediction_id": "a", "label": 1, "x": SECRET}, "unknown_field", "x"),
            ({"prediction_id": 5150777, "label": 1}, "bad_id", "prediction_id"),
            ({"prediction_id": "a", "label": 1, "labelled_at": SECRET}, "bad_time", "labelled_at"),
            (
                {"prediction_id": "a", "label": 1, "labelled_at": "9000-01-01T00:00:00Z"},
                "time_skew",
                "labelled_at",
            ),
        ],
    )
    def test_a_bad_label_refuses_the_request(self, client, item, code, field):
        response = self.labels(client, {"prediction_id": "b", "label": 1}, item)
        error = error_of(response, 422, code)
        assert (error["field"], error["row"]) == (field, 1)
        assert SECRET not in response.text


class TestState:
    def test_health_model_and_metrics_tell_what_is_served(self, client):
        version = post(client, body()).json()["model_version"]
        assert client.get("/health/live").json() == {"status": "live"}
        assert client.get("/health/ready").json()["status"] == "ready"
        model = client.get("/model").json()
        assert (model["model_version"], model["members"]) == (version, 1)
        assert model["target"] == {"name": "target", "task": "binary", "classes": [0, 1]}
        assert [f["name"] for f in model["features"]] == list(ROW)
        metrics = client.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert f'homeostat_champion_sequence{{model_version="{version}"}}' in metrics.text
        assert value_of(client, "homeostat_predictions_total") > 0

    def test_paths_that_a_client_made_up_do_not_become_metrics(self, client):
        client.get("/made-up-5150777")
        assert SECRET not in client.get("/metrics").text

    def test_the_examples_in_the_documentation_are_answered_when_pasted(self, client):
        document = client.get("/openapi.json").json()
        content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
        examples = content["application/json"]["examples"]
        assert len(examples) == 2
        for example in examples.values():
            assert post(client, json.dumps(example["value"])).status_code == 200

    def test_the_documentation_shows_the_models_own_features(self, client):
        row = client.get("/openapi.json").json()["components"]["schemas"]["Row"]
        assert row["required"] == list(ROW)
        assert row["properties"]["amount"]["type"] == ["number", "null"]
        assert row["properties"]["member"]["type"] == ["boolean", "null"]
        assert '"Oslo"' in row["properties"]["city"]["description"]
        assert "enum" not in row["properties"]["city"]

    def test_the_documentation_page_loads_nothing_from_the_network(self, client):
        assert client.get("/", follow_redirects=True).url.path == "/docs"
        page = client.get("/docs")
        assert not re.search(r"https?://", page.text)
        assert '"validatorUrl": null' in page.text  # else it asks a server of its own choice
        assert "default-src 'self'" in page.headers["content-security-policy"]
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(loaded) == 3
        for address in loaded:
            asset = client.get(httpx.URL(f"{client.base_url}/docs").join(address))
            assert asset.status_code == 200
            assert len(asset.content) > 500

    def test_without_keys_a_page_of_another_site_whose_name_leads_here_is_refused(self, client):
        for path in ("/model", "/health/live", "/predict"):
            response = client.get(path, headers={"Host": "rebound.example:8000"})
            assert "localhost" in error_of(response, 403, "foreign_host")["hint"]
        assert client.get("/model", headers={"Host": "LocalHost:1"}).status_code == 200

    def test_without_keys_an_address_that_is_not_loopback_is_refused(self, server):
        address = own_address()
        if address is None:
            pytest.skip("this machine has no address besides loopback")
        url = server.url.replace("127.0.0.1", address)
        for path in ("/model", "/health/live"):
            response = httpx.get(url + path, headers={"Host": "localhost"})
            error_of(response, 403, "not_local")


def own_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; picks the address of the route
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") or address == "0.0.0.0" else address


class TestHotSwap:
    def test_a_new_release_is_served_without_a_failed_request_under_load(self, client, server):
        old = client.get("/model").json()["model_version"]
        stop = threading.Event()
        answers, failures = [], []

        def load(number):
            with server.client() as http:
                while not stop.is_set():
                    rows = [{**ROW, "amount": number / 4}] * 3
                    response = post(http, json.dumps(rows))
                    if response.status_code != 200:
                        failures.append(response.text)
                        return
                    answers.append((number, response.json()))

        threads = [threading.Thread(target=load, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            new = promote(server.root, objects(seed=1)).id
            until(lambda: client.get("/model").json()["model_version"] == new)
            count = len(answers)
            until(lambda: len(answers) > count + 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []
        shares = {}
        for number, answer in answers:
            assert len({row["model_version"] for row in answer}) == 1
            for row in answer:
                shares.setdefault((row["model_version"], number), set()).add(row["probability"])
        assert {version for version, _ in shares} == {old, new}
        # Each model has one answer to the same row: no answer mixes two models.
        assert {len(values) for values in shares.values()} == {1}
        assert client.get("/openapi.json").status_code == 200

    def test_a_tampered_release_is_not_served_and_the_old_one_is(self, client, server):
        old = client.get("/model").json()["model_version"]
        pointer = server.root / "models" / "champion.json"
        content = json.loads(pointer.read_text())
        pointer.write_text(json.dumps({**content, "sequence": content["sequence"] + 2}))
        until(lambda: client.get("/model").json()["failure"])
        assert post(client, body()).json()["model_version"] == old
        for path in ("/health/ready", "/model"):
            failure = client.get(path).json()["failure"]
            assert "does not verify" in failure
            assert "/" not in failure
        assert server.log.count("release not served") == 1
        assert str(pointer) in server.log
        pointer.write_text(json.dumps(content))
        until(lambda: client.get("/model").json()["failure"] is None)


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    """A server on a Unix socket that starts before the first release, its log on a small disk."""
    root = tmp_path_factory.mktemp("late")
    logs = root / "data" / "logs"
    logs.mkdir(parents=True)
    (root / "homeostat.toml").write_text('[serving]\nwatch = "0.05s"\n')
    small = os.geteuid() == 0 and shutil.which("mount") is not None
    if small:
        command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(logs)]
        small = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        # A socket's path must be short, and pytest's folders are not on every system.
        with (
            tempfile.TemporaryDirectory(dir="/tmp") as short,
            serving(root, uds=Path(short) / "s") as running,
        ):
            running.small = small
            yield running
    finally:
        if small:
            subprocess.run(["umount", str(logs)], check=True)


class TestFromNothing:
    def test_without_a_champion_it_says_so_until_the_first_release_comes(self, late: Server):
        with late.client() as client:
            error = error_of(post(client, body()), 503, "no_champion")
            assert "homeostat train" in error["hint"]
            error_of(post(client, '{"prediction_id": "a"}', path="/feedback"), 503, "no_champion")
            error_of(client.get("/model"), 503, "no_champion")
            error_of(client.get("/health/ready"), 503, "no_champion")
            assert client.get("/health/live").status_code == 200
            assert client.get("/docs").status_code == 200
            assert client.get("/openapi.json").json()["components"]["schemas"]["Row"]
            promote(late.root, objects())
            until(lambda: client.get("/health/ready").status_code == 200)
            assert post(client, body()).status_code == 200

    def test_on_a_full_disk_nothing_is_answered_until_there_is_room(self, late: Server):
        if not late.small:
            pytest.skip("a small disk can be mounted by root only")
        logs = late.root / "data" / "logs"
        with late.client() as client:
            if client.get("/health/ready").status_code != 200:
                promote(late.root, objects())
                until(lambda: client.get("/health/ready").status_code == 200)
            assert post(client, body(prediction_id="before")).status_code == 200
            filler = logs / "filler"
            with pytest.raises(OSError, match="No space"):
                filler.write_bytes(b"x" * 1_000_000)
            rows = [{**ROW, "city": "x" * 100, "prediction_id": f"full-{i}"} for i in range(200)]
            response = post(client, json.dumps(rows))
            error_of(response, 503, "cannot_journal")
            assert response.headers["retry-after"]
            assert "probability" not in response.text
            assert str(logs) not in response.text
            error_of(client.get("/health/ready"), 503, "cannot_journal")
            assert not any(name.startswith("full-") for name in journalled(late.root))
            filler.unlink()
            until(lambda: post(client, json.dumps(rows)).status_code == 200)
            assert client.get("/health/ready").status_code == 200
            assert {"before", "full-0", "full-199"} <= set(journalled(late.root))


# What follows needs no process: the same application, called in place.


@pytest.fixture
def project(tmp_path):
    promote(tmp_path, objects())
    return tmp_path


def application(root, clock=None, **serving_options):
    chosen = configuration.read(root, serving=serving_options)
    predictor = Predictor(
        FileReleases(root / "models"),
        FileJournal(root / "data" / "logs"),
        clock or FakeClock(AT),
        serving=chosen.serving,
    )
    predictor.refresh()
    return create_app_for(predictor, chosen)


class Called:
    """A synchronous client of an application in this process."""

    def __init__(self, app, host="127.0.0.1"):
        self._app = app
        self._host = host

    def request(self, method, path, **options):
        async def call():
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(
                transport=transport, base_url=f"http://{self._host}"
            ) as http:
                return await http.request(method, path, **options)

        return asyncio.run(call())

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, **options):
        return self.request("POST", path, **options)


class TestKeys:
    @pytest.fixture
    def client(self, project):
        keys = [
            {"name": role, "role": role, "sha256": hashlib.sha256(role.encode()).hexdigest()}
            for role in ("viewer", "predict", "feedback", "admin")
        ]
        return Called(application(project, keys=keys), host="203.0.113.7")

    @pytest.mark.parametrize("path", ["/predict", "/model", "/metrics", "/docs", "/nope", "/"])
    def test_without_a_key_only_health_is_open(self, client, path):
        response = client.get(path)
        error_of(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic predict"},
            {"Authorization": "predict"},
            {"X-API-Key": ""},
            {"X-API-Key": "prédict".encode()},
        ],
    )
    def test_a_wrong_key_is_refused(self, client, headers):
        error_of(client.get("/model", headers=headers), 401, "unauthorized")

    @pytest.mark.parametrize(
        ("role", "path", "status"),
        [
            ("predict", "/predict", 200),
            ("predict", "/feedback", 403),
            ("feedback", "/predict", 403),
            ("feedback", "/feedback", 200),
            ("admin", "/predict", 200),
            ("admin", "/feedback", 200),
            ("predict", "/admin/rollback", 403),
            ("viewer", "/predict", 403),
            ("viewer", "/feedback", 403),
            ("viewer", "/admin/rollback", 403),
        ],
    )
    def test_a_key_reaches_what_its_role_may(self, client, role, path, status):
        rows = {"/feedback": {"prediction_id": "a", "label": 1}}
        for headers in ({"Authorization": f"bearer {role}"}, {"X-API-Key": role}):
            response = client.post(path, json=rows.get(path, ROW), headers=headers)
            assert response.status_code == status
            assert client.get("/model", headers=headers).status_code == 200

    def test_behind_a_prefix_a_role_still_counts(self, client, project):
        keys = [{"name": "f", "role": "feedback", "sha256": hashlib.sha256(b"f").hexdigest()}]
        app = application(project, keys=keys)

        async def prefixed(scope, receive, send):
            path = f"/ml{scope['path']}"
            await app({**scope, "root_path": "/ml", "path": path}, receive, send)

        response = Called(prefixed).post("/predict", json=ROW, headers={"X-API-Key": "f"})
        error_of(response, 403, "forbidden")
        response = Called(prefixed).post(
            "/feedback", json={"prediction_id": "a", "label": 1}, headers={"X-API-Key": "f"}
        )
        assert response.status_code == 200


class TestGuards:
    @pytest.mark.parametrize(
        ("server", "local"),
        [
            (("127.0.0.1", 8000), True),
            (("127.8.8.8", 8000), True),
            (("::1", 8000), True),
            (("::ffff:127.0.0.1", 8000), True),
            (("/run/socket", None), True),
            (("0.0.0.0", 8000), False),
            (("::", 8000), False),
            (("192.168.0.7", 8000), False),
            (("::ffff:10.0.0.1", 8000), False),
            (("fe80::1%eth0", 8000), False),
            (("localhost", 8000), False),
            (("192.168.0.7", None), False),
            (None, False),
        ],
    )
    def test_only_loopback_and_unix_sockets_are_local(self, server, local):
        assert is_local(server) is local

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [
            ("localhost", True),
            ("localhost:8000", True),
            ("LOCALHOST:", True),
            ("127.0.0.1", True),
            ("127.8.8.8:80", True),
            ("[::1]", True),
            ("[::1]:8000", True),
            ("[::ffff:127.0.0.1]:80", True),
            ("", False),
            (":8000", False),
            ("0.0.0.0:8000", False),
            ("[::]", False),
            ("::1", False),
            ("192.168.0.7", False),
            ("localhost.example.org", False),
            ("127.0.0.1.example.org:80", False),
            ("127.0.0.1:80:80", False),
            ("example.org@127.0.0.1", False),
            ("localhost:80/", False),
            ("[localhost]", False),
            ("localhost\n", False),
        ],
    )
    def test_only_loopback_is_named_by_its_names(self, host, loopback):
        assert names_loopback(host) is loopback

    def test_with_keys_or_insecure_any_name_will_do_and_on_a_unix_socket_too(self, project):
        keys = [{"name": "a", "role": "admin", "sha256": hashlib.sha256(b"a").hexdigest()}]
        named = {"Host": "models.example.org", "X-API-Key": "a"}
        for options in ({"keys": keys}, {"insecure": True}):
            client = Called(application(project, **options))
            assert client.get("/model", headers=named).status_code == 200
        guards = Guards(configuration.read(project).serving)
        scope = {"type": "http", "method": "GET", "path": "/", "server": ("/run/socket", None)}
        assert guards.refusal({**scope, "headers": [(b"host", b"models.example.org")]}) is None
        scope["server"] = ("127.0.0.1", 8000)
        assert guards.refusal({**scope, "headers": []}) is None
        assert guards.refusal({**scope, "headers": [(b"host", b"")]}).status_code == 403

    @pytest.mark.parametrize(
        ("given", "taken"),
        [
            ("application/json", True),
            ("application/json;charset=utf-8", True),
            ("application/json; charset=utf-16", False),
            ("application/problem+json", False),
            ("json", False),
            ("application/json; charset*=a; charset*0=b", False),
        ],
    )
    def test_only_json_in_utf_8_is_taken(self, given, taken):
        assert is_json(given) is taken

    def test_insecure_in_the_settings_opens_other_addresses(self, project):
        closed = Called(application(project), host="203.0.113.7")
        error_of(closed.get("/health/live"), 403, "not_local")
        assert (
            Called(application(project, insecure=True), host="203.0.113.7").get("/model").is_success
        )


class Moody:
    """A model that answers its golden rows and then fails with a value in its error."""

    classes_ = (0, 1)

    def __init__(self, error):
        self.error = error

    def predict_proba(self, frame):
        if len(frame) == 20:
            return [[0.5, 0.5]] * 20
        raise self.error(f"cannot take {SECRET} as {frame.iloc[0].to_dict()}")


class TestDefects:
    @pytest.mark.parametrize(
        ("error", "status", "code"),
        [(KeyError, 500, "model_failed"), (ValueError, 422, "model_refused")],
    )
    def test_a_model_that_fails_on_a_row_tells_no_value_and_records_no_prediction(
        self, tmp_path, capfd, error, status, code
    ):
        promote(tmp_path, objects(model=Moody(error)))
        app = application(tmp_path)

        async def whole():
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(
                    transport=httpx.ASGITransport(app), base_url="http://127.0.0.1"
                ) as http,
            ):
                return await http.post("/predict", json=ROW)

        response = asyncio.run(whole())
        error_of(response, status, code)
        printed = "".join(capfd.readouterr())
        assert SECRET not in response.text + printed
        assert ("KeyError" in printed) == (error is KeyError)
        assert journalled(tmp_path) == {}
        assert refused(tmp_path)[-1]["code"] == code

    @pytest.mark.filterwarnings("ignore:overflow")
    def test_a_number_that_the_model_cannot_work_with_is_the_clients_to_mend(self, tmp_path):
        promote(tmp_path, objects(task="regression"))
        client = Called(application(tmp_path))
        response = client.post("/predict", json={**ROW, "amount": 1.7e308})
        error_of(response, 422, "model_refused")
        assert client.post("/predict", json=ROW).status_code == 200

    def test_a_defect_is_told_in_the_one_shape_and_logged_without_its_text(
        self, project, capfd, monkeypatch
    ):
        def broken(*_):
            raise KeyError(SECRET)

        monkeypatch.setattr(Predictor, "answer", broken)
        client = Called(application(project))
        response = client.post("/predict", json=ROW)
        error_of(response, 500, "internal")
        printed = "".join(capfd.readouterr())
        assert SECRET not in response.text + printed
        assert "KeyError" in printed
        requests = 'homeostat_requests_total{path="/predict",status="500"} 1.0'
        assert requests in client.get("/metrics").text
