"""`homeostat init`: what it writes, what it infers, and what it refuses."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from homeostat import __version__, project, settings
from homeostat.draft import draft
from homeostat.errors import ProjectError, SchemaError
from homeostat.infer import infer

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("src/inference/api.py", "src/monitoring/monitor.py", "src/training/retrain.py")


def rows(count: int = 600, *, days: int = 60, seed: int = 0) -> pd.DataFrame:
    """Sales whose demand depends on price, shop and weather; every kind of column is there."""
    rng = np.random.default_rng(seed)
    price = rng.uniform(1, 9, count)
    shop = rng.choice(["north", "south", "west"], count)
    score = 2 * (shop == "north") - 0.5 * price + rng.normal(size=count) + 2
    frame = pd.DataFrame(
        {
            "when": pd.date_range("2024-03-01", periods=count, freq=timedelta(days=days) / count),
            "order": [f"A{number:06d}" for number in range(count)],
            "number": np.arange(count),
            "price": np.where(rng.random(count) < 0.1, np.nan, price),
            "shop": pd.Series(shop).where(rng.random(count) < 0.9),
            "member": rng.random(count) < 0.3,
            "currency": "EUR",
            "nothing": np.nan,
            "sold": np.where(score > 0, "yes", "no"),
        }
    )
    frame["when"] = frame["when"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return frame


def written(tmp_path: Path, frame: pd.DataFrame, name: str = "rows.csv") -> Path:
    path = tmp_path / name
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


def drafted(tmp_path: Path, frame: pd.DataFrame, **options):
    data = written(tmp_path, frame, options.pop("name", "rows.csv"))
    target, time = options.pop("target", "sold"), options.pop("time", "when")
    return draft(data, tmp_path, target, time, **options)


def placed(root: Path, text: str) -> Path:
    script = root / project.TRAIN
    script.parent.mkdir(parents=True)
    script.write_text(text)
    return script


# --- one source ---


def test_the_roots_settings_are_those_that_the_generator_writes():
    text = (ROOT / settings.FILE).read_text(encoding="utf-8")
    assert text == project.settings_toml(tomllib.loads(text)), "run `make settings`"


def test_init_writes_the_repositorys_own_files(tmp_path):
    made = project.init(tmp_path / "new")
    assert set(made.written) == set(project.FILES)
    for name in {*project.FILES} - {".gitignore", "requirements.txt"}:
        assert (tmp_path / "new" / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_a_new_projects_requirements_name_this_package_and_the_same_pins(tmp_path):
    project.init(tmp_path)
    own = (ROOT / "requirements.txt").read_text().split("-e .[all]\n")
    head, itself, pins = (tmp_path / "requirements.txt").read_text().split("\n", 2)
    assert head.startswith("#")
    assert "make" not in head
    assert itself == project.requirement()
    assert Requirement(itself).extras == {"all"}
    assert pins == own[1]


def test_a_new_project_keeps_its_key_and_its_data_out_of_git(tmp_path):
    project.init(tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name in (".homeostat/signing.key", "data/logs/predictions.csv", "models/model.pkl"):
        ignored = subprocess.run(
            ["git", "-C", str(tmp_path), "check-ignore", "-q", name], check=False
        )
        assert ignored.returncode == 0, name


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_a_few_lines_each(name):
    code = [line for line in (ROOT / name).read_text().splitlines() if line.strip()]
    assert len(code) <= 12


def test_the_wheel_carries_the_same_template(tmp_path):
    source = tmp_path / "source"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = "from hatchling.build import build_wheel; print(build_wheel('dist'))"
    built = subprocess.run(
        [sys.executable, "-c", build], cwd=source, check=True, capture_output=True, text=True
    )
    with zipfile.ZipFile(source / "dist" / built.stdout.split()[-1]) as wheel:
        held = {n: wheel.read(n) for n in wheel.namelist() if "/template/" in n}
    assert held == {f"homeostat/template/{n}": (ROOT / n).read_bytes() for n in project.FILES}


# --- pins ---


def pins(name: str) -> dict[tuple[str, str], str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = [Requirement(line) for line in re.findall(r"^[a-z0-9][^\\\n]*==[^\\\n]*", text, re.M)]
    return {(canonicalize_name(r.name), str(r.marker or "")): str(r.specifier) for r in found}


def test_requirements_pin_every_direct_dependency_as_the_lock_does():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for texts in about["optional-dependencies"].values() for text in texts]
    direct = {canonicalize_name(Requirement(t).name) for t in [*about["dependencies"], *extras]}
    own, lock = pins("requirements.txt"), pins("requirements.lock")
    assert {name for name, _ in own} == direct - {"homeostat"}
    assert own.items() <= lock.items(), "run `make lock`"


def test_the_lock_meets_what_the_package_asks_for():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = about["project"]["optional-dependencies"].values()
    wanted = [*about["project"]["dependencies"], *about["dependency-groups"]["dev"]]
    lock = pins("requirements.lock")
    for text in [*wanted, *(text for group in groups for text in group)]:
        asked = Requirement(text)
        versions = [v for (n, _), v in lock.items() if n == canonicalize_name(asked.name)]
        if asked.name != "homeostat":
            assert versions, f"{asked.name} is not in the lock: run `make lock`"
            assert all(asked.specifier.contains(v.removeprefix("==")) for v in versions), text


@pytest.mark.parametrize("name", ["requirements.txt", "requirements.lock"])
def test_no_index_address_stands_in(name):
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--\w*index|--find-links)", text, re.M)


def test_every_line_of_the_lock_has_a_hash():
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.lock").read_text())
    assert all("--hash=sha256:" in block for block in blocks[1:])


# --- where the package came from ---


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, f"homeostat[all]=={__version__}"),
        ({"url": "file:///a/b", "dir_info": {"editable": True}}, "homeostat[all] @ file:///a/b"),
        (
            {"url": "file:///h.whl", "archive_info": {"hashes": {"sha256": "ab"}}},
            "homeostat[all] @ file:///h.whl#sha256=ab",
        ),
        (
            {
                "url": "https://example.org/h.git",
                "vcs_info": {"vcs": "git", "commit_id": "c0ffee", "requested_revision": "main"},
                "subdirectory": "python",
            },
            "homeostat[all] @ git+https://example.org/h.git@c0ffee#subdirectory=python",
        ),
    ],
)
def test_a_project_asks_for_the_package_where_it_came_from(monkeypatch, origin, expected):
    class Installed:
        def read_text(self, name):
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr(project, "distribution", lambda name: Installed())
    assert project.requirement() == expected


# --- never overwrite ---


def test_an_existing_file_is_named_and_nothing_is_written(tmp_path):
    (tmp_path / "requirements.txt").write_text("numpy\n")
    with pytest.raises(ProjectError, match=r"requirements\.txt in .* nothing was written"):
        project.init(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["requirements.txt"]
    assert (tmp_path / "requirements.txt").read_text() == "numpy\n"


def test_a_second_init_finds_all_as_it_left_it(tmp_path):
    project.init(tmp_path)
    again = project.init(tmp_path)
    assert again.written == ()
    assert set(again.kept) == set(project.FILES)


def test_a_gitignore_stays_and_the_user_is_told_what_it_must_have(tmp_path):
    (tmp_path / ".gitignore").write_text("*.log\n")
    made = project.init(tmp_path)
    assert (tmp_path / ".gitignore").read_text() == "*.log\n"
    assert any(".homeostat/" in line for line in made.said)


def test_a_file_where_a_folder_must_go_is_an_error_before_anything_is_written(tmp_path):
    (tmp_path / "src").write_text("")
    with pytest.raises(ProjectError, match="src"):
        project.init(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


# --- from data ---


def test_a_project_from_data_has_settings_that_hold_and_say_what_was_inferred(tmp_path):
    data = written(tmp_path, rows())
    made = project.init(tmp_path / "shop", data=data, target="sold", time="when")
    read = settings.read(tmp_path / "shop")
    assert (read.project.name, read.project.target, read.project.time) == ("shop", "sold", "when")
    assert read.project.task == "binary"
    assert set(read.project.exclude) == {"order", "number", "currency", "nothing"}
    said = "\n".join(made.said)
    for word in ("600 labelled rows", "binary", "no, yes", "1 number: price", "order", "EUR"):
        assert (word in said) == (word != "EUR"), word


def test_the_drafted_script_loads_the_file_and_fits_a_model_that_beats_chance(tmp_path):
    frame = rows(2000)
    data = written(tmp_path, frame)
    project.init(tmp_path / "shop", data=data, target="sold", time="when")
    script = runpy.run_path(str(tmp_path / "shop" / project.TRAIN))
    loaded = script["load"]()
    assert len(loaded) == len(frame)
    features = infer(loaded, target="sold", exclude=["when", "order", "number"])
    seen = loaded[[*features.names, "sold"]]
    model = script["fit"](seen.head(1500))
    unseen = seen.tail(500).assign(shop="a new shop")
    assert model.predict_proba(unseen[list(features.names)]).shape == (500, 2)
    assert model.score(seen.tail(500)[list(features.names)], seen.tail(500)["sold"]) > 0.7
    again = script["fit"](seen.head(1500))
    columns = seen[list(features.names)]
    assert (again.predict_proba(columns) == model.predict_proba(columns)).all()


@pytest.mark.parametrize("columns", [["price"], ["shop"], ["price", "shop", "member"]])
def test_the_drafted_learner_takes_any_mixture_of_kinds(tmp_path, columns):
    frame = rows()
    frame["sold"] = frame["price"].fillna(0) * 2.5
    found = drafted(tmp_path, frame[["when", *columns, "sold"]])
    assert found.settings["project"]["task"] == "regression"
    script = runpy.run_path(str(placed(tmp_path, found.train)))
    seen = frame[[*columns, "sold"]]
    assert np.isfinite(script["fit"](seen).predict(seen[columns])).all()


def test_a_data_file_inside_the_project_is_named_relative_to_it(tmp_path):
    inside = drafted(tmp_path, rows()).train
    assert 'DATA = ROOT / "rows.csv"' in inside
    assert str(tmp_path) not in inside


def test_a_data_file_outside_the_project_is_said_to_be_out_of_reach_of_ci(tmp_path):
    data = written(tmp_path, rows())
    made = project.init(tmp_path / "shop", data=data, target="sold", time="when")
    assert f'DATA = Path("{data}")' in (tmp_path / "shop" / project.TRAIN).read_text()
    assert any(str(data) in line and "CI" in line for line in made.said)


def test_parquet_and_csv_of_the_same_rows_give_the_same_settings(tmp_path):
    frame = rows().assign(when=lambda f: pd.to_datetime(f["when"], utc=True))
    one = drafted(tmp_path, frame, name="rows.parquet")
    other = drafted(tmp_path, frame, name="rows.csv")
    assert one.settings == other.settings
    assert "read_parquet" in one.train


def test_naive_times_are_read_as_utc_and_it_is_said(tmp_path):
    frame = rows().assign(when=lambda f: f["when"].str.removesuffix("Z"))
    found = drafted(tmp_path, frame)
    assert found.settings["project"]["timezone"] == "UTC"
    assert any("read as UTC" in line for line in found.said)
    assert drafted(tmp_path, frame, timezone="Asia/Tokyo").settings["project"]["timezone"] == (
        "Asia/Tokyo"
    )
    assert "timezone" not in drafted(tmp_path, rows()).settings["project"]


def test_times_with_the_day_first_are_read_so_and_it_is_said(tmp_path):
    frame = rows()
    frame["when"] = pd.to_datetime(frame["when"]).dt.strftime("%d/%m/%Y %H:%M")
    found = drafted(tmp_path, frame)
    assert 'format="%d/%m/%Y %H:%M"' in found.train
    assert any("%d/%m/%Y" in line for line in found.said)
    loaded = runpy.run_path(str(placed(tmp_path, found.train)))["load"]()
    assert loaded["when"].max() - loaded["when"].min() < timedelta(days=60)


@pytest.mark.parametrize(
    ("count", "days", "block", "window", "gate", "cooldown"),
    [
        (2_000, 4, "1h", "1d", "2d", "3d"),  # many rows, few days
        (600, 60, "7d", "35d", "70d", "105d"),  # ten rows a day are too few for blocks of a day
        (2_000, 60, None, None, None, None),  # the defaults: a day, a week, three weeks
        (8_000, 900, "7d", "35d", "70d", "105d"),  # nine rows a day
        (3_000, 900, "7d", "70d", "140d", "210d"),  # 35 days would hold fewer than 200 rows
    ],
)
def test_block_and_window_follow_the_span_and_the_rate(
    tmp_path, count, days, block, window, gate, cooldown
):
    lengths = drafted(tmp_path, rows(count, days=days)).settings
    assert lengths.get("monitor", {}).get("block") == block
    assert lengths.get("monitor", {}).get("window") == window
    assert lengths.get("gate", {}).get("window") == gate
    assert lengths.get("decide", {}).get("cooldown") == cooldown


def test_the_age_of_labels_becomes_the_delay(tmp_path):
    frame = rows()
    ages = pd.to_timedelta(np.r_[np.full(570, 3), np.full(30, 50)], unit="D")
    frame["labelled_at"] = (pd.to_datetime(frame["when"]) + ages).astype(str)
    found = drafted(tmp_path, frame)
    assert found.settings["labels"]["delay"] in ("3d", "6d")
    assert "labelled_at" not in found.settings["project"]["exclude"]


def test_a_column_that_gives_the_target_away_is_named_and_kept(tmp_path):
    frame = rows(2000).assign(receipt=lambda f: (f["sold"] == "yes").astype(int))
    found = drafted(tmp_path, frame)
    hints = [line for line in found.said if "alone explains" in line]
    assert len(hints) == 1
    assert hints[0].startswith("receipt")
    assert "receipt" not in found.settings["project"]["exclude"]


def test_rows_without_target_or_time_are_left_out_and_counted(tmp_path):
    frame = rows()
    frame.loc[:9, "sold"] = None
    frame.loc[10:14, "when"] = None
    assert "15 more" in drafted(tmp_path, frame).said[0]


def test_a_reserved_name_is_left_out_with_the_reason(tmp_path):
    found = drafted(tmp_path, rows().assign(source=lambda f: f["shop"]))
    assert "source" in found.settings["project"]["exclude"]
    assert any(line.startswith("source is left out: its name is reserved") for line in found.said)


# --- refusals ---


def naive_and_aware(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[3, "when"] = "2024-03-01T00:00:00"
    return frame


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: f, {"target": "profit"}, "'profit' is not a column.*Columns are when, order"),
        (lambda f: f, {"time": "at"}, "'at' is not a column"),
        (lambda f: f, {"exclude": ["colour"]}, "'colour' is not a column"),
        (lambda f: f, {"timezone": "Mars/Base"}, "'Mars/Base' is no IANA time zone"),
        (lambda f: f, {"task": "ranking"}, "'ranking' is no task"),
        (lambda f: f, {"time": "number"}, "holds numbers, not times"),
        (lambda f: f, {"time": "order"}, "'order' cannot be read as times"),
        (lambda f: f, {"time": "nothing"}, "holds nothing, not times"),
        (naive_and_aware, {}, "times with a zone and times without"),
        (lambda f: f.assign(when="2024-03-01T00:00:00Z"), {}, "no past to compare with"),
        (lambda f: f.head(0), {}, "holds nothing"),
        (lambda f: f.assign(sold="yes"), {}, "one class only"),
        (lambda f: f.assign(sold=None), {}, "no row of rows.csv has both"),
        (lambda f: f[["when", "sold", "order"]], {}, "no feature is left"),
    ],
)
def test_data_that_cannot_make_a_project_are_refused_with_the_reason(
    tmp_path, change, options, message
):
    with pytest.raises((ProjectError, SchemaError), match=message):
        drafted(tmp_path, change(rows()), **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "there is no file"),
        ("rows.xlsx", b"PK", "neither CSV nor Parquet"),
        ("rows.parquet", b"when,sold\n", "cannot be read"),
        ("empty.csv", b"", "cannot be read"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3\n", "cannot be read"),
        ("latin.csv", "a,b\n1,caf\xe9\n".encode("latin-1"), "cannot be read"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ProjectError, match=message):
        draft(tmp_path / name, tmp_path, "sold", "when")


@pytest.mark.parametrize(
    "options",
    [
        {"data": "rows.csv"},
        {"data": "rows.csv", "target": "sold"},
        {"target": "sold", "time": "when"},
    ],
)
def test_data_target_and_time_belong_together(tmp_path, options):
    with pytest.raises(ProjectError, match="--"):
        project.init(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_unknown_settings_are_refused_by_the_generator():
    with pytest.raises(ProjectError, match="settings has no 'servers'"):
        project.settings_toml({"servers": {}})
    with pytest.raises(ProjectError, match="serving has no 'prot'"):
        project.settings_toml({"serving": {"prot": 1}})
