import json
import logging
import socket
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from homeostat.alerts import NoAlerts, alerts, standings, tell
from homeostat.audit import ChainAudit
from homeostat.entries import Sent
from homeostat.errors import SettingsError

# Apprise imports it, and tells about it on Python 3.11 and 3.12.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


@pytest.fixture
def receiver():
    """An address that answers 200, except 500 where its path says so, and what it was told."""
    told = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if "broken" in self.path else 200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"json://127.0.0.1:{server.server_port}", told
        server.shutdown()
        thread.join()


@pytest.fixture
def closed():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return f"json://user:s3cret@127.0.0.1:{port}/t0ken"


def test_people_are_told(receiver):
    url, told = receiver
    assert alerts([url]).send("flights: promoted", "abc serves now.") == Sent(1)
    assert [(message["title"], message["message"]) for message in told] == [
        ("flights: promoted", "abc serves now.")
    ]


def test_an_address_that_fails_keeps_nobody_from_being_told_and_no_secret_is_logged(
    receiver, closed, caplog
):
    caplog.set_level(logging.DEBUG)
    url, told = receiver
    sent = alerts([closed, f"{url}/broken/t0ken", url]).send("title", "body")
    assert len(told) == 2
    assert sent.taken == 1
    assert [problem.split(":")[0] for problem in sent.problems] == [
        "alerts.urls[0] (json)",
        "alerts.urls[1] (json)",
    ]
    assert "t0ken" not in str(sent)
    assert "alerts.urls[0] (json)" in caplog.text
    assert "alerts.urls[1] (json)" in caplog.text
    assert "alerts.urls[2]" not in caplog.text
    assert "s3cret" not in caplog.text
    assert "t0ken" not in caplog.text


def test_an_address_of_no_service_is_refused_by_its_number_alone():
    with pytest.raises(SettingsError, match=r"alerts\.urls\[1\] is no URL") as caught:
        alerts(["json://localhost", "nosuch://s3cret@host"])
    assert "s3cret" not in str(caught.value)


def test_without_addresses_nobody_is_told():
    quiet = alerts([])
    assert isinstance(quiet, NoAlerts)
    assert quiet.send("title", "body") == Sent(0)


# --- one message per change of state ---

NOW = datetime(2024, 3, 1, tzinfo=UTC)
RELEASE = "a" * 64


@pytest.fixture
def audit(tmp_path):
    return ChainAudit(tmp_path / "decisions.jsonl")


def look(state):
    return {"state": state, "reason": f"It is {state}."}


def decided(state, action="hold"):
    decision = {"action": action, "reason": f"So {action}."}
    return "decided", {"decision": decision, "evidence": state and look(state)}


FAILED = ("training_failed", {"reason": "no such column"})
SEAL = ("seal_failed", {"reason": "no space left"})
TRAINED = ("trained", {})
PROMOTED = ("promoted", {"release": RELEASE, "reason": "It is better."})


def turn(audit, told, url, *lines):
    """One turn that left these lines; what people were told in it."""
    for kind, body in lines:
        audit.write(kind, NOW, body)
    before = len(told)
    tell(alerts([url]) if url else NoAlerts(), audit, "rides", NOW)
    return [message["title"] for message in told[before:]]


def test_a_state_that_stays_is_told_once_and_again_when_it_is_well(receiver, audit):
    url, told = receiver
    assert turn(audit, told, url, decided("stable")) == []
    assert turn(audit, told, url, decided("drift"), FAILED) == [
        "rides: drift",
        "rides: training failed",
    ]
    assert told[-1]["message"] == "no such column"
    assert turn(audit, told, url, decided("drift"), FAILED) == []
    assert turn(audit, told, url, decided("stable"), TRAINED) == [
        "rides: stable",
        "rides: training works again",
    ]
    assert turn(audit, told, url, decided("stable")) == []


@pytest.mark.parametrize(
    ("ill", "well", "bad", "good"),
    [
        ([decided("stable"), SEAL], [decided("stable")], "could not be sealed", "sealed again"),
        ([decided("broken_data", "stop_and_call")], [decided("stable")], "human", "stable"),
        ([decided("stable", "stop_and_call")], [decided("stable")], "human", "stable"),
        ([decided(None, "stop_and_call")], [decided("stable")], "human", "stable"),
        (
            [("not_promoted", {"release": RELEASE, "reason": "no key"})],
            [("promoted", {"release": RELEASE})],
            "not promoted",
            "promotions work again",
        ),
    ],
)
def test_every_subject_that_can_fail_is_told_of_once_and_when_it_is_well_again(
    receiver, audit, ill, well, bad, good
):
    url, told = receiver
    assert sum(bad in title for title in turn(audit, told, url, *ill)) == 1
    assert turn(audit, told, url, *ill) == []
    assert sum(good in title for title in turn(audit, told, url, *well)) == 1
    assert turn(audit, told, url, *well) == []


def test_broken_data_is_one_message_with_the_reason_why_a_human_is_called(receiver, audit):
    url, told = receiver
    assert turn(audit, told, url, decided("broken_data", "stop_and_call")) == [
        "rides: a human is needed"
    ]
    assert told[-1]["message"] == "So stop_and_call."
    assert turn(audit, told, url, ("monitored", look("broken_data"))) == []
    assert turn(audit, told, url, decided("insufficient_data")) == ["rides: insufficient_data"]


def test_broken_data_that_was_told_by_a_look_alone_is_not_told_again_by_the_call(receiver, audit):
    url, told = receiver
    assert turn(audit, told, url, ("monitored", look("broken_data"))) == ["rides: broken_data"]
    assert turn(audit, told, url, decided("broken_data", "stop_and_call")) == []
    assert turn(audit, told, url, decided("stable")) == ["rides: stable"]


def test_what_an_earlier_version_told_of_a_human_is_told_no_more(receiver, audit):
    url, told = receiver
    for subject, state in (("monitor", "broken_data"), ("human", "needed")):
        line = {"subject": subject, "state": state, "taken": 1, "problems": []}
        audit.write("told", NOW, line)
    assert turn(audit, told, url, decided("broken_data", "stop_and_call")) == []
    assert turn(audit, told, url, decided("stable")) == ["rides: stable"]


def test_each_release_that_serves_is_told_of_once(receiver, audit):
    url, told = receiver
    assert turn(audit, told, url, PROMOTED) == ["rides: promoted"]
    assert told[-1]["message"] == f"{RELEASE[:12]} serves now. It is better."
    assert turn(audit, told, url, decided("stable")) == []
    assert turn(audit, told, url, ("rolled_back", {"release": "b" * 64})) == ["rides: rolled back"]
    assert turn(audit, told, url, ("recovered", {"release": "b" * 64})) == []


def test_what_was_told_is_in_the_chain_so_that_a_new_process_does_not_tell_it_again(
    receiver, audit, tmp_path
):
    url, told = receiver
    turn(audit, told, url, decided("drift"))
    line = audit.lines()[-1]
    assert (line["kind"], line["body"]) == (
        "told",
        {"subject": "monitor", "state": "drift", "taken": 1, "problems": []},
    )
    again = ChainAudit(tmp_path / "decisions.jsonl")
    assert turn(again, told, url, decided("drift")) == []
    assert again.verify() == 3


def test_a_message_that_nobody_took_is_on_record_without_the_address_and_tried_again(
    receiver, closed, audit, caplog
):
    caplog.set_level(logging.DEBUG)
    url, told = receiver
    turn(audit, told, closed, decided("drift"))
    body = audit.lines()[-1]["body"]
    assert (body["taken"], len(body["problems"])) == (0, 1)
    assert "s3cret" not in str(audit.lines()) + caplog.text
    assert "t0ken" not in str(audit.lines()) + caplog.text
    assert turn(audit, told, url, decided("drift")) == ["rides: drift"]
    assert turn(audit, told, url, decided("drift")) == []


def test_without_addresses_the_chain_says_nothing_and_the_first_one_hears_how_things_stand(
    receiver, audit
):
    url, told = receiver
    turn(audit, told, None, PROMOTED, decided("drift"))
    assert [line["kind"] for line in audit.lines()] == ["promoted", "decided"]
    assert turn(audit, told, url) == ["rides: promoted", "rides: drift"]


def test_an_alert_or_a_chain_that_breaks_fails_no_turn(audit, caplog):
    class Breaking:
        def send(self, title, body):
            raise RuntimeError("s3cret")

    audit.write(*decided("drift")[:1], NOW, decided("drift")[1])
    tell(Breaking(), audit, "rides", NOW)
    assert "People could not be told" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_turn_without_a_look_leaves_what_is_known_of_the_monitor(audit):
    for kind, body in (decided("drift"), decided(None)):
        audit.write(kind, NOW, body)
    assert standings(audit.lines())["monitor"].state == "drift"
