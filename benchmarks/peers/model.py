"""The model that every system of the benchmark serves, and the rows it is asked about.

It takes nothing from outside: all rows are drawn from a seed. It gives the pipeline, fitted alike
in each environment, and rows for requests; as it stands, it is also a project's `train.py`.
"""

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

NUMBERS = [f"number_{i}" for i in range(10)]
LEVELS = {f"category_{i}": [f"level_{j}" for j in range(n)] for i, n in enumerate((4, 8, 16, 32))}
FEATURES = [*NUMBERS, *LEVELS]
ROWS, DAYS = 20_000, 100


def drawn(count: int, seed: int) -> pd.DataFrame:
    """`count` rows of all features; numbers have four decimals, as clients send them."""
    draw = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {
        name: (draw.normal(10 * i, 1 + i, count)).round(4) for i, name in enumerate(NUMBERS)
    }
    for name, levels in LEVELS.items():
        columns[name] = draw.choice(levels, count)
    return pd.DataFrame(columns)


def load() -> pd.DataFrame:
    """The labelled rows: features, `target` (0 or 1) and `occurred_at`."""
    frame = drawn(ROWS, seed=0)
    scaled = sum((frame[name] - 10 * i) / (1 + i) for i, name in enumerate(NUMBERS[:5]))
    level = frame["category_3"].str[6:].astype(int) / 16 - 1
    noise = np.random.default_rng(1).normal(0, 1, ROWS)
    frame["target"] = (scaled * level + frame["category_0"].eq("level_1") + noise > 0.5).astype(int)
    start = pd.Timestamp("2025-01-01", tz="UTC")
    frame["occurred_at"] = start + pd.to_timedelta(np.arange(ROWS) * DAYS / ROWS, unit="D")
    return frame


def fit(frame: pd.DataFrame) -> Pipeline:
    """Ten scaled numbers, four one-hot categories, a hundred boosted trees."""
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), NUMBERS),
            ("categories", OneHotEncoder(handle_unknown="ignore", sparse_output=False), [*LEVELS]),
        ]
    )
    trees = HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=0)
    return make_pipeline(columns, trees).fit(frame[FEATURES], frame["target"])
