"""A replay: what is compared, what may be known when, and what the table says of it."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special, stats
from sklearn.metrics import log_loss

import homeostat
import homeostat.replay  # the module, which must not hide the function
from homeostat import cli, settings
from homeostat.blend import Elder
from homeostat.errors import HomeostatError, ProjectError, SchemaError, TrainingError
from homeostat.memory import MemoryJournal
from homeostat.records import Candidate, Release, TrainingRows
from homeostat.replay.learner import PolicyTrainer, Shared
from homeostat.replay.source import Columns, journalled, source
from homeostat.testing import START, drifting_stream, label_rows, schema_of, served_rows

DAY = timedelta(days=1)
WEEK = 7 * DAY
TRAIN = """
from pathlib import Path
import numpy as np
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

def fit(frame):
    with Path("fits.txt").open("a") as file:
        file.write(f"{len(frame)}\\n")
    target = frame.pop("target")
"""
TREES = """
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["city"]),
        remainder="passthrough",
    )
    trees = HistGradientBoostingClassifier(max_iter=8, max_leaf_nodes=6, random_state=0)
    return make_pipeline(columns, trees).fit(frame, target)
"""
SABOTAGED = """
    columns = make_column_transformer(("passthrough", ["amount", "member"]))
    if len(frame) > 160:
        target = 1 - target
    return make_pipeline(columns, LogisticRegression()).fit(frame, target)
"""
NUMBERS = """
    return make_pipeline(
        make_column_transformer(("passthrough", ["amount", "gap"])), LinearRegression()
    ).fit(frame, target)
"""
SETTINGS = """
[labels]
delay = "7d"
[training]
min_rows = 100
[gate]
min_rows = 50
[decide]
growth = 0.1
budget = "none"
recalibrate = false
"""
ROW = [
    "policy",
    "metric",
    "value",
    "relative_gain",
    "gain_kept",
    "oracle_share",
    "retrains",
    "needless_retrains",
    "recalibrations",
    "promotions",
    "harmful_promotions",
    "total_regret",
    "cpu_seconds",
    "failed_trainings",
    "baseline",
]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Makes a project folder with this `fit`."""

    def make(fit):
        root = tmp_path_factory.mktemp("project")
        (root / "homeostat.toml").write_text(SETTINGS)
        script = root / "src" / "training" / "train.py"
        script.parent.mkdir(parents=True)
        script.write_text(TRAIN + fit)
        return root

    return make


def stream(rows=1_400, **options):
    return drifting_stream(rows, seed=5, length=98 * DAY, **options)


def replayed(frame, **options):
    return homeostat.replay(
        frame, **{"time": "occurred_at", "target": "target", "every": WEEK, **options}
    )


@pytest.fixture(scope="module")
def trees(project):
    return project(TREES)


POLICIES = ("never", "every:1", "every:4", "every:4+recalibrate", "homeostat", "oracle")


@pytest.fixture(scope="module")
def result(trees):
    return replayed(stream(), project=trees, policies=POLICIES)


@pytest.fixture(scope="module")
def by_name(result):
    return {row.policy: row for row in result.rows}


def by_hand(frame, project, steps, *, mapped=False):
    """Log loss of retraining each `steps` windows on all labelled rows, in plain pandas; `mapped`
    by a map of the four last windows whose labels had come when a window began.
    """
    script = {}
    exec((project / "src/training/train.py").read_text(), script)
    frame = frame.sort_values("occurred_at")
    numbers = frame.drop(columns=["occurred_at"])
    numbers["member"] = numbers["member"].astype(float)
    times, first = frame["occurred_at"], frame["occurred_at"].iloc[0]
    share = first + 0.2 * (times.iloc[-1] - first)
    begin = share.floor("D")
    found, model, cutoff = [], None, None
    for number in range(math.ceil((times.iloc[-1] - begin + timedelta(microseconds=1)) / WEEK)):
        now = begin + number * WEEK
        if number % steps == 0:
            cutoff = now - WEEK
            model = script["fit"](numbers[times < cutoff].copy())

        def answers(since, until, model=model):
            rows = numbers[(times >= since) & (times < until)]
            output = model.predict_proba(rows.drop(columns="target"))[:, 1] if len(rows) else []
            days = times[rows.index].dt.floor("D")
            return pd.DataFrame({"p": output, "y": rows["target"], "day": days})

        window = answers(now, now + WEEK)
        known = answers(max(cutoff, now - 5 * WEEK), now - WEEK)
        if mapped and len(known):
            window["p"] = map_by_hand(known, window["p"])
        found.append(window)
    both = pd.concat(found)
    return log_loss(both["y"], both["p"]), len(both)


def map_by_hand(known, asked):
    """Platt's map by a simplex, with 20/2 · ((scale − 1)² + shift²) as its penalty, times what a
    cluster-robust variance of the mean residual is of that of independent rows.
    """
    off = known["y"].astype(float) - known["p"]
    sums = (off - off.mean()).groupby(known["day"]).sum()
    spread = len(sums) / (len(sums) - 1) * (sums**2).sum() / len(off)
    penalty = 10 * max(1.0, spread / off.var(ddof=0))

    def score(theta, p):
        return special.expit(theta[0] * special.logit(p) + theta[1])

    def objective(theta):
        fit = log_loss(known["y"], score(theta, known["p"]), normalize=False, labels=[0, 1])
        return fit + penalty * ((theta[0] - 1) ** 2 + theta[1] ** 2)

    options = {"xatol": 1e-9, "fatol": 1e-12}
    found = optimize.minimize(objective, [1, 0], method="Nelder-Mead", options=options)
    return score(found.x, asked)


@pytest.mark.parametrize(("policy", "steps"), [("never", 99), ("every:1", 1), ("every:4", 4)])
def test_a_schedule_comes_to_what_plain_pandas_comes_to(
    result, by_name, trees, policy, steps, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    value, rows = by_hand(stream(), trees, steps)
    assert by_name[policy].value == pytest.approx(value, rel=1e-9)
    assert result.compared == rows


def test_a_recalibrated_schedule_comes_to_what_maps_by_hand_come_to(
    by_name, trees, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    value, _ = by_hand(stream(), trees, 4, mapped=True)
    row = by_name["every:4+recalibrate"]
    assert row.value == pytest.approx(value, rel=1e-7)
    assert row.value != by_name["every:4"].value
    assert (row.retrains, row.recalibrations) == (2, 9)
    assert row.cpu_seconds == by_name["every:4"].cpu_seconds


def test_the_oracle_retrains_no_more_than_homeostat_and_is_what_shares_refer_to(result, by_name):
    best, ours = by_name["oracle"], by_name["homeostat"]
    assert best.retrains <= ours.retrains
    assert best.oracle_share == 1
    never = by_name["never"]
    assert ours.oracle_share == pytest.approx(
        (never.value - ours.value) / (never.value - best.value)
    )
    assert any("as many as homeostat made" in line for line in result.said)


def test_with_more_retrains_the_oracle_beats_every_recalibrated_schedule(trees):
    names = ("every:2+recalibrate", "every:3+recalibrate", "oracle:0", "oracle:9")
    found = replayed(stream(), project=trees, policies=names, start=0.4)
    rows = {row.policy: row for row in found.rows}
    assert rows["oracle:0"].retrains == 0
    assert rows["oracle:9"].value < rows["oracle:0"].value
    for name in names[:2]:
        assert rows["oracle:9"].value <= rows[name].value


def test_policies_are_counted_and_compared_with_never(result, by_name):
    never, weekly, homeostatic = (by_name[name] for name in ("never", "every:1", "homeostat"))
    assert (never.retrains, never.promotions, never.cpu_seconds) == (0, 0, 0)
    assert weekly.retrains == weekly.promotions == 11
    assert by_name["every:4"].promotions == 2
    marks = next(curve.marks for curve in result.curves if curve.policy == "homeostat")
    promoted = [mark.kind for mark in marks if mark.promoted]
    assert homeostatic.promotions == len(promoted) >= 1
    assert homeostatic.recalibrations == promoted.count("recalibrate")
    assert promoted.count("retrain") <= homeostatic.retrains < 6
    assert homeostatic.value < never.value
    assert homeostatic.relative_gain == pytest.approx(1 - homeostatic.value / never.value)
    assert weekly.cpu_seconds > homeostatic.cpu_seconds > 0
    kept = (never.value - homeostatic.value) / (never.value - weekly.value)
    assert homeostatic.gain_kept == pytest.approx(kept)
    assert (never.gain_kept, weekly.gain_kept) == (0, 1)


def test_maps_that_a_rule_releases_are_counted_apart_from_its_models(trees):
    found = replayed(stream(), project=trees, policies=("homeostat:recalibrate=true",))
    row, marks = found.rows[0], found.curves[0].marks
    promoted = [mark.kind for mark in marks if mark.promoted]
    assert row.recalibrations == promoted.count("recalibrate") >= 1
    assert row.promotions == len(promoted)
    assert row.retrains == sum(mark.kind == "retrain" for mark in marks)


def test_policies_share_the_fits_of_equal_frames(project):
    """Two loops and three schedules: a frame is fitted once for all of them."""
    root = project(TREES)
    again = "homeostat:growth=0.1"
    found = replayed(
        stream(), project=root, policies=("every:1", "every:2", "homeostat", again), start=0.5
    )
    fits = Counter((root / "fits.txt").read_text().split())
    assert set(fits.values()) == {1}
    rows = {row.policy: row for row in found.rows}
    assert rows["homeostat"].retrains
    assert rows[again].value == rows["homeostat"].value
    assert rows[again].cpu_seconds == rows["homeostat"].cpu_seconds


def test_a_blend_is_made_once_for_all_policies_and_paid_once_by_each():
    rows = TrainingRows(10, START, START + DAY, START + DAY, "0" * 64)
    one = Candidate(
        kind="retrain",
        parent="a",
        objects={"model": b"new"},
        training=rows,
        seconds=0.0,
        params={},
        versions={},
        seed=0,
    )
    elder = Elder(b"old", b"", (replace(rows, sha256="1" * 64),))
    calls = []

    def finished(candidate, _rows, older, *, keep, trial, twice):
        calls.append((keep, trial))
        return replace(candidate, members=(*older.members, rows))

    shared = Shared(
        SimpleNamespace(finished=finished), SimpleNamespace(seconds=2.0), scene=None, fits=None
    )
    for parent in ("a", "b"):
        trainer, mine = PolicyTrainer(shared, None), replace(one, parent=parent)
        for _ in range(2):
            made = trainer.finished(mine, None, elder, keep=4, trial=True)
        assert (made.parent, made.members) == (parent, (*elder.members, rows))
        assert trainer.cpu_seconds == 2.0
        trainer.finished(mine, None, elder, keep=4)
        assert trainer.cpu_seconds == 4.0
    assert calls == [(4, True), (4, False)]


def test_what_a_replay_took_is_told_by_part_with_each_fit_once(result, by_name):
    cost = result.cost
    assert min(cost.fits, cost.scores, cost.maps, cost.rest) > 0
    assert cost.fits > by_name["every:1"].cpu_seconds


def test_what_a_policy_comes_to_does_not_depend_on_the_others(trees, by_name):
    again = replayed(stream(), project=trees, policies=("homeostat",))
    alone = again.rows[0]
    among = by_name["homeostat"]
    assert (alone.value, alone.promotions) == (among.value, among.promotions)
    assert (alone.relative_gain, alone.gain_kept) == (among.relative_gain, among.gain_kept)


def test_what_gains_are_measured_against_is_always_there_and_marked(trees):
    found = replayed(stream(), project=trees, policies=("every:4",), start=0.5)
    assert [(row.policy, row.baseline) for row in found.rows] == [
        ("every:4", False),
        ("never", True),
        ("every:1", True),
    ]
    assert found.advice is None
    assert any("never and every:1 are what" in line for line in found.said)


def test_the_best_rule_is_recommended_as_settings_that_can_be_read(trees, tmp_path):
    names = ("homeostat", "homeostat:recalibrate=false+growth=0")
    found = replayed(stream(), project=trees, policies=names)
    rows = {row.policy: row for row in found.rows}
    best = min(names, key=lambda name: (rows[name].harmful_promotions > 0, rows[name].value))
    gain = next(curve.gain for curve in found.curves if curve.policy == best)
    assert found.advice.policy == best
    error = (gain.high - gain.value) / stats.t.ppf(0.975, gain.blocks - 1)
    low = gain.value - stats.t.ppf(0.95, gain.blocks - 1) * error
    assert found.advice.won == (low > 0 and not rows[best].harmful_promotions)
    (tmp_path / "homeostat.toml").write_text(found.advice.settings)
    told = settings.read(tmp_path)
    assert told.decide.mode == ("auto" if found.advice.won else "observe")
    assert (told.decide.growth == 0) is (best == names[1])
    assert told.run.every == told.labels.delay == WEEK


def test_a_label_that_has_not_arrived_teaches_nothing(trees):
    frame = stream(700)
    late = frame["occurred_at"].max() + 100 * DAY
    early = frame["occurred_at"] < START + 14 * DAY
    frame["known"] = frame["occurred_at"].where(early, late)
    found = replayed(
        frame, labelled_at="known", start=0.25, project=trees, policies=("never", "every:2")
    )
    never, every, _ = found.rows
    assert every.promotions > 1
    assert every.value == never.value


def test_the_gate_keeps_out_the_bad_model_that_a_schedule_releases(project):
    found = replayed(
        stream(700, shift=0),
        start=0.3,
        project=project(SABOTAGED),
        policies=("every:4", "homeostat"),
    )
    schedule, gated, *_ = found.rows
    assert schedule.harmful_promotions >= 1
    assert gated.retrains >= 1
    ours = next(curve.marks for curve in found.curves if curve.policy == "homeostat")
    assert not any(mark.promoted for mark in ours)
    harmful = [mark.at for mark in found.curves[0].marks if mark.harmful]
    assert harmful
    assert set(harmful) <= {window.start for window in found.windows}


def test_numbers_are_scored_by_rmse_and_refused_rows_are_left_out(project):
    frame = stream(700)
    frame["target"] = 3 * frame["amount"] + np.random.default_rng(0).normal(size=700)
    early = frame["occurred_at"] < START + 30 * DAY
    frame["gap"] = frame["gap"].mask(early & frame["gap"].isna(), 0.0)
    found = replayed(frame, start="2025-01-26", project=project(NUMBERS), policies=("never",))
    row = found.rows[0]
    later = frame[frame["occurred_at"] >= pd.Timestamp("2025-01-26", tz=UTC)]
    assert found.compared == later["gap"].notna().sum() < len(later)
    assert row.metric == "rmse"
    assert row.value == pytest.approx(1, abs=0.2)
    assert any("refused" in line for line in found.said)


def test_the_table_the_json_and_the_picture_tell_the_same(result, tmp_path):
    table = result.table
    assert list(table.index) == list(POLICIES)
    read = json.loads(result.to_json())
    assert [list(row) for row in read] == [ROW] * len(POLICIES)
    assert [row["value"] for row in read] == table["value"].tolist()
    result.plot(tmp_path / "replay.png")
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")
    assert [len(curve.values) for curve in result.curves] == [len(result.windows)] * len(POLICIES)


def test_the_command_line_uses_the_default_learner_and_says_so(tmp_path, capsys):
    frame = stream(500).rename(columns={"occurred_at": "at"})
    frame["at"] = frame["at"].dt.strftime("%Y-%m-%d %H:%M:%S")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    asked = "--time at --target target --every 14d --start 0.6 --policies never,every:1"
    where = ["--out", str(tmp_path / "found")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", str(tmp_path / "rows.csv"), *asked.split(), *where])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "default learner" in told
    assert "at carries no zone and is read in UTC" in told
    assert re.search(r"never │ +\d\.\d+ │ +\+0\.0% │ +(0\.0%|–) │ +– │ +0\.0% │", told)
    written = json.loads((tmp_path / "found" / "replay.json").read_text())
    assert [row["policy"] for row in written] == ["never", "every:1"]
    assert (tmp_path / "found" / "replay.png").stat().st_size > 1_000


def test_labels_arrive_when_the_column_says_and_else_one_window_later(tmp_path):
    frame = stream(60, shift=0)
    came = (frame["occurred_at"] + 2 * DAY).where(frame.index % 3 > 0)
    frame["known"], frame["labelled_at"] = came, frame["occurred_at"]
    frame.loc[5, "target"] = None
    columns = Columns("occurred_at", "target", "known", (), "binary", None)
    found = source(frame, columns, WEEK, project=None, root=tmp_path)
    ages = [
        None if at is None else at - occurred
        for at, occurred in zip(
            found.table.column("labelled_at").to_pylist(),
            found.table.column("occurred_at").to_pylist(),
            strict=True,
        )
    ]
    assert ages[5] is None
    assert [ages[i] for i in (0, 1, 2, 3)] == [WEEK, 2 * DAY, 2 * DAY, WEEK]
    assert "known" not in found.table.column_names
    assert any("20 rows" in line for line in found.said)


class Stored:
    """The store of one release, of which only the schema is asked."""

    def __init__(self, schema=None):
        self.schema = schema

    def champion(self):
        return self.schema and Release("r", 2, {})

    def object(self, release, name):
        assert name == "schema"
        return self.schema.to_json().encode()


def test_a_journal_comes_back_as_the_frame_that_it_was_made_of():
    frame = stream(40, shift=0)
    schema, journal = schema_of(frame), MemoryJournal()
    rows = served_rows(frame, schema)
    journal.append(rows)
    with pytest.raises(HomeostatError, match="no labelled row"):
        journalled(journal, Stored(schema))
    known, ids = frame.iloc[:30], rows.column("prediction_id").to_pylist()[:30]
    came = (known["occurred_at"] + DAY).dt.to_pydatetime()
    journal.label(label_rows(ids, known["target"].astype(str).tolist(), came))
    with pytest.raises(HomeostatError, match="no champion"):
        journalled(journal, Stored())
    found, target = journalled(journal, Stored(schema))
    assert target == "target"
    for name in ("amount", "gap", "target"):
        np.testing.assert_array_equal(found[name], known[name])
    for name in ("occurred_at", "member"):
        assert found[name].tolist() == known[name].tolist()
    assert (found["labelled_at"] - found["occurred_at"] == DAY).all()


def test_the_verb_without_a_file_replays_the_journal(tmp_path, monkeypatch):
    frame, asked = stream(40, shift=0), {}

    def replayed(*rows, **how):
        asked.update(how, rows=rows)
        return SimpleNamespace(merits={})

    rooms = {name: sys.modules[f"homeostat.replay{name}"] for name in ("", ".source", ".view")}
    monkeypatch.setattr(rooms[".source"], "journalled", lambda *_: (frame, "target"))
    monkeypatch.setattr(rooms[""], "replay", replayed)
    monkeypatch.setattr(rooms[".view"], "report", lambda *_, **__: None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", "--project", str(tmp_path), "--policies", "never, oracle:3"])
    assert ended.value.code == 0
    assert asked["rows"][0] is frame
    assert (asked["time"], asked["target"]) == ("occurred_at", "target")
    assert (asked["labelled_at"], asked["every"]) == ("labelled_at", WEEK)
    assert asked["project"] == tmp_path
    assert asked["policies"] == ["never", "oracle:3"]


@pytest.mark.parametrize("words", [["rows.csv"], ["--time", "at"], ["rows.csv", "--time", "at"]])
def test_a_file_needs_its_columns_and_the_journal_none(words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", *words])
    assert ended.value.code == 2


def test_naive_times_are_read_in_the_zone_that_is_given(tmp_path):
    frame = stream(60, shift=0)
    frame["occurred_at"] = frame["occurred_at"].dt.tz_localize(None)
    columns = Columns("occurred_at", "target", None, ("gap",), None, "Asia/Tokyo")
    found = source(frame, columns, WEEK, project=None, root=tmp_path)
    assert found.table.column("occurred_at")[0].as_py() == START - timedelta(hours=9)
    assert "gap" not in found.table.column_names


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"policies": ("sometimes",)}, HomeostatError, "'sometimes' is no policy"),
        ({"policies": ("every:0",)}, HomeostatError, "after how many steps"),
        ({"policies": ("every:x",)}, HomeostatError, "after how many steps"),
        ({"policies": ("never:2",)}, HomeostatError, "takes no '2'"),
        ({"policies": ("every:2+magic",)}, HomeostatError, "adds 'magic'"),
        ({"policies": ("oracle:x",)}, HomeostatError, "how often it may retrain"),
        ({"policies": ("homeostat:growth=much",)}, HomeostatError, "is no rule: growth"),
        ({"policies": ("homeostat:luck=1",)}, HomeostatError, "is no rule: luck"),
        ({"policies": ("never", "never")}, HomeostatError, "named twice"),
        ({"policies": ()}, HomeostatError, "no policy is named"),
        ({"every": "a week"}, HomeostatError, "no length of time"),
        ({"every": timedelta(0)}, HomeostatError, "longer than nothing"),
        ({"every": "80d", "start": 0.5}, HomeostatError, "fewer than two windows"),
        ({"every": "1m"}, HomeostatError, "windows are more than"),
        ({"start": 1.5}, HomeostatError, "no share"),
        ({"start": "2031-01-01"}, HomeostatError, "not between"),
        ({"start": "soon"}, HomeostatError, "neither a share nor a time"),
        ({"target": "profit"}, SchemaError, "'profit' is not a column"),
        ({"labelled_at": "known"}, SchemaError, "'known' is not a column"),
        ({"time": "amount"}, ProjectError, "numbers, not times"),
        ({"timezone": "Mars"}, HomeostatError, "no IANA time zone"),
    ],
)
def test_what_cannot_be_replayed_is_refused_by_name(options, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        replayed(stream(300), **options)


def test_a_first_model_without_rows_is_refused_with_the_reason():
    with pytest.raises(TrainingError, match=re.escape("no row has a label")) as caught:
        replayed(stream(300), every="40d", start=0.2)
    assert "Start later" in str(caught.value)
    assert "40 days old" in str(caught.value)


def test_a_project_without_a_script_is_refused(tmp_path):
    with pytest.raises(HomeostatError, match="no training script"):
        replayed(stream(300), project=tmp_path)


def test_a_frame_is_needed():
    with pytest.raises(SchemaError, match="not a pandas DataFrame"):
        replayed([1, 2])


def test_the_public_name_can_be_called_though_a_module_has_it_too():
    assert homeostat.replay is sys.modules["homeostat.replay"]
    with pytest.raises(SchemaError):
        homeostat.replay([], time="t", target="y", every="7d")
