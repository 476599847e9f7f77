"""Streams whose right answer is known, through the whole loop by its default rules.

In each, one thing happens half-way: the concept jumps, turns slowly, comes and goes, or only the
features or the share of the classes move, or nothing does.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

import homeostat

WEEKS, A_DAY = 30, 40
TRAIN = """
from sklearn.linear_model import LogisticRegression

def fit(frame):
    target = frame.pop("y")
    return LogisticRegression().fit(frame, target)
"""
SETTINGS = '[labels]\ndelay = "7d"\n'


def still(weeks):
    return np.zeros(len(weeks))


def stream(angle=still, bias=still, shift=still):
    """A line between two classes that turns by `angle` and moves by `bias`, while the first feature
    moves by `shift`; each a function of the weeks that have passed.
    """
    rng = np.random.default_rng(11)
    weeks = np.arange(WEEKS * 7 * A_DAY) / (7 * A_DAY)
    features = rng.normal(size=(len(weeks), 2))
    features[:, 0] += shift(weeks)
    turned = np.column_stack([np.cos(angle(weeks)), np.sin(angle(weeks))])
    logit = 1.5 * (features * turned).sum(axis=1) + bias(weeks)
    times = pd.to_timedelta((weeks * 7 * 86_400).round(), unit="s")
    labels = rng.random(len(weeks)) < 1 / (1 + np.exp(-logit))
    began = pd.Timestamp("2024-01-01", tz="UTC")
    return pd.DataFrame(
        {"a": features[:, 0], "b": features[:, 1], "y": labels, "at": began + times}
    )


def jump(size):
    return lambda weeks: np.where(weeks < WEEKS / 2, 0.0, size)


STREAMS = {
    "none": stream(),
    "abrupt": stream(angle=jump(2.0)),
    "gradual": stream(angle=lambda weeks: 2.4 * np.clip(weeks / WEEKS - 0.2, 0, 1)),
    "recurring": stream(angle=lambda weeks: np.where(weeks // 5 % 2 == 0, 0.0, 1.6)),
    "covariate": stream(shift=jump(1.5)),
    "prior": stream(bias=jump(1.5)),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("answers")
    (root / "homeostat.toml").write_text(SETTINGS)
    script = root / "src" / "training" / "train.py"
    script.parent.mkdir(parents=True)
    script.write_text(TRAIN)
    return root


@pytest.fixture(scope="module")
def replayed(project):
    """What the rules came to on a stream, by policy."""
    found = {}

    def of(name):
        if name not in found:
            result = homeostat.replay(
                STREAMS[name],
                time="at",
                target="y",
                every=timedelta(days=7),
                project=project,
                policies=("never", "every:1", "homeostat"),
            )
            found[name] = {row.policy: row for row in result.rows}
        return found[name]

    return of


@pytest.mark.parametrize("name", STREAMS)
def test_the_rules_are_never_one_percent_worse_than_doing_nothing(replayed, name):
    rows = replayed(name)
    assert rows["homeostat"].value <= 1.01 * rows["never"].value
    assert rows["homeostat"].retrains <= 0.2 * rows["every:1"].retrains + 1


@pytest.mark.parametrize("name", ["abrupt", "gradual", "prior"])
def test_what_lasts_is_mended_as_well_as_by_a_training_every_week(replayed, name):
    assert replayed(name)["homeostat"].gain_kept >= 0.95


@pytest.mark.parametrize("name", ["none", "covariate"])
def test_where_the_concept_stands_nothing_that_is_done_does_harm(replayed, name):
    assert replayed(name)["homeostat"].harmful_promotions == 0


def test_a_share_that_moved_is_mended_by_a_map(replayed):
    assert replayed("prior")["homeostat"].recalibrations >= 1
