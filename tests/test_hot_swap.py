"""A release follows another under full load: no request fails, and each answer was computed by the
model that it names.
"""

from __future__ import annotations

import io
import pickle
import threading
from dataclasses import dataclass, field

import cloudpickle
import httpx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_findings import plain_rows
from fault_fixtures import Nursery, row_of
from scipy import special
from serving_fixtures import objects, promote, until

from homeostat import twin
from homeostat.blend import Blend

ROWS = [{**row_of(f"swap-{n}"), "city": "Oslo"} for n in range(4)]

NEAR = 1e-6  # by which an answer may differ from the model's own


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    home = Nursery(tmp_path_factory.mktemp("nursery"))
    yield home
    home.close()


@pytest.fixture(scope="module")
def pair():
    """A model, and a blend of two that its twin answers for: every row has another answer."""
    parts = [objects(seed=seed)["model"] for seed in (1, 2)]
    blend = objects(seed=1, model=Blend(tuple(parts), "binary"))
    made = twin.make(blend["model"], blend["schema"], blend["golden"], golden(blend))
    assert made.content, made.told
    return objects(seed=0), {**blend, "twin": made.content}


def golden(made: dict[str, bytes]) -> pa.Table:
    return pq.read_table(io.BytesIO(made["golden"]))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "homeostat.toml").write_text('[serving]\nwatch = "0.005s"\n')
    return tmp_path


@dataclass
class Load:
    """Clients that never pause: what they were answered, and what failed."""

    url: str
    clients: int = 4
    answers: list[tuple[int, str, float]] = field(default_factory=list)  # row, version, share
    ids: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(self.clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        """Every other client sends all rows as one array, which one model must answer."""
        try:
            with httpx.Client(base_url=self.url, timeout=60) as client:
                while not self._stop.is_set():
                    self._step(client, number)
        except httpx.HTTPError as error:
            self.failures.append(repr(error))

    def _step(self, client, number: int) -> None:
        rows = ROWS if number % 2 else [ROWS[number]]
        response = client.post("/predict", json=rows)
        if response.status_code != 200:
            self.failures.append(response.text)
            return
        answers = response.json()
        if len({answer["model_version"] for answer in answers}) > 1:
            self.failures.append("two models answered one request")
        for row, answer in zip(rows, answers, strict=True):
            told = ROWS.index(row), answer["model_version"], answer["probability"]
            self.answers.append(told)
            self.ids.add(answer["prediction_id"])

    def more(self, count: int) -> None:
        """Wait until `count` further rows were answered."""
        target = len(self.answers) + count
        until(lambda: len(self.answers) >= target or self.failures, what="answers")
        assert self.failures == []


def served(client, version: str) -> None:
    """Wait until the server names this release."""
    until(lambda: client.get("/model").json()["model_version"] == version, what=version)


def computed(made: dict[str, bytes]) -> list[float]:
    """What a model itself says of the rows, without any of the service."""
    model, rows = cloudpickle.loads(made["model"]), pd.DataFrame(ROWS).astype({"gap": float})
    parts = map(pickle.loads, model.members) if isinstance(model, Blend) else [model]
    shares = [part.predict_proba(rows)[:, 1] for part in parts]
    return special.expit(special.logit(shares).mean(axis=0)).tolist()


@pytest.mark.parametrize(
    "swaps", [30, pytest.param(1_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_each_answer_is_that_of_the_model_it_names_through_every_swap(nursery, root, pair, swaps):
    truth = [computed(made) for made in pair]
    assert min(abs(a - b) for a, b in zip(*truth, strict=True)) > 100 * NEAR
    version = promote(root, pair[0]).id
    side = {version: 0}
    child = nursery.start("serve", root)
    host, port = child.up()
    url = f"http://{host}:{port}"
    with Load(url) as load, httpx.Client(base_url=url, timeout=60) as client:
        for swap in range(1, swaps + 1):
            version = promote(root, pair[swap % 2]).id
            side[version] = swap % 2
            served(client, version)
            load.more(1)
    child.end()
    assert load.failures == []
    assert {version for _, version, _ in load.answers} == set(side)
    assert len(side) == swaps + 1
    assert all(abs(p - truth[side[v]][row]) < NEAR for row, v, p in load.answers)
    recorded = {row["prediction_id"]: row for row in plain_rows(root / "data" / "logs")}
    assert load.ids <= set(recorded)
    print(f"{swaps} swaps, {len(load.answers)} rows answered")


def test_an_artefact_that_does_not_answer_its_golden_rows_never_serves(nursery, root, pair):
    """Neither one whose model is another, nor one that cannot be loaded, and the next good one
    takes over.
    """
    good, other = pair
    version = promote(root, good).id
    child = nursery.start("serve", root)
    host, port = child.up()
    url = f"http://{host}:{port}"
    with Load(url) as load, httpx.Client(base_url=url, timeout=60) as client:
        for bad in ({**good, "golden": other["golden"]}, {**good, "model": b"no pickle"}):
            promote(root, bad)
            failure = until(lambda: client.get("/model").json()["failure"], what="the refusal")
            assert "no pickle" not in failure
            load.more(20)
            assert client.get("/model").json()["model_version"] == version
            assert client.get("/health/ready").status_code == 200
        assert {name for _, name, _ in load.answers} == {version}
        latest = promote(root, other).id
        served(client, latest)
        assert client.get("/model").json()["failure"] is None
        load.more(20)
    child.end()
    assert load.failures == []
    truth = {version: computed(good), latest: computed(other)}
    assert {name for _, name, _ in load.answers} == set(truth)
    assert all(abs(p - truth[name][row]) < NEAR for row, name, p in load.answers)
