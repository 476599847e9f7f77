"""The page without a browser: what it reads, what it answers, and whom."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from wall_fixtures import (
    ADMIN,
    HOSTILE,
    KEYS,
    SCRIPT,
    VIEWER,
    Visitor,
    bare,
    invented,
    later,
    lived,
)

from homeostat import looks
from homeostat.audit import ChainAudit
from homeostat.build import load_project
from homeostat.listening import Key
from homeostat.notes import orders
from homeostat.settings import Monitor, Settings, Tracking
from homeostat.testing import START
from homeostat.wall import data, story, tracked
from homeostat.wall.app import create_app
from homeostat.wall.board import Board
from homeostat.wall.render import ASSETS, asset
from homeostat.wall.run import wall
from homeostat.wall.sessions import Sessions, secret
from homeostat.wall.traffic import Server, Traffic, between, counted, down, quantile
from homeostat.wall.turns import Doing


class Idle:
    """Stands in for the loop's turns."""

    doing = Doing(next=datetime(2026, 1, 2, tzinfo=UTC))

    def __init__(self, clock):
        self.woken, self.clock = 0, clock

    def wake(self):
        self.woken += 1


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return lived(tmp_path_factory.mktemp("lived") / "p")


@pytest.fixture
def visit():
    """Opens the page of a project as a client, over loopback unless the address says otherwise."""

    def visit(root, base="http://127.0.0.1:8080"):
        project = load_project(root)
        turns = Idle(later(project))
        shown = wall(project, turns)
        shown.board.look()
        return Visitor(create_app(shown), base, turns)

    return visit


def board(root):
    made = Board(load_project(root))
    made.look()
    return made


def around(*, now=START, doing=None, servers=()):
    return story.Around(doing or Doing(), tuple(servers), now, Settings())


def token(page):
    """What a confirmation's form carries."""
    return re.search(r'name="token" value="([0-9a-f]+)"', page.text)[1]


# --- what it reads ---


def test_the_view_tells_of_each_look_decision_and_release(root):
    view = board(root).view
    assert [turn.action for turn in view.turns][:1] == ["first"]
    assert len(view.looks) == 5
    assert view.champion == view.moves[-1].release
    assert [each.release for each in view.waiting] == [view.turns[-1].release]
    rows = story.releases(view)
    assert [row["state"] for row in rows] == ["waits", "serves", ""]
    assert [row["back"] for row in rows] == [False, False, True]
    assert all(row["seconds"] > 0 for row in rows)


def test_the_sentence_at_the_top_tells_what_serves_and_how_it_does(root):
    view = board(root).view
    told = story.story(view, around())
    assert told.word == "wait"
    text = " ".join(told.parts)
    assert view.champion[:12] in text
    assert "first release" in text
    assert "realised" in text


def test_where_nothing_happened_it_says_what_to_do(tmp_path):
    told = story.story(board(bare(tmp_path / "p")).view, around())
    assert told.word == "none"
    assert "homeostat train" in told.parts[0]


@pytest.mark.parametrize(
    ("state", "hurts", "word"),
    [
        ("stable", "no", "well"), ("stable", "unknown", "calm"), ("stable", "yes", "hurt"),
        ("drift", "no", "drift"), ("broken_data", "unknown", "call"),
        ("failed", "unknown", "unknown"), ("insufficient_data", "unknown", "unknown"),
    ],
)  # fmt: skip
def test_one_word_says_how_the_model_is(tmp_path, state, hurts, word):
    audit = ChainAudit(bare(tmp_path / "p") / "reports" / "decisions.jsonl")
    look = {"state": state, "hurts": hurts, "reason": "So it is.", "release": "c" * 64}
    audit.write("monitored", START, look)
    told = story.story(replace(board(tmp_path / "p").view, champion="c" * 64), around())
    assert told.word == word
    assert "So it is." in told.parts[1]


@pytest.fixture
def well(tmp_path):
    """What the page shows of a model that is well."""
    audit = ChainAudit(bare(tmp_path / "p") / "reports" / "decisions.jsonl")
    told = {"state": "stable", "hurts": "no", "reason": "So it is.", "release": "c" * 64}
    audit.write("monitored", START, told)
    return replace(board(tmp_path / "p").view, champion="c" * 64)


def test_a_model_is_not_called_well_where_a_step_fails_nobody_looks_or_nobody_answers(well):
    def word(**found):
        return story.story(well, around(**found)).word

    gone, never = Server("a", "refused", met=True), Server("a", "refused")
    assert word() == "well"
    assert word(doing=Doing(problem="the disk is full")) == "stuck"
    assert word(now=START + timedelta(days=4)) == "late"
    assert word(servers=[gone]) == "down"
    assert word(servers=[gone, Server("b", met=True)]) == "well"
    assert word(servers=[never]) == "well"


def test_it_says_from_when_on_the_loop_may_train_again(well):
    trained = replace(well, trained=START.isoformat())
    told = story.next_training(trained, around(now=START + timedelta(days=3)))
    assert "{2025-01-22T00:00:00+00:00}" in told
    assert story.next_training(trained, around(now=START + timedelta(days=30))) == ""
    assert "pinned" in story.next_training(replace(well, pinned="ada"), around())


def test_a_chain_that_cannot_be_read_is_not_taken_for_a_project_without_a_model(tmp_path):
    root = invented(tmp_path / "p", 3, ["a"])
    chain = root / "reports" / "decisions.jsonl"
    chain.write_bytes(b"{}\n" + chain.read_bytes())
    told = story.story(board(root).view, around())
    assert told.word == "unknown"
    assert not any("train" in part for part in told.parts)


def test_a_line_that_was_altered_is_told_of_with_its_number(tmp_path):
    root = invented(tmp_path / "p", 3, ["a"])
    chain = root / "reports" / "decisions.jsonl"
    lines = chain.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"hurts":"no"', b'"hurts":"yes"')
    chain.write_bytes(b"".join(lines))
    made = board(root)
    assert "line 2, was altered" in made.view.problems[0]
    ChainAudit(chain).write("order_refused", START, {"action": "pin", "by": "", "reason": ""})
    assert made.look()
    assert len(made.view.problems) == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("drift_status.json", {"features": {"x": 1}}),
        ("drift_status.json", {"segments": "many"}),
        ("drift_shapes.json", {"columns": {"amount": {}}}),
    ],
)
def test_a_file_of_another_form_is_told_of_and_no_part_falls_over_it(
    tmp_path, visit, file, content
):
    root = invented(tmp_path / "p", 3, ["a"])
    (root / "reports" / file).write_text(json.dumps(content))
    client = visit(root)
    assert client.get("/part/drift").status_code == client.get("/data/heat").status_code == 200
    assert f"{file} is not as the loop writes it" in client.get("/part/top").text


def test_what_could_not_be_read_for_a_moment_is_read_again(tmp_path, monkeypatch):
    made = Board(load_project(invented(tmp_path / "p", 3, ["a"])))
    with monkeypatch.context() as broken:
        broken.setattr("homeostat.wall.board.since", lambda *_: 1 / 0)
        made.look()
        assert made.view.problems
    monkeypatch.setattr("homeostat.wall.board.time.monotonic", lambda: float(1 << 40))
    assert made.look()
    assert not made.view.problems
    assert len(made.view.looks) == 3


def test_a_line_that_comes_later_is_taken_without_reading_the_others_again(tmp_path, monkeypatch):
    made = board(invented(tmp_path / "p", 5, ["a", "b"]))
    asked = []
    taken = type(made._ledger).take
    monkeypatch.setattr(
        type(made._ledger),
        "take",
        lambda self, lines: (asked.append(len(lines)), taken(self, lines)),
    )
    assert not made.look()
    audit = ChainAudit(tmp_path / "p" / "reports" / "decisions.jsonl")
    audit.write("order_refused", START, {"action": "pin", "by": "ada", "reason": "No."})
    assert made.look()
    assert asked == [1]
    assert made.view.turns[-1].reason == "No."
    assert len(made.view.looks) == 5


def test_a_chain_that_was_replaced_is_read_from_its_beginning(tmp_path):
    made = board(invented(tmp_path / "p", 5, ["a"]))
    (tmp_path / "p" / "reports" / "decisions.jsonl").unlink()
    invented(tmp_path / "p", 2, ["a"])
    made.look()
    assert len(made.view.looks) == 2


def test_a_file_that_cannot_be_read_leaves_the_page_as_it_was_and_is_told_of(tmp_path):
    made = board(invented(tmp_path / "p", 3, ["a"]))
    (tmp_path / "p" / "reports" / "drift_status.json").write_text("{")
    chain = tmp_path / "p" / "reports" / "decisions.jsonl"
    chain.write_bytes(chain.read_bytes() + b"{}\n")
    made.look()
    assert len(made.view.looks) == 3
    assert len(made.view.problems) == 2


def test_heat_cells_are_the_distance_in_steps_of_the_threshold_first_what_matters(tmp_path):
    view = board(invented(tmp_path / "p", 4, ["a", "b", "c", "d"])).view
    told = json.loads(data.heat(view))
    cells = np.frombuffer(base64.b64decode(told["cells"]), np.uint8).reshape(4, 4)
    assert told["names"][0] == "a"
    for row, name in enumerate(told["names"]):
        for look in range(4):
            distance = look / 100 + (0.3 if name in "ad" else 0)
            assert cells[row, look] == round(told["steps"] * distance / 0.2)


def test_a_column_that_a_look_lacks_is_drawn_as_untested(tmp_path):
    root = invented(tmp_path / "p", 2, ["a"])
    audit = ChainAudit(root / "reports" / "decisions.jsonl")
    look = {"state": "stable", "hurts": "no", "reason": "", "distances": {"b": [0.1, 0.2]}}
    audit.write("monitored", START + timedelta(days=9), look)
    told = json.loads(data.heat(board(root).view))
    cells = np.frombuffer(base64.b64decode(told["cells"]), np.uint8).reshape(2, 3)
    untested = told["untested"]
    assert cells.tolist() == [[cells[0, 0], cells[0, 1], untested], [untested, untested, 30]]


def test_what_is_said_of_a_column_names_its_threshold_and_where_that_comes_from(tmp_path):
    view = board(invented(tmp_path / "p", 30, ["a", "b"])).view
    said = " ".join(story.about(view, "a", Monitor()))
    assert "34 stretches" in said
    assert "10.00% of the reference, 10.00% of the window" in said
    assert "'a' has nulls." in said
    small = " ".join(story.about(view, "a", Monitor(min_effect=0.5)))
    assert "minimum effect" in small


def test_the_figures_of_the_chart_are_those_of_the_chain(root):
    told = json.loads(data.performance(board(root).view))
    assert told["metric"] == "log loss"
    place = 3 + told["figures"].index("first_release")
    assert told["looks"][0][place] is None
    assert told["looks"][-1][place][0] > 0
    assert told["turns"][0][1] == "first"


# --- traffic ---


def scrape(requests, failed, rows, quick):
    return f"""
# TYPE homeostat_requests_total counter
homeostat_requests_total{{path="/predict",status="200"}} {requests - failed}
homeostat_requests_total{{path="/predict",status="422"}} {failed}
homeostat_requests_total{{path="/metrics",status="200"}} 99
# TYPE homeostat_predictions_total counter
homeostat_predictions_total {rows}
# TYPE homeostat_request_seconds histogram
homeostat_request_seconds_bucket{{path="/predict",le="0.005"}} {quick}
homeostat_request_seconds_bucket{{path="/predict",le="0.1"}} {requests}
homeostat_request_seconds_bucket{{path="/predict",le="+Inf"}} {requests}
# TYPE homeostat_champion_sequence gauge
homeostat_champion_sequence{{model_version="abc"}} 2
"""


def test_rates_and_quantiles_are_those_between_two_scrapes():
    first, second = (
        counted(scrape(100, 0, 1000, 100), 10.0),
        counted(scrape(150, 5, 1100, 140), 15.0),
    )
    told = between("x", first, second)
    assert (told.requests, told.rows, told.failed) == (10.0, 20.0, 0.1)
    assert (told.median, told.slow, told.release) == (0.005, 0.1, "abc")


def test_a_server_that_was_started_anew_counts_from_its_start():
    told = between("x", counted(scrape(100, 0, 9, 9), 0.0), counted(scrape(10, 0, 5, 5), 5.0))
    assert (told.requests, told.rows) == (2.0, 1.0)
    assert quantile({}, 0.5) is None


def test_a_server_that_does_not_answer_is_told_of_as_such():
    asked = Traffic(["http://127.0.0.1:9", "file:///etc/passwd"])
    asked.look()
    assert all(server.problem for server in asked.servers)


class Answering:
    """An HTTP server of one answer, which keeps the heads of what it was asked."""

    def __init__(self, status, headers, body):
        kept = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                kept.append(dict(self.headers))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):
                    for piece in body():
                        self.wfile.write(piece)
                        self.wfile.flush()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def test_the_key_goes_to_the_server_alone_and_neither_to_a_proxy_nor_along_a_redirect(monkeypatch):
    with (
        Answering(200, {}, lambda: [scrape(1, 0, 1, 1).encode()]) as other,
        Answering(302, {"Location": f"{other.url}/metrics"}, list) as server,
    ):
        monkeypatch.setenv("http_proxy", other.url)
        monkeypatch.delenv("no_proxy", raising=False)
        asked = Traffic([server.url], "a secret")
        asked.look()
    assert server.asked[0]["Authorization"] == "Bearer a secret"
    assert other.asked == []
    assert asked.servers[0].problem == "HTTP status 302"


def test_a_server_that_never_ends_its_answer_is_given_up(monkeypatch):
    monkeypatch.setattr("homeostat.wall.traffic.DEADLINE", 0.0)
    with Answering(200, {}, lambda: itertools.repeat(b"# a comment\n")) as server:
        asked = Traffic([server.url])
        asked.look()
    assert asked.servers[0].problem


def test_a_server_counts_as_gone_once_it_has_answered_or_was_named():
    assert not down(())
    silent = "http://127.0.0.1:9"
    for expected in (True, False):
        asked = Traffic([silent], expected=expected)
        asked.look()
        assert down(asked.servers) is expected
    with Answering(200, {}, lambda: [scrape(1, 0, 1, 1).encode()]) as server:
        asked = Traffic([server.url], expected=False)
        asked.look()
        assert not down(asked.servers)
    asked.look()
    assert down(asked.servers)


# --- whom it lets in ---


def test_a_key_to_look_reads_the_page_and_may_ask_for_nothing(keyed, visit):
    settings = keyed / "homeostat.toml"
    digest = hashlib.sha256(b"a guest").hexdigest()
    key = f'\n[[serving.keys]]\nname = "eve"\nrole = "viewer"\nsha256 = "{digest}"\n'
    settings.write_text(settings.read_text() + key)
    client = visit(keyed, "http://192.0.2.7:8080")
    assert client.post("/login", data={"key": "a guest"}).status_code == 303
    assert client.get("/").status_code == 200
    assert client.get("/ask/pin").status_code == 403


def test_where_others_are_let_in_without_keys_they_may_look_and_no_more(tmp_path, root, visit):
    made = shutil.copytree(root, tmp_path / "open")
    settings = made / "homeostat.toml"
    settings.write_text(settings.read_text() + "\n[serving]\ninsecure = true\n")
    for far in (visit(made, "http://192.0.2.7:8080"), visit(made, "http://evil.example:8080")):
        assert far.get("/").status_code == 200
        assert "Approve" not in far.get("/part/releases").text
        assert far.get("/ask/pin").status_code == 403
    near = visit(made)
    assert near.get("/").status_code == 200
    assert near.get("/ask/pin").status_code == 200


def test_pages_of_two_projects_on_one_host_keep_cookies_of_their_own(tmp_path, root, visit):
    other = shutil.copytree(root, tmp_path / "other")
    (other / ".homeostat" / "page.key").unlink(missing_ok=True)
    names = {visit(each).get("/").headers["set-cookie"].split("=")[0] for each in (root, other)}
    assert len(names) == 2


def test_a_session_in_use_is_renewed_and_forms_that_are_open_stay_good():
    key = Key(name="ada", role="admin", sha256="a" * 64)
    now = [0.0]
    made = Sessions(b"s" * 32, [key], lambda: now[0])
    cookie = made.open(key)
    assert made.read(cookie).renewed == ""
    now[0] = 2 * 86_400.0
    old = made.read(cookie)
    now[0] = 8 * 86_400.0
    assert made.read(old.renewed).token == old.token
    assert made.read(cookie) is None


def test_a_renewed_session_is_set_anew_in_the_browser(keyed, visit, monkeypatch):
    client = visit(keyed)
    client.post("/login", data={"key": ADMIN})
    assert "set-cookie" not in client.get("/").headers
    monkeypatch.setattr("homeostat.wall.sessions.RENEWED", -1.0)
    assert "set-cookie" in client.get("/").headers


def test_behind_a_proxy_that_ends_tls_the_cookie_is_for_tls_alone(keyed, visit):
    told = {"X-Forwarded-Proto": "https"}
    entered = visit(keyed).post("/login", data={"key": ADMIN}, headers=told)
    assert "; Secure" in entered.headers["set-cookie"]
    assert "; Secure" not in visit(keyed).post("/login", data={"key": ADMIN}).headers["set-cookie"]


def test_a_cookie_tells_nothing_of_the_key(keyed, visit):
    cookie = visit(keyed).post("/login", data={"key": ADMIN}).headers["set-cookie"]
    body = base64.urlsafe_b64decode(cookie.split("=", 1)[1].split(".")[0])
    assert hashlib.sha256(ADMIN.encode()).hexdigest() not in body.decode()
    assert "ada" not in body.decode()


def test_what_fails_inside_carries_the_headers_of_all_answers(root, visit, monkeypatch):
    client = visit(root)
    monkeypatch.setattr("homeostat.wall.app.parts.drift", lambda _: 1 / 0)
    answer = client.get("/part/drift")
    assert answer.status_code == 500
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_report_in_a_tab_of_its_own_stays_in_a_frame(root, visit):
    client = visit(root)
    page = client.get("/framed?of=evidently/12")
    assert 'sandbox="allow-scripts" src="reports/evidently/12"' in page.text
    for name in ("evidently/../x", "evidently/x", '"><script>', "decisions.jsonl"):
        assert client.get("/framed", params={"of": name}).status_code == 404


def test_the_whole_report_of_the_newest_look_is_served_in_its_sandbox(tmp_path, root, visit):
    made = shutil.copytree(root, tmp_path / "reported")
    (made / "reports" / "drift_report.html").write_text("<p>all of it</p>")
    answer = visit(made).get("/reports/drift_report.html")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"].startswith("sandbox allow-scripts")


def test_without_keys_it_answers_on_loopback_alone_and_by_its_names(root, visit):
    assert visit(root).get("/").status_code == 200
    assert visit(root, "http://192.0.2.7:8080").get("/").json()["error"]["code"] == "not_local"
    told = visit(root).get("/", headers={"Host": "evil.example"})
    assert told.json()["error"]["code"] == "foreign_host"


@pytest.fixture
def keyed(tmp_path, root):
    """A project with keys, in which something may be asked for."""
    made = shutil.copytree(root, tmp_path / "keyed")
    settings = made / "homeostat.toml"
    settings.write_text(settings.read_text() + KEYS)
    return made


def test_with_keys_a_visitor_enters_by_the_form(keyed, visit):
    client = visit(keyed, "http://192.0.2.7:8080")
    asked = client.get("/")
    assert (asked.status_code, asked.headers["location"]) == (303, "login")
    assert client.get("/part/top").status_code == 401
    assert client.get("/data/heat").status_code == 401
    assert client.get("/events").status_code == 401
    assert client.post("/login", data={"key": "wrong"}).status_code == 403
    entered = client.post("/login", data={"key": VIEWER})
    cookie = entered.headers["set-cookie"]
    assert entered.status_code == 303
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert VIEWER not in cookie
    assert client.get("/").status_code == 200


def test_a_key_of_the_service_may_be_sent_with_a_request_instead(keyed, visit):
    client = visit(keyed)
    assert client.get("/part/top", headers={"X-API-Key": VIEWER}).status_code == 200
    assert client.get("/part/top", headers={"Authorization": "Bearer no"}).status_code == 401


def test_a_session_that_is_altered_old_or_of_a_key_that_is_gone_is_none():
    key = Key(name="ada", role="admin", sha256="a" * 64)
    now = [0.0]
    made = Sessions(b"s" * 32, [key], lambda: now[0])
    cookie = made.open(key)
    assert made.read(cookie).admin
    assert made.read(cookie[:-1] + ("0" if cookie[-1] != "0" else "1")) is None
    assert made.read("é.x") is None
    assert Sessions(b"s" * 32, [], lambda: 0.0).read(cookie) is None
    assert Sessions(b"t" * 32, [key], lambda: 0.0).read(cookie) is None
    now[0] = 8 * 86_400
    assert made.read(cookie) is None


def test_the_secret_stays_the_same_and_is_nobody_elses_to_read(tmp_path):
    first = secret(tmp_path / "home")
    assert secret(tmp_path / "home") == first
    assert (tmp_path / "home" / "page.key").stat().st_mode & 0o077 == 0


# --- what it answers ---


PARTS = ["top", "traffic", "looks", "drift", "releases", "decisions", "replays"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["lived", "bare", "hostile"])
def test_each_part_answers_whatever_there_is_to_show(part, kind, root, visit, tmp_path):
    places = {"lived": lambda: root, "bare": lambda: bare(tmp_path / "p")}
    places["hostile"] = lambda: invented(tmp_path / "p", 3, HOSTILE)
    answer = visit(places[kind]()).get(f"/part/{part}")
    assert answer.status_code == 200
    assert "<img src=x" not in answer.text


def test_each_answer_says_that_nothing_foreign_may_run(root, visit):
    client = visit(root)
    for path in ("/", "/part/top", "/data/heat", "/nothing"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy


def test_a_page_holds_no_script_and_no_style_of_its_own(root, visit):
    text = visit(root).get("/").text
    assert re.search(r"<script(?![^>]* src=)", text) is None
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", text)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_shown_and_does_nothing(tmp_path, visit, name):
    client = visit(invented(tmp_path / "p", 3, HOSTILE))
    text = client.get("/part/column", params={"name": name}).text
    assert "<img src=x" not in text
    assert "\u202e" not in text
    assert "It drifted" in text or "It did not drift" in text
    by_place = client.get("/part/column", params={"place": HOSTILE.index(name), "look": 2})
    assert "In the look at" in by_place.text


def test_a_column_that_nobody_knows_is_not_found(root, visit):
    client = visit(root)
    for asked in ({"name": "no"}, {"place": "99"}, {"place": "²"}, {}):
        assert client.get("/part/column", params=asked).status_code == 404


def test_decisions_are_searched_by_all_words_and_come_in_pages(tmp_path, visit):
    client = visit(invented(tmp_path / "p", 60, ["a"]))
    assert "60 of 60" in client.get("/part/decisions").text
    assert "page 1 of 3" in client.get("/part/decisions").text
    assert "page 3 of 3" in client.get("/part/decisions", params={"page": "77"}).text
    found = client.get("/part/decisions", params={"q": "HOLD 2025-01-05"}).text
    assert "1 of 60" in found
    assert "None has all" in client.get("/part/decisions", params={"q": "zebra"}).text


def test_a_decision_tells_its_evidence(root, visit):
    client = visit(root)
    turns = board(root).view.turns
    seq = next(turn.seq for turn in reversed(turns) if turn.look)
    text = client.get("/part/decision", params={"seq": seq}).text
    assert "Data window" in text
    assert 'sandbox="allow-scripts"' in text
    assert client.get("/part/decision", params={"seq": "x"}).status_code == 404


def test_a_report_has_an_origin_of_its_own_and_can_send_nothing(root, visit):
    seq = board(root).view.looks[-1].seq
    answer = visit(root).get(f"/reports/evidently/{seq}")
    assert "document.title" in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts;")
    assert "allow-same-origin" not in policy
    assert "default-src 'none'" in policy


def test_an_older_look_is_drawn_as_it_was(root, visit):
    """Only the newest looks are kept; of others the newest is drawn, and that is said."""
    client, view = visit(root), board(root).view
    asked = {"place": view.names.index("amount"), "look": view.looks[0].seq}
    drawn = client.get("/part/column", params=asked).text
    assert "Drawn: reference and this look" in drawn
    newest = client.get("/part/column", params={"name": "amount"}).text
    assert re.search(r'data-shape="[^"]+"', drawn)[0] != re.search(r'data-shape="[^"]+"', newest)[0]


def test_what_is_kept_of_looks_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setitem(looks.KEPT, "shapes.json", 3)
    for day in range(5):
        looks.keep(tmp_path, START + timedelta(days=day), "abc", "shapes.json", b"%d" % day)
    found = [
        looks.kept(tmp_path, START + timedelta(days=day), "abc", "shapes.json") for day in range(5)
    ]
    assert found == [None, None, b"2", b"3", b"4"]


@pytest.mark.parametrize("name", ["decisions.jsonl", "../homeostat.toml", "%2e%2e/homeostat.toml"])
def test_no_other_file_is_served(root, visit, name):
    client = visit(root)
    assert client.get(f"/reports/{name}").status_code == 404
    assert client.get(f"/replays/{name}/picture").status_code == 404
    assert client.get(f"/static/x/{name}").status_code == 404


def test_the_last_replays_are_shown_with_table_and_picture(tmp_path, visit):
    folder = bare(tmp_path / "p") / "reports" / "replays" / "one"
    folder.mkdir(parents=True)
    row = {
        "policy": SCRIPT, "value": 0.5, "relative_gain": 0.1, "gain_kept": None, "retrains": 3,
        "needless_retrains": 0, "promotions": 2, "harmful_promotions": 0, "cpu_seconds": 1.5,
    }  # fmt: skip
    (folder / "replay.json").write_text(json.dumps([row]))
    (folder / "replay.png").write_bytes(b"a picture")
    client = visit(tmp_path / "p")
    text = client.get("/part/replays").text
    assert "+10.0 %" in text
    assert "<img src=x" not in text
    assert client.get("/replays/replays/one/picture").content == b"a picture"


def test_what_is_shipped_is_the_very_file_of_the_npm_registry():
    """Of echarts 6.1.0 and htmx.org 2.0.11."""
    known = {
        "echarts.min.js": "b66b25aeb4df84e33199dc21694014d336d222cbd9deb0e5a7c14bd6aa0d0fd0",
        "htmx.min.js": "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717",
    }
    assert {name: hashlib.sha256(asset(name)).hexdigest() for name in known} == known
    assert all(asset(name) for name in ASSETS)


# --- what people ask ---


def test_an_order_takes_an_admin_a_token_and_a_yes(keyed, visit):
    client = visit(keyed)
    view = board(keyed).view
    form = {"release": view.waiting[0].release, "champion": view.champion, "sure": "yes"}
    client.post("/login", data={"key": VIEWER})
    assert "Approve" not in client.get("/part/releases").text
    assert client.get("/ask/approve").status_code == 403
    assert client.post("/ask/approve", data=form).status_code == 403
    client.post("/login", data={"key": ADMIN})
    assert "Approve" in client.get("/part/releases").text
    given = token(client.get("/ask/approve", params={"release": form["release"]}))
    assert client.post("/ask/approve", data=form).status_code == 403
    other = "0" * len(given)
    assert client.post("/ask/approve", data={**form, "token": other}).status_code == 403
    without = {**form, "token": given, "sure": "no"}
    assert client.post("/ask/approve", data=without).status_code == 400
    assert orders(keyed / ".homeostat").found() == {}
    assert client.post("/ask/approve", data={**form, "token": given}).status_code == 202
    (order,) = orders(keyed / ".homeostat").found().values()
    assert (order.action, order.release, order.champion) == (
        "approve",
        form["release"],
        view.champion,
    )
    assert order.by == "ada"
    assert client.turns.woken == 1


def test_a_form_of_another_site_is_refused_even_on_loopback(root, visit):
    client = visit(root)
    client.get("/")
    given = token(client.get("/ask/pin"))
    form = {"token": given, "sure": "yes"}
    for site in ("cross-site", "same-site"):
        answer = client.post("/ask/pin", data=form, headers={"Sec-Fetch-Site": site})
        assert answer.status_code == 403


def test_a_form_that_is_too_large_or_asks_for_something_else_is_refused(root, visit):
    client = visit(root)
    client.get("/")
    given = token(client.get("/ask/pin"))
    assert client.get("/ask/erase").status_code == 404
    long = {"token": given, "sure": "yes", "release": "x" * 20_000}
    assert client.post("/ask/pin", data=long).status_code == 413


def test_who_leaves_has_to_show_a_key_again(keyed, visit):
    client = visit(keyed)
    client.post("/login", data={"key": ADMIN})
    assert client.post("/logout", data={"token": token(client.get("/"))}).status_code == 303
    assert client.get("/").status_code == 303


# --- words, verdicts and addresses ---


def told(root, **features):
    """A project of one look whose status tells this of its columns."""
    made = invented(root, 1, [*features])
    path = made / "reports" / "drift_status.json"
    status = json.loads(path.read_text())
    for name, more in features.items():
        status["features"][name] |= more
    path.write_text(json.dumps(status))
    return made


def heat_of(root):
    found = json.loads(data.heat(board(root).view))
    shape = len(found["names"]), len(found["ends"])
    cells = np.frombuffer(base64.b64decode(found["cells"]), np.uint8).reshape(shape)
    return found, dict(zip(found["names"], cells.tolist(), strict=True))


def test_the_heat_map_calls_drifted_what_the_look_does_however_near_the_threshold(tmp_path):
    audit = ChainAudit(bare(tmp_path / "p") / "reports" / "decisions.jsonl")
    distances = {"barely": [0.2014, 0.2], "not quite": [0.2, 0.2], "by evidently": [0.05, 0.3]}
    distances["whatever its distance"] = [0.9, 0.2]
    look = {"state": "drift", "hurts": "no", "reason": "", "distances": distances}
    audit.write("monitored", START, look | {"drifted": ["barely", "by evidently"]})
    found, cells = heat_of(tmp_path / "p")
    assert {name: cell[0] > found["steps"] for name, cell in cells.items()} == {
        "barely": True, "not quite": False, "by evidently": True, "whatever its distance": False,
    }  # fmt: skip
    assert max(cell[0] for cell in cells.values()) < found["broken"]


def test_a_look_that_is_chosen_says_drifted_where_it_did_and_not_by_distance(tmp_path, visit):
    audit = ChainAudit(bare(tmp_path / "p") / "reports" / "decisions.jsonl")
    look = {"state": "drift", "hurts": "no", "reason": "", "distances": {"a": [0.1, 0.3]}}
    audit.write("monitored", START, look | {"drifted": ["a"]})
    text = visit(tmp_path / "p").get("/part/column", params={"name": "a", "look": 1}).text
    assert ", drifted" in text
    look = {**look, "window": {"start": START.isoformat(), "end": "2030-01-01T00:00:00+00:00"}}
    audit.write("monitored", START, look | {"distances": {"a": [0.4, 1.2]}})
    text = visit(tmp_path / "p").get("/part/column", params={"name": "a", "look": 2}).text
    assert "none could be found" in text


def test_a_broken_column_stands_first_even_if_it_was_never_compared(tmp_path):
    broken = {"quality": [{"check": "type", "message": "No numbers.", "severity": "block"}]}
    root = told(tmp_path / "p", a={}, z={"distance": None, "threshold": None, **broken})
    found, cells = heat_of(root)
    assert found["names"] == ["z", "a"]
    assert cells["z"] == [found["broken"]]
    assert cells["a"][0] < found["broken"]


@pytest.mark.parametrize(
    ("detector", "said"), [("homeostat", "No drift of this column"), ("evidently", "did not drift")]
)
def test_where_no_distance_can_pass_its_threshold_that_is_said(tmp_path, detector, said):
    numbers = {"distance": 0.4, "threshold": 1.3, "drifted": False}
    view = board(told(tmp_path / "p", a=numbers)).view
    assert said in " ".join(story.about(view, "a", Monitor(detector=detector)))


def test_what_the_loop_did_is_told_in_words_and_found_by_them(tmp_path, visit):
    client = visit(invented(tmp_path / "p", 2, ["a"]))
    text = client.get("/part/decisions", params={"q": "kept nothing asks"}).text
    assert "2 of 2" in text
    assert ">none<" not in text
    turns = json.loads(client.get("/data/performance").text)["turns"]
    assert turns[0][2] == "kept the model (nothing asks for more)"


def test_the_first_release_is_beside_a_constant_and_no_champion(root, visit):
    first = visit(root).get("/part/releases").text.rpartition("<li")[2]
    assert "constant" in first
    assert "champion" not in first


def tracking(root, folder, **told):
    """The project with the tracking switched on."""
    mine = shutil.copytree(root, folder)
    settings = mine / "homeostat.toml"
    lines = "".join(f'{name} = "{value}"\n' for name, value in told.items())
    text = settings.read_text().replace("[tracking]\nenabled = false\n", f"[tracking]\n{lines}")
    settings.write_text(text)
    return mine


def test_mlflow_is_named_for_turns_that_have_a_run_there(root, visit, tmp_path):
    client, turns = visit(tracking(root, tmp_path / "p")), board(root).view.turns
    named = {
        turn.seq: "homeostat.as_of" in client.get(f"/part/decision?seq={turn.seq}").text
        for turn in turns
    }
    assert named == {
        turn.seq: turn.action == "first" or any(kind == "gate" for kind, _ in turn.came)
        for turn in turns
    }
    assert {*named.values()} == {True, False}
    command = "mlflow ui --backend-store-uri sqlite:///.homeostat/mlflow.db"
    assert command in client.get(f"/part/decision?seq={turns[0].seq}").text


@pytest.mark.parametrize(
    ("uri", "viewer", "admin"),
    [
        ("https://mlflow.example/x", "https://mlflow.example/x", "https://mlflow.example/x"),
        ("https://ann:secret@mlflow.example:5000/x?secret=1#secret", "",
         "https://mlflow.example:5000/x"),
        ("https://ann:sec/ret@mlflow.example", "", ""),
        ("postgresql://ann:secret@db/runs", "",
         "mlflow ui --backend-store-uri postgresql://db/runs"),
        ("sqlite:////runs.db?secret=1", "", "mlflow ui --backend-store-uri sqlite:////runs.db"),
        ("databricks", "databricks", "databricks"),
    ],
)  # fmt: skip
def test_no_password_of_mlflows_address_is_shown(uri, viewer, admin):
    for is_admin, expected in ((False, viewer), (True, admin)):
        found = tracked.store(Tracking(uri=uri), admin=is_admin)
        assert (found.link or found.command or found.said) == expected


def test_a_link_to_mlflow_tells_it_nothing(root, visit, tmp_path):
    mine = tracking(root, tmp_path / "p", uri="https://mlflow.example")
    text = visit(mine).get(f"/part/decision?seq={board(mine).view.turns[0].seq}").text
    assert '<a href="https://mlflow.example" target="_blank" rel="noreferrer noopener">' in text
