"""The text of the `train.py` that a project made from a data file begins with.

It takes the file, the target and how times are read. It gives a script whose `load()` reads the
file and whose `fit()` is a sound default learner, for the user to change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template

from homeostat.schema import Target


def script(data: Path, root: Path, target: Target, time: str, reading: Mapping[str, str]) -> str:
    """`train.py` for the rows of `data` in a project in `root`.

    `reading` has for each column of times the arguments of `pd.to_datetime` after the column;
    empty where the file holds times already. A file inside the project is named relative to it.
    """
    full = data.resolve()
    inside = full.is_relative_to(root)
    parquet = full.name.lower().endswith(".parquet")
    conversions = "".join(
        f"    frame[{text(name)}] = pd.to_datetime(frame[{text(name)}], {code})\n"
        for name, code in reading.items()
        if code
    )
    where = full.relative_to(root).as_posix() if inside else str(full)
    kind = "Regressor" if target.task == "regression" else "Classifier"
    return _TRAIN.substitute(
        data=f"ROOT / {text(where)}" if inside else f"Path({text(where)})",
        target=text(target.name),
        time=text(time),
        read="read_parquet(DATA)" if parquet else "read_csv(DATA, low_memory=False)",
        conversions=conversions,
        learner=f"HistGradientBoosting{kind}",
    )


def text(value: str) -> str:
    """A Python literal, in the quotes that formatters prefer."""
    return json.dumps(value, ensure_ascii=False)


_TRAIN = Template('''\
"""The model of this project: which rows there are, and how a model is fitted to them.

Homeostat calls load() before every training and keeps the rows that are new to it; fit() gets
rows that have a label. Whatever follows scikit-learn's protocol may be returned.
"""

import sys
from pathlib import Path

import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import $learner
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OrdinalEncoder

ROOT = Path(__file__).resolve().parents[2]
DATA = $data
TARGET = $target
TIME = $time


def load() -> pd.DataFrame:
    """All labelled rows that there are now: features, target and time."""
    frame = pd.$read
$conversions    return frame.dropna(subset=[TARGET, TIME])


def fit(frame: pd.DataFrame) -> Pipeline:
    """A model of the target: boosted trees, which take nulls and unseen categories as they come."""
    features = frame.drop(columns=[TARGET, TIME], errors="ignore").dropna(axis=1, how="all")
    categories = list(features.select_dtypes(exclude="number"))
    numbers = [name for name in features if name not in categories]
    encode = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=float("nan"), max_categories=250
    )
    columns = ColumnTransformer(
        [("categories", encode, categories), ("numbers", "passthrough", numbers)]
    )
    trees = $learner(
        categorical_features=list(range(len(categories))), random_state=0
    )
    return make_pipeline(columns, trees).fit(features, frame[TARGET])


if __name__ == "__main__":
    from homeostat.cli import main

    main(["train", "--project", str(ROOT), *sys.argv[1:]])
''')
