"""What others call drift, computed as they publish it, on the rows of a draw.

It takes a stream and gives, for the reference and the window of a draw, each rule's alarm. All
that these rules need of a column is how often each of its distinct values occurs, so that is
counted once a draw; nulls are dropped, as each of them does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats
from scipy.spatial.distance import jensenshannon
from streams import Draw, Stream

ROWS = 2_000  # that the classifier is shown at most, half of them from each side
FOLDS = 3  # of the cross-validation by which it is judged
LEAST = 1e-4  # what a share of zero counts as in the PSI


@dataclass(frozen=True)
class Column:
    """Distinct values of one column, ascending, and which of them each row holds; −1 is null."""

    number: bool
    values: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Column:
        number = pa.types.is_floating(column.type)
        array = column.combine_chunks()
        held = pc.unique(array.drop_null())
        held = held.take(pc.sort_indices(held)) if len(held) else held
        codes = pc.fill_null(pc.index_in(array, value_set=held, skip_nulls=True), -1)
        return cls(number, np.asarray(held.to_pylist()), codes.to_numpy(zero_copy_only=False))

    def counts(self, rows: np.ndarray) -> np.ndarray:
        return np.bincount(self.codes[rows] + 1, minlength=len(self.values) + 1)[1:]


@dataclass(frozen=True)
class Pair:
    """One column of a draw: counts of its distinct values on both sides."""

    number: bool
    values: np.ndarray
    reference: np.ndarray
    current: np.ndarray

    @cached_property
    def sizes(self) -> tuple[int, int]:
        return int(self.reference.sum()), int(self.current.sum())

    @cached_property
    def gap(self) -> np.ndarray:
        """F − G at each value."""
        n, m = self.sizes
        return np.cumsum(self.reference) / n - np.cumsum(self.current) / m

    def p_value(self) -> float:
        """KS of numbers by its limit, χ² of levels."""
        n, m = self.sizes
        if not self.number:
            return chi_square(self.reference, self.current)
        return float(stats.kstwo.sf(np.abs(self.gap).max(), max(1, round(n * m / (n + m)))))

    def psi(self) -> float:
        """Over ten equal shares of the reference, or over levels."""
        before, after = self.reference, self.current
        if self.number:
            place = np.searchsorted(np.cumsum(before) / before.sum(), np.arange(1, 10) / 10)
            starts = np.unique(np.concatenate([[0], place + 1]))
            starts = starts[starts < len(before)]
            before, after = np.add.reduceat(before, starts), np.add.reduceat(after, starts)
        p, q = (np.maximum(counts / counts.sum(), LEAST) for counts in (before, after))
        return float(((q - p) * np.log(q / p)).sum())

    def wasserstein(self) -> float:
        """Over the standard deviation of the reference."""
        mean = np.average(self.values, weights=self.reference)
        spread = np.sqrt(np.average((self.values - mean) ** 2, weights=self.reference))
        return float(np.abs(self.gap[:-1]) @ np.diff(self.values) / max(spread, 0.001))

    def distance(self, rule: str | None = None, base: float | None = None) -> float:
        """Jensen-Shannon distance, of numbers between the edges of that rule."""
        before, after = self.reference, self.current
        if rule is not None:
            edges = self.edges(rule)
            place = np.clip(np.searchsorted(edges, self.values, side="right") - 1, -1, len(edges))
            place = np.where(self.values == edges[-1], len(edges) - 2, place)
            inside = (place >= 0) & (place < len(edges) - 1)
            before, after = (
                np.bincount(place[inside], counts[inside], len(edges) - 1)
                for counts in (before, after)
            )
            beyond = after.sum() < self.sizes[1]
            if beyond:  # what lies outside is one bin more
                before = np.append(before, 0)
                after = np.append(after, self.sizes[1] - after.sum())
        return float(jensenshannon(before, after, base))

    def edges(self, rule: str) -> np.ndarray:
        """Of equal bins: Sturges' over both sides (Evidently), Doane's over one (NannyML)."""
        counts = self.reference + self.current if rule == "sturges" else self.reference
        held = np.flatnonzero(counts)
        values, counts = self.values[held], counts[held]
        low, high, n = values[0], values[-1], counts.sum()
        bins = np.log2(n) + 1
        mean = np.average(values, weights=counts)
        spread = np.sqrt(np.average((values - mean) ** 2, weights=counts))
        if rule == "doane" and n > 2 and spread > 0:
            skew = np.average(((values - mean) / spread) ** 3, weights=counts)
            bins += np.log2(1 + abs(skew) / np.sqrt(6 * (n - 2) / ((n + 1) * (n + 3))))
        return (
            np.linspace(low, high, int(np.ceil(bins)) + 1) if high > low else np.array([low, high])
        )


def chi_square(before: np.ndarray, after: np.ndarray) -> float:
    """Pearson's test of homogeneity, as `scipy.stats.chi2_contingency` without correction."""
    held = (before + after) > 0
    table = np.array([before[held], after[held]], dtype=float)
    if table.shape[1] < 2:
        return 1.0
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    return float(stats.chi2.sf(((table - expected) ** 2 / expected).sum(), table.shape[1] - 1))


def merged(pair: Pair, values: np.ndarray) -> Pair:
    """The pair with other values in the window; nulls are NaN or None."""
    held = values.astype(float) if pair.number else values
    held = held[np.isfinite(held)] if pair.number else held[held != None]  # noqa: E711
    new, counts = np.unique(held.astype(pair.values.dtype), return_counts=True)
    both = np.union1d(pair.values, new)
    before, after = np.zeros((2, len(both)), dtype=np.int64)
    before[np.searchsorted(both, pair.values)] = pair.reference
    after[np.searchsorted(both, new)] = counts
    return Pair(pair.number, both, before, after)


def classifier(reference: pa.Table, current: pa.Table, seed: int) -> float:
    """Area under the ROC curve of boosted trees, out of fold, that tell the two sides apart.

    A classifier two-sample test (Lopez-Paz and Oquab 2017, ICLR); the larger, the more drift. With
    fewer rows on a side than there are folds it cannot be trained and tells nothing: a half.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    if min(len(reference), len(current)) < FOLDS:
        return 0.5
    random = np.random.default_rng(seed)
    sides = [
        table.take(np.sort(random.permutation(len(table))[: ROWS // 2]))
        for table in (reference, current)
    ]
    table = pa.concat_tables(sides)
    features = []
    for column in table.columns:
        if pa.types.is_floating(column.type):
            features.append(column.to_numpy())
        else:
            codes = column.combine_chunks().cast(pa.string()).dictionary_encode().indices
            features.append(pc.cast(codes, pa.float64()).to_numpy(zero_copy_only=False))
    side = np.repeat([0, 1], [len(part) for part in sides])
    trees = HistGradientBoostingClassifier(
        max_iter=40, max_leaf_nodes=15, early_stopping=False, random_state=0
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    odds = cross_val_predict(trees, np.array(features).T, side, cv=folds, method="predict_proba")
    return float(roc_auc_score(side, odds[:, 1]))


class Peers:
    """The rules of others for the draws of one stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        table = stream.columns
        self.columns = {name: Column.of(table.column(name)) for name in table.column_names}

    def pairs(self, draw: Draw, changed: Mapping[str, np.ndarray] | None = None) -> dict[str, Pair]:
        """Of each column, values of the window in `changed` instead of its own; none empty."""
        before, after = (self.stream.rows(days) for days in (draw.reference, draw.current))
        pairs = {
            name: Pair(c.number, c.values, c.counts(before), c.counts(after))
            for name, c in self.columns.items()
        }
        for name, values in (changed or {}).items():
            pairs[name] = merged(pairs[name], values)
        return {name: pair for name, pair in pairs.items() if min(pair.sizes)}

    def alarms(self, draw: Draw, levels: Iterable[float]) -> dict[float, dict[str, bool]]:
        """Whether each rule calls the window drifted; the first alone depends on the level."""
        pairs, rows = list(self.pairs(draw).values()), len(self.stream.rows(draw.reference))
        smallest = min(pair.p_value() for pair in pairs) * len(pairs)
        evidently = [evidently_drifted(pair, rows) for pair in pairs]
        psi = max(pair.psi() for pair in pairs)
        fixed = {
            "evidently_share": float(np.mean(evidently)) >= 0.5,
            "evidently_any": any(evidently),
            "psi_0.1": psi > 0.1,
            "psi_0.2": psi > 0.2,
            "nannyml": any(nannyml_distance(pair) > 0.1 for pair in pairs),
        }
        return {level: {"ks": smallest <= level, **fixed} for level in levels}


def evidently_drifted(pair: Pair, rows: int) -> bool:
    """Evidently 0.7's default test of a column, which depends on rows and distinct values."""
    distinct = np.count_nonzero(pair.reference + pair.current)
    if rows > 1000:
        if pair.number and distinct > 5:
            return pair.wasserstein() >= 0.1
        return pair.distance() >= 0.1
    if pair.number and distinct > 5:
        n, m = pair.sizes
        method = "exact" if max(n, m) <= 10_000 else "asymp"
        raw = [np.repeat(pair.values, counts) for counts in (pair.reference, pair.current)]
        return stats.ks_2samp(*raw, method=method).pvalue < 0.05
    n, m = pair.sizes
    expected = pair.reference * (m / n)
    if distinct <= 2:
        p, q, both = pair.reference[0] / n, pair.current[0] / m, 0.0
        both = (pair.reference[0] + pair.current[0]) / (n + m)
        spread = np.sqrt(both * (1 - both) * (1 / n + 1 / m))
        return bool(spread > 0 and 2 * stats.norm.sf(abs(p - q) / spread) < 0.05)
    if (expected[pair.current > 0] == 0).any():
        return True  # a level that the reference has not: its test gives infinity
    held = expected > 0
    statistic = ((pair.current[held] - expected[held]) ** 2 / expected[held]).sum()
    return bool(stats.chi2.sf(statistic, held.sum() - 1) < 0.05)


def nannyml_distance(pair: Pair) -> float:
    """NannyML 0.13's default for both kinds of column, in base 2."""
    distinct = np.count_nonzero(pair.reference)
    if pair.number and (distinct > 50 or distinct / pair.sizes[0] > 0.1):
        return pair.distance("doane", 2)
    return pair.distance(None, 2)
