"""Quality: whether a window's data can be trusted at all, before anything is said about drift.

Takes the profiles of reference and window, and how many rows the server refused. Gives findings:
`block` where a column or the window is broken, `warn` where someone should look. What the
reference itself went through in any stretch as long as the window is never called broken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy import special

from homeostat.profile import Column, Profile
from homeostat.records import Finding, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Counts: TypeAlias = NDArray[np.int64]

NULL_BLOCK = 0.5  # rise of the null share above the most that the reference saw
NULL_WARN = 0.1
UNSEEN_BLOCK = 0.5  # the same for levels that training never saw
UNSEEN_WARN = 0.05
REFUSED_BLOCK = 0.5  # share of all rows sent that the server refused
REFUSED_WARN = 0.05
VOLUME_WARN = 0.1  # rows per block, as a share of the reference's
CONSTANT_SHARE = 0.9  # a column is no constant to begin with below this share of one value
SIGNIFICANCE = 1e-3  # what is found in a column must be rarer than this by chance of its rows


def quality(
    reference: Profile, current: Profile, window: Window, refused: Mapping[str, int]
) -> tuple[Finding, ...]:
    """The findings of one window: those about all of it first, then by column.

    `current` holds the rows of `window`; `refused` counts refused rows by reason.
    """
    whole = (_refused(current.rows, refused), _volume(reference, current, window))
    columns = (
        _column(column, before, current.column(column.name)[1])
        for column, before in zip(reference.columns, reference.counts, strict=True)
        if column.kind != "prediction"
    )
    return tuple(finding for finding in (*whole, *columns) if finding is not None)


def _refused(rows: int, refused: Mapping[str, int]) -> Finding | None:
    count = sum(refused.values())
    share = count / max(count + rows, 1)
    if share <= REFUSED_WARN:
        return None
    main = max(refused, key=lambda reason: (refused[reason], reason))
    return Finding(
        "refused_rows",
        "block" if share > REFUSED_BLOCK else "warn",
        None,
        share,
        REFUSED_BLOCK if share > REFUSED_BLOCK else REFUSED_WARN,
        f"{share:.0%} of the rows sent were refused, most of them for {main!r}.",
    )


def _volume(reference: Profile, current: Profile, window: Window) -> Finding | None:
    if not len(reference.blocks):
        return None
    usual = reference.rows / len(reference.blocks)
    # The traffic of training is not always that of serving: a collapse is worth a look, no more.
    share = current.rows / max(window.length / current.block, 1.0) / usual
    if share >= VOLUME_WARN:
        return None
    message = f"The window holds {share:.1%} of the rows that the reference holds in such a time."
    return Finding("row_volume", "warn", None, share, VOLUME_WARN, message)


def _column(column: Column, before: Counts, after: Counts) -> Finding | None:
    """The gravest finding about one column; the others would only be its echo."""
    rows, length = int(after.sum()), len(after)
    if not rows or not before.sum():
        return None
    null = after[:, -1].sum()
    usual = _most(before, -1, length)
    if null == rows:
        if usual**rows > SIGNIFICANCE:
            return None
        message = f"{column.name!r} is null throughout; the reference held values."
        return Finding("empty_column", "block", column.name, 1.0, usual, message)
    return (
        _spike("null_spike", column, int(null), rows, usual)
        or _unseen(column, before, after)
        or _constant(column, before, after)
    )


def _unseen(column: Column, before: Counts, after: Counts) -> Finding | None:
    if column.kind != "category":
        return None
    usual = _most(before, -2, len(after))
    return _spike("unseen_levels", column, int(after[:, -2].sum()), int(after.sum()), usual)


SPIKES = {
    "null_spike": (NULL_BLOCK, NULL_WARN, "null"),
    "unseen_levels": (UNSEEN_BLOCK, UNSEEN_WARN, "a level that training never saw"),
}


def _spike(check: str, column: Column, count: int, rows: int, usual: float) -> Finding | None:
    """`count` of `rows` are null or unseen, where the reference had at most the share `usual`."""
    block, warn, what = SPIKES[check]
    share = count / rows
    rise = share - usual
    if rise <= warn or _tail(count, rows, usual) > SIGNIFICANCE:
        return None
    return Finding(
        check,
        "block" if rise > block else "warn",
        column.name,
        share,
        usual + (block if rise > block else warn),
        f"{column.name!r} is {what} in {share:.0%} of the rows, {usual:.0%} at most before.",
    )


def _constant(column: Column, before: Counts, after: Counts) -> Finding | None:
    values = after[:, :-1].sum(axis=0)
    place = int(values.argmax())
    rows = int(values.sum())
    if int(values[place]) != rows or (column.ordered and place in (0, len(values) - 1)):
        # The outer bins are open: what lies in one may differ by any amount.
        return None
    usual = _most(before[:, :-1], place, len(after))
    if usual > CONSTANT_SHARE or usual**rows > SIGNIFICANCE:
        return None
    what = "one range" if column.ordered else "one level"
    message = f"{column.name!r} holds {what} only, at most {usual:.0%} of the rows before."
    return Finding("constant_column", "warn", column.name, 1.0, CONSTANT_SHARE, message)


def _most(counts: Counts, cell: int, length: int) -> float:
    """The largest share of one cell in any run of `length` blocks of the reference."""
    runs = min(length, len(counts))
    sums = np.cumsum(np.vstack([np.zeros_like(counts[:1]), counts]), axis=0)
    stretches = sums[runs:] - sums[:-runs]
    sizes = stretches.sum(axis=1)
    held = sizes > 0
    return float((stretches[held, cell] / sizes[held]).max()) if held.any() else 0.0


def _tail(count: int, rows: int, share: float) -> float:
    """P(X ≥ count) of a binomial variable, rows independent."""
    return float(special.bdtrc(count - 1, rows, share)) if count else 1.0
