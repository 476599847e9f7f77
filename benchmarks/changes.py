"""Changes made to the rows of a window on purpose, to see who notices.

Each takes the rows of one window, by column, and a random generator, and gives the columns that it
replaced; None where the rows have no column that it could change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

Changed = Mapping[str, np.ndarray]
Held = Mapping[str, np.ndarray]
"""The values of each number in the whole stream, ascending, distinct ones repeated."""

Change = Callable[[pa.Table, Held, np.random.Generator], Changed | None]

COMMON = 0.1  # share that a level has at least, to be moved


def held(columns: pa.Table) -> Held:
    """Of the numbers that vary."""
    values = {
        name: np.sort(columns[name].drop_null().to_numpy())
        for name in columns.column_names
        if pa.types.is_floating(columns[name].type)
    }
    return {name: found for name, found in values.items() if len(found) and found[0] < found[-1]}


def number(rows: pa.Table, whole: Held, random: np.random.Generator) -> str | None:
    names = [name for name in whole if rows[name].null_count < len(rows)]
    return str(random.choice(names)) if names else None


def snapped(values: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The nearest values that the stream holds: whole numbers stay whole, and nothing is seen
    merely because it lies between the steps of a scale. What lies outside stays as it is.
    """
    above = np.clip(np.searchsorted(whole, values), 1, len(whole) - 1)
    low, high = whole[above - 1], whole[above]
    nearest = np.where(values - low < high - values, low, high)
    return np.where((values < whole[0]) | (values > whole[-1]) | np.isnan(values), values, nearest)


def shifted(sigmas: float, share: float = 1.0) -> Change:
    """One number by as many of its standard deviations, in that share of the rows."""

    def change(rows: pa.Table, whole: Held, random: np.random.Generator) -> Changed | None:
        name = number(rows, whole, random)
        if name is None:
            return None
        some = random.random(len(rows)) < share
        values = rows[name].to_numpy()
        moved = snapped(values + sigmas * whole[name].std(), whole[name])
        return {name: np.where(some, moved, values)}

    return change


def widened(rows: pa.Table, whole: Held, random: np.random.Generator) -> Changed | None:
    """One number's variance, about its mean in the window, doubled."""
    name = number(rows, whole, random)
    if name is None:
        return None
    values = rows[name].to_numpy()
    middle = np.nanmean(values)
    return {name: snapped(middle + np.sqrt(2) * (values - middle), whole[name])}


def moved(points: float) -> Change:
    """One level's share, by that much, from all others alike."""

    def change(rows: pa.Table, whole: Held, random: np.random.Generator) -> Changed | None:
        options = []
        for name in rows.column_names:
            if not pa.types.is_string(rows[name].type):
                continue
            values = np.asarray(rows[name].to_pylist(), dtype=object)
            levels, counts = np.unique(values[values != None], return_counts=True)  # noqa: E711
            shares = counts / len(values)
            common = (shares >= COMMON) & (shares <= 1 - COMMON - points)
            options += [(name, levels[i]) for i in np.flatnonzero(common)]
        if not options:
            return None
        name, level = options[random.integers(len(options))]
        values = np.asarray(rows[name].to_pylist(), dtype=object)
        others = np.flatnonzero((values != level) & (values != None))  # noqa: E711
        values[random.permutation(others)[: round(points * len(values))]] = level
        return {name: values}

    return change


def mixed(rows: pa.Table, whole: Held, random: np.random.Generator) -> Changed | None:
    """One column's values dealt out anew among the rows: each column by itself stays the same."""
    name = str(random.choice(rows.column_names))
    order = random.permutation(len(rows))
    return {name: np.asarray(rows[name].to_pylist(), dtype=object)[order]}


CHANGES: dict[str, Change] = {
    "shift of .1 σ": shifted(0.1),
    "shift of .25 σ": shifted(0.25),
    "shift of .5 σ": shifted(0.5),
    "shift of 1 σ": shifted(1.0),
    "level, 2 points": moved(0.02),
    "level, 5 points": moved(0.05),
    "level, 10 points": moved(0.1),
    "variance doubled": widened,
    "a fifth of the rows by 1 σ": shifted(1.0, share=0.2),
    "a column shuffled": mixed,
}
