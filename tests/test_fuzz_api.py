"""Whatever bytes come, the service answers in its own shape, with no 500 and no value in it.

Schemathesis sends what the OpenAPI document allows and forbids; since that is always valid JSON, a
corpus of raw bytes and their mutations follows.
"""

from __future__ import annotations

import gzip
import http.client
import json
import socket

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving_fixtures import ROW, objects, promote, serving

LIMIT = 100_000  # bytes of a body
SECRET = "5150777"
SETTINGS = f'[serving]\nmax_body = {LIMIT}\nmax_rows = 1000\nmax_skew = "none"\n'
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def fixed(examples: int) -> settings:
    """The same examples on every machine, and none of the checks that a busy one fails."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


PREDICT = '{"amount": @, "gap": null, "city": "Oslo", "member": true}'
TEMPLATES = {
    "/predict": (
        PREDICT,
        f"[{PREDICT}]",
        '{"amount": 0.5, "gap": null, "city": @, "member": true}',
        '{"amount": 0.5, "gap": null, "city": "Oslo", "member": true, "prediction_id": @}',
        '{"amount": 0.5, "gap": null, "city": "Oslo", "member": true, "occurred_at": @}',
    ),
    "/feedback": (
        '{"prediction_id": "a", "label": @}',
        '[{"prediction_id": @, "label": 1}]',
        '{"prediction_id": "a", "label": 1, "labelled_at": @}',
    ),
    "/invocations": (
        '{"dataframe_split": {"columns": ["amount", "gap", "city", "member"],'
        ' "data": [[@, null, "Oslo", true]]}}',
        f'{{"dataframe_records": [{PREDICT}]}}',
        f'{{"instances": [{PREDICT}]}}',
        '{"inputs": {"amount": [@], "gap": [null], "city": ["Oslo"], "member": [true]}}',
        '{"dataframe_split": @}',
        '{"instances": @, "params": {}}',
    ),
}
PATHS = list(TEMPLATES)
BAD_VALUES = {
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "a number above the range": b"1e999",
    "a number below the range": b"-1e999",
    "an escaped lone surrogate": rb'"5150777\ud800"',
    "an escaped lone low surrogate": rb'"\udfff5150777"',
    "a raw lone surrogate": b'"5150777\xed\xa0\x80"',
    "an integer of 5,000 digits": b"5150777" * 715,
    "a negative integer of 5,000 digits": b"-" + b"5150777" * 715,
    "a fraction of 5,000 digits, too large": b"5150777" * 715 + b".5",
    "a nest of arrays": b"[" * 20_000 + b"]" * 20_000,
    "a nest of objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "a nest that is never closed": b"[" * 20_000,
    "bytes that are not UTF-8": b'"5150777\xff\xfe"',
    "an overlong encoding": b'"5150777\xc0\xaf"',
    "a raw NUL": b'"5150777\x00"',
    "a raw control character": b'"5150777\x1b[2J"',
    "an object": b'{"5150777": 5150777}',
    "an array": b'["5150777", 5150777]',
    "two values": b"5150777 5150777",
    "a leading zero": b"05150777",
    "a hexadecimal number": b"0x5150777",
    "a bare word": b"x5150777",
    "single quotes": b"'5150777'",
    "a comment": b"1 /* 5150777 */",
    "a bad escape": rb'"\x5150777"',
    "nothing": b"",
}
BODIES = {
    "no bytes": b"",
    "white space": b" \t\r\n ",
    "a byte order mark and no more": b"\xef\xbb\xbf",
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(ROW).encode(),
    "UTF-16": json.dumps(ROW).encode("utf-16"),
    "UTF-16 without a mark": json.dumps(ROW).encode("utf-16-be"),
    "UTF-32": json.dumps(ROW).encode("utf-32"),
    "NUL bytes": b"\x00" * 1000,
    "gzip": gzip.compress(json.dumps(ROW).encode()),
    "form data": b"amount=0.5&city=5150777",
    "null": b"null",
    "true": b"true",
    "a number": b"5150777",
    "a text": b'"5150777"',
    "an empty array": b"[]",
    "an array of arrays": b"[[5150777]]",
    "an array of null": b"[null]",
    "an empty object": b"{}",
    "two objects": b"{}{}",
    "a trailing comma": b'{"amount": 1,}',
    "a key twice": b'{"amount": 5150777, "amount": 1, "gap": 1, "city": "a", "member": true}',
    "a key twice, once escaped": rb'{"amount": 5150777, "\u0061mount": 1, "gap": 1, "city": "a",'
    b' "member": true}',
    "a huge key": b'{"' + b"k" * 90_000 + b'": 5150777}',
    "a key that is a lone surrogate": rb'{"\ud800": 5150777}',
    "a key with NUL": rb'{"am\u0000ount": 5150777}',
    "thousands of keys": json.dumps({f"k{n}": 5150777 for n in range(4_000)}).encode(),
    "thousands of rows": b"[" + b"{}," * 5_000 + b"{}]",
    "a prototype": b'{"__proto__": {"5150777": 1}, "constructor": 5150777}',
    "nested arrays": b"[" * 20_000 + b"]" * 20_000,
    "nested objects, not closed": b'{"a":' * 15_000,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    (root / "homeostat.toml").write_text(SETTINGS)
    promote(root, objects(seed=0))
    with serving(root) as running:
        yield running
        assert "internal error" not in running.log
        assert "Traceback" not in running.log


@pytest.fixture
def connection(server):
    made = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=60)
    yield made
    made.request("GET", "/health/ready")
    assert made.getresponse().read().startswith(b'{"status":"ready"')
    made.close()


def send(connection, path, body, content_type="application/json"):
    headers = {} if content_type is None else {"Content-Type": content_type}
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def told(status, headers, text) -> dict:
    """The error of an answer that refuses, in the one shape and of a decent length."""
    assert 400 <= status < 500, (status, text[:200])
    assert headers["content-type"] == "application/json"
    assert len(text) < 1_000
    answer = json.loads(text)
    assert set(answer) == {"error"}
    error = answer["error"]
    assert {"code", "message"} <= set(error) <= {"code", "message", "field", "row", "hint"}
    assert isinstance(error["code"], str)
    assert isinstance(error["message"], str)
    assert isinstance(error.get("row", 0), int)
    # A name that no schema has may be told; a value may not.
    assert SECRET not in error["message"].replace(error.get("field", "-"), "")
    return error


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_value_that_is_none_is_refused_wherever_it_stands(connection, path, value):
    if path == "/invocations" and value == b"NaN":
        pytest.skip("MLflow's own client writes NaN for a missing value, so it is null there")
    for template in TEMPLATES[path]:
        told(*send(connection, path, template.encode().replace(b"@", value)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_request_is_refused(connection, path, body):
    told(*send(connection, path, body))


@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_ends_too_early_is_refused_at_every_byte(connection, path):
    body = TEMPLATES[path][0].replace("@", "1").encode()
    assert send(connection, path, body)[0] == 200
    for end in range(len(body)):
        told(*send(connection, path, body[:end]))


@pytest.mark.parametrize("path", ["/predict", "/invocations"])
def test_an_odd_but_allowed_value_is_answered(connection, path):
    """What is JSON, and in range, is data: the smallest number, NUL as an escape, an emoji."""
    template = TEMPLATES[path][0].encode()
    for value in (b"5e-324", b"-0.0", b"1e-999", b"1E+2", b"123456789012345678", b"-1.7e308"):
        status, _, text = send(connection, path, template.replace(b"@", value))
        assert status == 200, (value, text)
    template = '[{"amount": 0.5, "gap": null, "city": @, "member": true}]'
    for value in (rb'"\u0000"', rb'"\ud83d\ude00"', '"\u2028\ufeff\U0001f600"'.encode(), b'""'):
        status, _, text = send(connection, "/predict", template.encode().replace(b"@", value))
        assert status == 200, (value, text)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/jsonx",
        "application/json, text/plain",
        ";;;",
        "é".encode("latin-1"),
    ],
    ids=repr,
)
def test_another_content_type_is_refused(connection, path, content_type):
    body = TEMPLATES[path][0].replace("@", "1").encode()
    assert told(*send(connection, path, body, content_type))["code"] == "unsupported_media_type"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("chunk", [1_000, 60_000])
def test_a_chunked_body_above_the_limit_is_refused_before_its_end(server, path, chunk):
    """Twice the limit is on its way, and no last chunk ever comes."""
    host, port = "127.0.0.1", int(server.url.rpartition(":")[2])
    with socket.create_connection((host, port), timeout=60) as raw:
        raw.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        try:
            for _ in range(2 * LIMIT // chunk):
                raw.sendall(b"%x\r\n%b\r\n" % (chunk, b" " * chunk))
        except OSError:
            pass  # the server has answered and hung up
        response = http.client.HTTPResponse(raw)
        response.begin()
        assert response.status == 413
        assert told(413, response.headers, response.read())["code"] == "too_large"


@pytest.mark.parametrize("path", PATHS)
def test_a_declared_length_above_the_limit_is_refused_without_the_body(server, path):
    with socket.create_connection(
        ("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60
    ) as raw:
        raw.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {LIMIT + 1}\r\n\r\n".encode()
        )
        response = http.client.HTTPResponse(raw)
        response.begin()
        assert told(response.status, response.headers, response.read())["code"] == "too_large"


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(server, connection, path):
    for length in (1, 40, 5_000):
        with socket.create_connection(
            ("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60
        ) as raw:
            raw.sendall(
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {length}\r\n\r\n".encode()
                + b"{" * (length // 2)
            )
    assert send(connection, path, TEMPLATES[path][0].replace("@", "1").encode())[0] == 200


@pytest.mark.parametrize("path", PATHS)
def test_no_mutation_of_a_good_body_is_a_server_error(server, connection, path):
    good = [text.replace("@", value) for text in TEMPLATES[path] for value in ('"a"', "0.5")]

    @fixed(150)
    @given(
        st.sampled_from(good),
        st.lists(
            st.tuples(st.integers(0, 10**6), st.binary(max_size=4), st.integers(0, 3)),
            min_size=1,
            max_size=4,
        ),
    )
    def mutate(text, edits):
        body = text.encode()
        for place, more, gone in edits:
            at = place % (len(body) + 1)
            body = body[:at] + more + body[at + gone :]
        answer = send(connection, path, body)
        if answer[0] != 200:
            told(*answer)

    mutate()


@pytest.fixture(scope="module")
def document(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=str)
def test_every_operation_answers_as_the_document_says(document, mode):
    operations = [result.ok() for result in document.get_all_operations()]
    assert {"/predict", "/feedback", "/model"} <= {operation.path for operation in operations}
    if mode is GenerationMode.NEGATIVE:  # what has no body cannot be wrong
        operations = [operation for operation in operations if operation.body]
    for operation in operations:

        @fixed(60 if operation.body else 5)
        @given(operation.as_strategy(generation_mode=mode))
        def run(case):
            response = case.call_and_validate(checks=CHECKS)
            if response.status_code >= 400:
                assert set(response.json()) == {"error"}

        run()
