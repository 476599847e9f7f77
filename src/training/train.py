"""The flights project: whether a flight out of New York will land more than 15 minutes late.

`load()` gives the labelled rows there are, `fit(frame)` a fitted estimator; Homeostat calls both.
As a script this makes the first release.
"""

from pathlib import Path

import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from homeostat import flights, load_project
from homeostat.cli import main

ROOT = Path(__file__).resolve().parents[2]
FEBRUARY = pd.Timestamp("2013-02-01", tz="UTC")


def load() -> pd.DataFrame:
    """The flights that had landed by the newest event time in the journal; January at least."""
    newest = load_project(ROOT).journal.newest(source="serve")
    now = FEBRUARY if newest is None else max(FEBRUARY, pd.Timestamp(newest))
    year = flights.read()
    return year[year["labelled_at"] < now].astype({flights.TARGET: "int64"})


def fit(frame: pd.DataFrame) -> Pipeline:
    """A hundred boosted trees, scikit-learn's default; carrier and route are split as categories.

    Early stopping is off: its random hold-out shares days with the rows that it is to judge.
    """
    places = len(flights.CATEGORICAL)
    levels = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1
    )
    columns = make_column_transformer((levels, flights.CATEGORICAL), remainder="passthrough")
    trees = HistGradientBoostingClassifier(
        categorical_features=range(places), early_stopping=False, random_state=0
    )
    return make_pipeline(columns, trees).fit(frame[flights.FEATURES], frame[flights.TARGET])


if __name__ == "__main__":
    main(["train", "--project", str(ROOT)])
