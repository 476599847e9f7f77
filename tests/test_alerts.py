import json
import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from homeostat.alerts import NoAlerts, alerts
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
    alerts([url]).send("flights: promoted", "abc serves now.")
    assert [(message["title"], message["message"]) for message in told] == [
        ("flights: promoted", "abc serves now.")
    ]


def test_an_address_that_fails_keeps_nobody_from_being_told_and_no_secret_is_logged(
    receiver, closed, caplog
):
    caplog.set_level(logging.DEBUG)
    url, told = receiver
    alerts([closed, f"{url}/broken/t0ken", url]).send("title", "body")
    assert len(told) == 2
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
    quiet.send("title", "body")
