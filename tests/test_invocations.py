"""MLflow's protocol: what its own client sends is answered, and journalled as any prediction."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fixtures import ROW, objects, promote, serving

from homeostat.errors import RowError
from homeostat.journal import FileJournal
from homeostat.web import invocations

NAMES = ("a", "b", "c")
ROWS = [{"a": 1.5, "b": "x", "c": True}, {"a": None, "b": "", "c": None}]
LISTS = [[1.5, "x", True], [None, "", None]]
COLUMNS = {"a": [1.5, None], "b": ["x", ""], "c": [True, None]}
SAME = [
    {"dataframe_split": {"columns": list(NAMES), "data": LISTS}},
    {"dataframe_split": {"columns": list(NAMES), "index": [7, 9], "data": LISTS}},
    {"dataframe_records": ROWS},
    {"instances": ROWS},
    {"instances": LISTS},
    {"instances": COLUMNS},
    {"inputs": ROWS},
    {"inputs": LISTS},
    {"inputs": COLUMNS},
    {"inputs": ROWS, "params": {}},
    {"inputs": ROWS, "params": None},
]


def read(body, max_rows=100):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return invocations.rows(text, NAMES, max_rows=max_rows)


def refused(body, **options):
    with pytest.raises(RowError) as caught:
        read(body, **options)
    return caught.value


@pytest.mark.parametrize("body", SAME, ids=json.dumps)
def test_the_same_rows_are_the_same_in_every_form(body):
    assert read(body) == ROWS


def test_the_columns_of_a_split_frame_name_its_values_in_any_order():
    split = {"columns": ["c", "prediction_id", "a", "b"], "data": [[False, "id", 1, "y"]]}
    assert read({"dataframe_split": split}) == [
        {"c": False, "prediction_id": "id", "a": 1, "b": "y"}
    ]


def test_nan_is_null_and_infinity_is_left_for_the_schema_to_refuse():
    (row,) = read(b'{"inputs": [[NaN, "NaN", Infinity]]}')
    assert row == {"a": None, "b": "NaN", "c": math.inf}


STRANGE = [
    b"[]",
    b"3",
    b"null",
    {},
    {"params": {}},
    {"rows": []},
    {"inputs": ROWS, "instances": ROWS},
    {"inputs": ROWS, "more": 1},
    {"inputs": ROWS, "params": {"temperature": 1}},
    {"inputs": 3},
    {"inputs": [1, 2, 3]},
    {"inputs": [[1, "x"]]},
    {"inputs": [[1, "x", True, 2]]},
    {"inputs": [[1, "x", True], {"a": 1}]},
    {"inputs": {"a": [1], "b": ["x", "y"]}},
    {"inputs": {"a": 1, "b": "x"}},
    {"dataframe_records": {"a": [1]}},
    {"dataframe_split": []},
    {"dataframe_split": {"data": LISTS}},
    {"dataframe_split": {"columns": NAMES}},
    {"dataframe_split": {"columns": [*NAMES], "data": LISTS, "dtype": 1}},
    {"dataframe_split": {"columns": ["a", "a", "b"], "data": LISTS}},
    {"dataframe_split": {"columns": ["a", 1, "b"], "data": LISTS}},
    {"dataframe_split": {"columns": [["a"], "b", "c"], "data": LISTS}},
    {"dataframe_split": {"columns": [*NAMES], "data": {"0": [1]}}},
    {"dataframe_split": {"columns": [*NAMES], "data": [[1]]}},
]


@pytest.mark.parametrize("body", STRANGE, ids=repr)
def test_what_is_not_of_the_protocol_is_refused(body):
    assert refused(body).code == "bad_invocation"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"\xff{}", "not_json"),
        (b'{"inputs": [], "inputs": []}', "duplicate_key"),
        (b'{"inputs": ' + b"[" * 20_000, "not_json"),
        ({"inputs": []}, "no_rows"),
        ({"inputs": {}}, "no_rows"),
        ({"inputs": {"a": []}}, "no_rows"),
        ({"dataframe_split": {"columns": [], "data": []}}, "no_rows"),
        ({"dataframe_records": [{"a": 1}, 3]}, "not_an_object"),
    ],
)
def test_a_body_that_holds_no_rows_is_refused_with_the_usual_codes(body, code):
    assert refused(body).code == code


@pytest.mark.parametrize("body", SAME, ids=json.dumps)
def test_too_many_rows_are_refused_in_every_form(body):
    assert refused(body, max_rows=1).code == "too_many_rows"


VALUES = st.one_of(st.none(), st.booleans(), st.floats(allow_nan=False), st.text(max_size=5))


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, VALUES)), min_size=1, max_size=5))
def test_any_rows_are_read_alike_from_every_form(rows):
    lists = [[row[name] for name in NAMES] for row in rows]
    columns = {name: [row[name] for row in rows] for name in NAMES}
    split = {"columns": NAMES, "data": lists}
    for body in ({"dataframe_split": split}, {"inputs": lists}, {"instances": columns}):
        assert read(body) == rows


JSON = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)
FORMS = st.sampled_from([*invocations.FORMATS, "params", "x"])


@given(st.dictionaries(FORMS, JSON | st.fixed_dictionaries({"columns": JSON, "data": JSON})))
def test_whatever_is_sent_is_rows_or_a_refusal(body):
    try:
        rows = read(body)
    except RowError:
        return
    assert rows
    assert all(isinstance(row, dict) for row in rows)


# --- MLflow's own client ---


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    promote(root, objects())
    with serving(root) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    scoring = pytest.importorskip("mlflow.pyfunc.scoring_server.client")
    host, port = server.url.removeprefix("http://").split(":")
    made = scoring.ScoringServerClient(host, port)
    made.wait_server_ready(timeout=30)
    return made


@pytest.fixture(scope="module")
def frame():
    return pd.DataFrame(
        {
            "amount": [0.5, -1.25, float("nan"), 3.0],
            "gap": [None, 2.0, 0.1, float("nan")],
            "city": ["Oslo", "Bergen", "Oslo", "nowhere"],
            "member": [True, False, None, True],
        }
    )


def answered(server, frame):
    """What `/predict` says of the rows of a frame."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    with server.client() as http:
        answer = http.post("/predict", json=rows)
    assert answer.status_code == 200, answer.text
    return [each["prediction"] for each in answer.json()]


def test_a_frame_is_answered_as_predict_answers_its_rows(server, client, frame):
    told = client.invoke(frame)
    assert told.get_predictions()[0].tolist() == answered(server, frame)
    assert told.get_predictions("ndarray").shape == (4,)


def test_whole_numbers_and_other_orders_of_columns_are_taken(server, client, frame):
    whole = frame.assign(amount=[1, 2, 3, 4], gap=[4, 3, 2, 1])
    mixed = client.invoke(whole[["member", "city", "gap", "amount"]])
    assert mixed["predictions"] == client.invoke(whole)["predictions"] == answered(server, whole)


def test_lists_and_arrays_are_taken_in_the_order_of_the_features(server, client, frame):
    lists = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    wanted = answered(server, frame)
    assert client.invoke(lists)["predictions"] == wanted
    assert client.invoke(np.array(lists, dtype=object))["predictions"] == wanted
    assert client.invoke(json.dumps({"instances": lists}))["predictions"] == wanted


def test_each_prediction_is_journalled_with_its_id_and_can_be_labelled(server, client, frame):
    ids = [f"mlflow-{i}" for i in range(4)]
    told = client.invoke(frame.assign(prediction_id=ids))
    assert told["prediction_ids"] == ids
    known = FileJournal(server.root / "data" / "logs").known(ids)
    assert sorted(known.column("prediction_id").to_pylist()) == ids
    assert set(known.column("source").to_pylist()) == {"serve"}
    again = client.invoke(frame.assign(prediction_id=ids))
    assert again == told
    with server.client() as http:
        labels = [{"prediction_id": name, "label": 1} for name in told["prediction_ids"]]
        assert http.post("/feedback", json=labels).json()["accepted"] == 4


@pytest.mark.parametrize(
    ("data", "params", "code"),
    [
        (pd.DataFrame({"amount": [1.0]}), None, "missing_field"),
        (pd.DataFrame([{**ROW, "more": 1}]), None, "unknown_field"),
        (pd.DataFrame([{**ROW, "amount": "much"}]), None, "wrong_type"),
        (pd.DataFrame([{**ROW, "amount": float("inf")}]), None, "not_finite"),
        (pd.DataFrame([ROW]), {"temperature": 1}, "bad_invocation"),
    ],
)
def test_a_refusal_is_an_exception_of_the_client_that_says_why(client, data, params, code):
    with pytest.raises(Exception, match=f"error code 422.*{code}"):
        client.invoke(data, params=params)


def test_the_client_finds_the_server_alive_and_hears_its_version(server, client):
    client.ping()
    assert client.get_version().startswith("homeostat ")
    with server.client() as http:
        assert http.get("/health").status_code == 200


def test_before_the_first_release_the_server_is_not_well(tmp_path):
    with serving(tmp_path) as running, running.client() as http:
        assert http.get("/ping").status_code == 503
        body = {"dataframe_records": [ROW]}
        assert http.post("/invocations", json=body).json()["error"]["code"] == "no_champion"
