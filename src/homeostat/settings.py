"""Settings: `homeostat.toml` and `HOMEOSTAT_*` variables become one frozen value.

Every field has a default, a unit where it has one, and a description; `homeostat init` writes
them all as comments, and the documentation's table is made from them. A variable beats the file:
`HOMEOSTAT_SERVING__PORT=9000` sets `serving.port`.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from homeostat.errors import SettingsError
from homeostat.fields import Duration, Section, Share, explained, lifted
from homeostat.listening import Run, Serving
from homeostat.records import Task

FILE = "homeostat.toml"


class Project(Section):
    """What the model is about."""

    name: str = Field("homeostat", description="Shown in reports, alerts and MLflow.")
    target: str = Field("target", description="Column that load() returns and the model predicts.")
    time: str = Field("occurred_at", description="Column of the event time in load().")
    task: Task | None = Field(
        None, description="binary, multiclass or regression; inferred from the target if unset."
    )
    timezone: str | None = Field(
        None, description="Zone in which naive times of load() are read; unset: they are refused."
    )
    exclude: tuple[str, ...] = Field((), description="Columns of load() that are no features.")
    seed: int = Field(0, ge=0, description="Of every random draw; recorded in each release.")

    def model_post_init(self, context: Any) -> None:
        if self.timezone is not None and self.timezone not in available_timezones():
            raise ValueError(f"project.timezone {self.timezone!r} is no IANA time zone")

    @property
    def zone(self) -> ZoneInfo | None:
        return ZoneInfo(self.timezone) if self.timezone else None


class Journal(Section):
    """The journal's files."""

    ack: Literal["fsync", "write"] = Field(
        "fsync",
        description="When a row counts as written: on the disk, or handed to the system, which "
        "loses it if the machine stops.",
    )
    tail: Duration = Field(
        timedelta(days=7),
        description="How long rows stay in the CSV files before they move into history.",
    )
    orphans: Duration = Field(
        timedelta(days=90),
        description="How long a label waits for its prediction before it is dropped.",
    )
    keep: Annotated[Duration | None, BeforeValidator(lifted)] = Field(
        None, description="Age by event time at which history forgets a row; 'none': never."
    )


class Labels(Section):
    """How labels come."""

    delay: Duration = Field(
        timedelta(0),
        description="Age at which nearly all rows (95 %) have their label. Younger rows are not "
        "judged, since early labels are a biased sample.",
    )


class Monitor(Section):
    """What is looked at, and how closely."""

    window: Duration = Field(timedelta(days=7), description="Length of the current window.")
    block: Duration = Field(
        timedelta(days=1), description="Rows within one block are taken as alike, not independent."
    )
    min_rows: int = Field(30, ge=1, description="Fewer rows in a window: insufficient_data.")
    alpha: float = Field(
        0.01, gt=0, lt=1, description="False alarms allowed per window, over all columns."
    )
    min_effect: Share = Field(0.1, description="Smaller distances are never called drift.")
    segments: tuple[str, ...] = Field(
        (),
        max_length=10,
        description="Categorical or boolean features, ten at most, of which each level is compared "
        "by itself, too; known from the next release on. Such verdicts inform.",
    )
    detector: Literal["homeostat", "evidently"] = Field(
        "homeostat", description="Whose verdict decides; the other one is reported beside it."
    )
    timeout: Duration = Field(
        timedelta(minutes=5), description="After which Evidently's report is given up."
    )
    sample: int = Field(
        2_000, ge=100, description="Rows of reference and of current that Evidently is handed."
    )
    metric: str = Field(
        "loss",
        min_length=1,
        description="What performance is judged by: loss (log loss or RMSE), brier, accuracy, auc, "
        "f1, calibration_error, mae, r2, or an entry point of the group homeostat.metrics.",
    )
    decision_threshold: Share = Field(
        0.5,
        description="Probability above which a binary model is taken to say yes, in accuracy, F1 "
        "and metrics of your own; what is served does not change.",
    )
    staleness: bool = Field(
        True, description="Fit two small models at a look, to tell what the champion's age costs."
    )


class Training(Section):
    """How challengers are fitted."""

    script: Path = Field(Path("src/training/train.py"), description="Holds load() and fit(frame).")
    timeout: Duration = Field(timedelta(hours=1), description="A fit that takes longer is ended.")
    memory: int = Field(
        8_192, ge=256, description="Address space that a fit may use, MiB (Linux only)."
    )
    threads: int = Field(
        1, ge=1, description="OpenMP threads of a fit; more of them stall a server beside it."
    )
    min_rows: int = Field(200, ge=10, description="Fewer labelled rows: no training.")
    blend: int = Field(
        4,
        ge=1,
        description="The newest models of the champion's line whose outputs a challenger "
        "averages; 1: the fitted estimator alone.",
    )
    recent: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Newest share of the labelled rows from which one more challenger learns, "
        "beside that of all; it is taken where it is significantly better. 0: none.",
    )
    refit: bool = Field(
        True,
        description="Fit a challenger that passed the gate once more, on the judging rows as well, "
        "before it is released. The gate's evidence is then that of its sibling.",
    )


class Gate(Section):
    """When a challenger is good enough."""

    window: Duration = Field(
        timedelta(days=14), description="Newest labelled rows, kept from training, that judge."
    )
    min_rows: int = Field(100, ge=2, description="Fewer rows: the champion stays.")
    min_blocks: int = Field(
        5, ge=2, description="Fewer blocks (monitor.block): the champion stays."
    )
    confidence: float = Field(
        0.8,
        gt=0.5,
        lt=1,
        description="Least confidence of the one-sided bound that must exclude harm.",
    )
    false_promotions: Annotated[float | None, BeforeValidator(lifted)] = Field(
        0.5,
        ge=0,
        description="Harmful promotions a year that chance may bring, besides one in ten of all; "
        "looks beyond that test at a higher confidence. 'none': all have the same.",
    )
    delta: Share = Field(
        0.002, description="Harm that the bound need not exclude, as a share of the loss."
    )
    latency: Annotated[Duration | None, BeforeValidator(lifted)] = Field(
        None,
        description="Longest time that a challenger may take for one row, at the median of its "
        "golden rows and without the server around it; 'none': any.",
    )
    slices: int = Field(
        0,
        ge=0,
        description="Most levels and ranges of features in each of which the challenger may not be "
        "significantly worse; 0: only the whole is judged.",
    )
    slice_delta: Share = Field(
        0.05,
        description="How much the mean loss in a level or range may rise, as a share of the "
        "champion's mean loss over all rows.",
    )


class Decide(Section):
    """When something is done about it."""

    mode: Literal["observe", "approve", "auto"] = Field(
        "auto",
        description="observe: decide and record, but do nothing. approve: what the gate promotes "
        "waits for `homeostat approve`. auto: it serves at once.",
    )
    proof: Literal["replay", "none"] = Field(
        "replay",
        description="What lets `homeostat run` act by the mode auto: a replay of these rules that "
        "won, until which it works as approve; or none.",
    )
    cooldown: Duration = Field(
        timedelta(days=21), description="Least time between two trainings of the loop's own accord."
    )
    backoff: float = Field(
        1.0,
        ge=1,
        description="Each challenger in a row that the gate refused makes the cool-down of what "
        "set it off so many times longer, up to eight times; 1: it does not.",
    )
    growth: float = Field(
        0.3,
        ge=0,
        description="Retrain when there are this many more labelled rows than at the last "
        "training, as a share of those; 0 switches it off.",
    )
    persistence: int = Field(
        1, ge=1, description="Disjoint windows in a row that must have drifted before a training."
    )
    max_age: Annotated[Duration | None, BeforeValidator(lifted)] = Field(
        timedelta(days=42),
        description="Retrain when the last training is so long ago; twice as long for each in a "
        "row at which no promotion had paid, eight times at most. 'none': age is no reason.",
    )
    every: Annotated[Duration | None, BeforeValidator(lifted)] = Field(
        None, description="Retrain when the last training is so long ago; 'none': no schedule."
    )
    budget: Annotated[int | None, Field(ge=0), BeforeValidator(lifted)] = Field(
        18,
        description="Trainings that decide.budget_period allows, as evenly as time passes, besides "
        "one beforehand; 'none': no limit.",
    )
    budget_period: Duration = Field(
        timedelta(days=700), description="Over which decide.budget is counted."
    )
    recalibrate: bool = Field(
        True,
        description="Give releases a map over their output where the record of maps speaks for "
        "one, and try another before a training for harm, and between trainings.",
    )
    calibration_windows: int = Field(
        4, ge=1, description="Windows (monitor.window) of mature labelled rows that fit a map."
    )
    probation: int = Field(
        8,
        ge=0,
        description="Windows after a promotion in which the new champion is compared with the one "
        "it replaced, which serves again if it was better; 0: none.",
    )


class Tracking(Section):
    """MLflow."""

    enabled: bool = Field(True, description="Off as well where the variable CI is true.")
    uri: str = Field(
        "sqlite:///.homeostat/mlflow.db",
        description="MLflow tracking URI; relative to the project.",
    )
    timeout: Duration = Field(
        timedelta(minutes=2), description="After which one record is given up."
    )


class Alerts(Section):
    """Who is told."""

    urls: tuple[str, ...] = Field((), description="Apprise URLs; needs the extra `alerts`.")


class Settings(BaseSettings):
    """All settings of one project, and where its folder is."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="HOMEOSTAT_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    root: Path = Field(Path(), exclude=True, description="The project's folder.")
    project: Project = Project()
    serving: Serving = Serving()
    journal: Journal = Journal()
    labels: Labels = Labels()
    monitor: Monitor = Monitor()
    training: Training = Training()
    gate: Gate = Gate()
    decide: Decide = Decide()
    tracking: Tracking = Tracking()
    alerts: Alerts = Alerts()
    run: Run = Run()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (env_settings, init_settings)

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    @property
    def script(self) -> Path:
        """Where the user's training code lies, if there is any."""
        return self.path(str(self.training.script))


def read(root: Path | str = ".", **overrides: Any) -> Settings:
    """The settings of the project in `root`; a missing file means all defaults.

    Raises SettingsError that names the field, what it holds, and what it should.
    """
    root = Path(root).resolve()
    file = root / FILE
    try:
        source = TomlConfigSettingsSource(Settings, file) if file.is_file() else dict
        # Here, and not as an argument: a variable would beat that, and no variable moves a project.
        return Settings(**{**source(), **overrides}).model_copy(update={"root": root})
    except TOMLDecodeError as error:
        raise SettingsError(f"{file} is not valid TOML: {error}.") from error
    except ValidationError as error:
        raise SettingsError(explained(error), hint=f"See {file}.") from error
