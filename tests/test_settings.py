"""Settings from the file, from variables, and the errors that name what is wrong."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from homeostat import project, settings
from homeostat.errors import SettingsError
from homeostat.fields import Duration
from homeostat.settings import Settings

SECTIONS = [name for name in Settings.model_fields if name != "root"]
FIELDS = [
    (section, name)
    for section in SECTIONS
    for name in type(Settings.model_fields[section].default).model_fields
]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("HOMEOSTAT_")]:
        monkeypatch.delenv(name)


def put(folder: Path, text: str) -> Path:
    (folder / settings.FILE).write_text(text, encoding="utf-8")
    return folder


# --- from the file ---


def test_without_a_file_everything_has_its_default(tmp_path):
    read = settings.read(tmp_path)
    assert read.root == tmp_path.resolve()
    assert read.monitor.window == timedelta(days=7)
    assert read.model_dump() == Settings().model_dump()


def test_a_file_overrides_what_it_names_and_nothing_else(tmp_path):
    read = settings.read(put(tmp_path, "[serving]\nport = 9000\n"))
    assert read.serving.port == 9000
    assert read.serving.host == Settings().serving.host
    assert read.monitor == Settings().monitor


def test_an_argument_beats_the_file(tmp_path):
    put(tmp_path, "[monitor]\nmin_rows = 50\n")
    assert settings.read(tmp_path, monitor={"min_rows": 60}).monitor.min_rows == 60


def test_the_bound_on_event_times_can_be_lifted(tmp_path):
    assert settings.read(tmp_path).serving.max_skew == timedelta(hours=1)
    put(tmp_path, '[serving]\nmax_skew = "none"\n')
    assert settings.read(tmp_path).serving.max_skew is None


def test_paths_start_at_the_projects_folder(tmp_path):
    read = settings.read(tmp_path)
    assert read.path("models", "model.pkl") == tmp_path.resolve() / "models" / "model.pkl"


def test_settings_cannot_be_changed_once_read(tmp_path):
    read = settings.read(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        read.serving.port = 1


# --- from variables ---


def test_a_variable_beats_the_file_field_by_field(tmp_path, monkeypatch):
    put(tmp_path, "[serving]\nport = 9000\nworkers = 3\n")
    monkeypatch.setenv("HOMEOSTAT_SERVING__PORT", "9100")
    read = settings.read(tmp_path)
    assert (read.serving.port, read.serving.workers) == (9100, 3)


def test_variables_that_are_no_settings_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_SIGNING_KEY", "secret")
    monkeypatch.setenv("HOMEOSTAT_REQUIRE_SYSTEM", "1")
    assert settings.read(tmp_path).model_dump() == Settings().model_dump()


def test_no_variable_moves_the_projects_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_ROOT", "/elsewhere")
    assert settings.read(tmp_path).root == tmp_path.resolve()


def test_a_wrong_variable_is_named_without_its_value(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_SERVING__PORT", "hunter2")
    with pytest.raises(SettingsError, match=r"serving\.port") as raised:
        settings.read(tmp_path)
    assert "hunter2" not in str(raised.value)


# --- errors ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[serving\n", "not valid TOML"),
        ("[servers]\nport = 1\n", "servers"),
        ("[serving]\nprot = 1\n", r"serving\.prot"),
        ("[serving]\nport = 70000\n", r"serving\.port.*65535"),
        ('[monitor]\nwindow = "7 days"\n', r"monitor\.window.*'7d'"),
        ('[monitor]\nwindow = "-7d"\n', r"monitor\.window"),
        ('[monitor]\nwindow = "99999999999d"\n', r"monitor\.window.*too long"),
        ('[project]\ntask = "ranking"\n', r"project\.task.*binary"),
        ('[project]\ntimezone = "Mars/Base"\n', "Mars/Base.*IANA"),
        ("[gate]\nconfidence = 1.0\n", r"gate\.confidence"),
        ('[[serving.keys]]\nname = "a"\nrole = "root"\nsha256 = "x"\n', r"serving\.keys\.0"),
        ("serving = 3\n", "serving"),
    ],
)
def test_a_wrong_file_is_refused_naming_file_and_field(tmp_path, text, message):
    with pytest.raises(SettingsError, match=message) as raised:
        settings.read(put(tmp_path, text))
    assert settings.FILE in str(raised.value)


def test_every_wrong_field_is_named_at_once(tmp_path):
    put(tmp_path, "[serving]\nport = -1\nworkers = 0\n")
    with pytest.raises(SettingsError, match=r"serving\.port.*serving\.workers"):
        settings.read(tmp_path)


def test_an_error_never_holds_the_value(tmp_path):
    put(tmp_path, '[[serving.keys]]\nname = "a"\nrole = "admin"\nsha256 = "my-plain-key"\n')
    with pytest.raises(SettingsError) as raised:
        settings.read(tmp_path)
    assert "my-plain-key" not in str(raised.value)


# --- lengths of time ---


@given(st.integers(0, 10_000), st.sampled_from("smhdw"))
def test_a_length_of_time_is_its_number_times_its_unit(number, unit):
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[unit]
    read = TypeAdapter(Duration).validate_python(f"{number}{unit}")
    assert read == timedelta(seconds=number * seconds)


@given(st.integers(0, 10**9).map(lambda tenths: timedelta(seconds=tenths / 10)))
def test_a_length_of_time_survives_being_written(length):
    kind = TypeAdapter(Duration)
    written = kind.dump_python(length, mode="json")
    assert kind.validate_python(written) == length


# --- documentation ---


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_field_has_a_default_and_says_what_it_is(section, name):
    field = type(Settings.model_fields[section].default).model_fields[name]
    assert not field.is_required()
    assert field.description
    assert field.description.endswith(".")


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_says_what_it_is(section):
    value = Settings.model_fields[section].default
    assert isinstance(value, BaseModel)
    assert type(value).__doc__


def test_the_written_file_names_every_field_and_its_defaults_hold(tmp_path):
    text = project.settings_toml({})
    assert tomllib.loads(text) == {section: {} for section in SECTIONS}
    lines = [
        line.removeprefix("# ") if " = " in line and line.startswith("# ") else line
        for line in text.split("\n\n", 1)[1].splitlines()
        if not line.startswith("#") or line.removeprefix("# ").split(" = ")[0] in dict_of_names()
    ]
    all_on = tomllib.loads("\n".join(lines))
    assert [(s, name) for s in all_on for name in all_on[s]] == FIELDS
    unset = {name.split(".")[1] for name in ("project.task", "project.timezone")}
    for name in unset:
        assert getattr(Settings().project, name) is None
        del all_on["project"][name]
    put(tmp_path, project.settings_toml(all_on))
    assert settings.read(tmp_path).model_dump() == Settings().model_dump()


def dict_of_names() -> set[str]:
    return {name for _, name in FIELDS}
