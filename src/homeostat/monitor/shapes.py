"""Shapes: how each column is distributed in reference and window, in few bins for people's eyes.

Takes the profiles that the drift tests take, and the schema for the names of their cells. Gives one
`Shape` per column; no verdict rests on it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from homeostat.profile import Profile
from homeostat.records import Shape
from homeostat.schema import Feature, Schema

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

BINS = 24  # of a number, beside those below, above and for null
TINY = float(np.finfo(np.float64).tiny)  # the number next to 0 is no text for people
LEVELS = 20  # of a category that are told apart


def shapes(reference: Profile, current: Profile, schema: Schema) -> tuple[Shape, ...]:
    """The shares of rows in each bin, both sides of each column; without rows, all are 0.

    A number with many bins is drawn in bins of equal width from its second edge to the one before
    the last, so that no single far value decides the scale, the rows of a bin taken as spread
    evenly in it; other columns keep their cells. Null is the last.
    """
    found = []
    for feature in schema.features:
        sides = [_counts(profile, feature.name) for profile in (reference, current)]
        labels, before, after = _drawn(feature, *sides)
        found.append(Shape(feature.name, labels, tuple(before.tolist()), tuple(after.tolist())))
    return tuple(found)


def _counts(profile: Profile, name: str) -> Floats:
    counts = profile.column(name)[1].sum(axis=0).astype(float)
    return np.asarray(counts / max(counts.sum(), 1.0))


def _drawn(
    feature: Feature, before: Floats, after: Floats
) -> tuple[tuple[str, ...], Floats, Floats]:
    if feature.kind == "boolean":
        return ("false", "true", "null"), before, after
    if feature.kind == "category":
        return _levels(feature, before, after)
    edges = np.asarray(feature.edges, dtype=float)
    if len(edges) > BINS:
        grid = np.linspace(edges[1], edges[-2], BINS + 1)
        before, after = (_rebinned(shares, edges, grid) for shares in (before, after))
        edges = grid
    if not len(edges):
        return ("any", "null"), before, after
    ends = [f"{edge if abs(edge) >= TINY else 0.0:.4g}" for edge in edges.tolist()]
    between = [f"{low} to {high}" for low, high in pairwise(ends)]
    return (f"up to {ends[0]}", *between, f"above {ends[-1]}", "null"), before, after


def _rebinned(shares: Floats, edges: Floats, grid: Floats) -> Floats:
    """Shares below, in each bin of `grid`, above, and null; from those between `edges`."""
    below = shares[:-1].cumsum()
    at = np.interp(grid, edges, below[:-1])
    return np.concatenate([[at[0]], np.diff(at), [below[-1] - at[-1], shares[-1]]])


def _levels(
    feature: Feature, before: Floats, after: Floats
) -> tuple[tuple[str, ...], Floats, Floats]:
    """The levels that hold most in either sample, in the schema's order, and the others as one."""
    known = len(feature.levels)
    larger = np.maximum(before[:known], after[:known])
    top = np.sort(np.argsort(-larger, kind="stable")[:LEVELS])
    rest = np.setdiff1d(np.arange(known), top)

    def few(shares: Floats) -> Floats:
        return np.concatenate([shares[top], [shares[rest].sum() + shares[-2], shares[-1]]])

    names = [feature.levels[place] for place in top.tolist()]
    return (*names, "all others", "null"), few(before), few(after)
