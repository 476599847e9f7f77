"""The gate: whether the challenger is better than the champion, with harm excluded.

It takes the losses of both on the same labelled rows, which neither has seen, the event time of
each row, and the parts of them in which the challenger may not be worse either. It gives a Verdict
and touches nothing; whatever it cannot judge keeps the champion, so no data makes it raise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from homeostat.records import Slice, Task, Verdict, Window
from homeostat.schema import Target
from homeostat.scoring import losses as losses_of
from homeostat.settings import Gate
from homeostat.slices import Part, compared
from homeostat.stats import BlockMean, block_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

LARGEST = 1e100
"""A loss beyond it counts as not finite; squares of its sums still fit a 64-bit number."""

KEPT = 10
"""Slices that a verdict holds, those that speak most against the challenger."""

TIE = 1e-9
"""Differences below this share of the champion's loss are rounding, not merit."""


def judge(
    *,
    occurred_at: NDArray[Any],
    champion: Floats,
    challenger: Floats,
    metric: str,
    gate: Gate,
    block: timedelta,
    window: Window,
    classes: int | None = None,
    parts: Sequence[Part] = (),
    level: float | None = None,
    share: float = 1.0,
) -> Verdict:
    """Whether the challenger replaces the champion.

    `champion` and `challenger` are losses, shape (rows,), of the same rows in the same order, as
    of `scoring.losses`; `occurred_at` is their event time, datetime64. Rows of one `block` of
    time are taken as alike. With d = challenger − champion, the challenger is promoted when the
    mean of d is negative and its one-sided upper bound lies no higher than `gate.delta` times the
    champion's mean loss, unless it is worse in one of `parts`, as `slices.compared` tells. The
    bound's confidence is 1 − `share` · `level`: `level` is 1 − `gate.confidence` if not given, and
    `share` the part of it that this one has of several challengers (weighted Bonferroni).
    `classes` is how many distinct labels the rows have, None in a regression. With the metric
    `rmse` the test is on squared errors: `champion` and `challenger` of the verdict are roots,
    `difference`, `low` and `high` are squared units.
    """
    try:
        times = np.asarray(occurred_at).astype("datetime64[us]")
        old = np.asarray(champion, dtype=np.float64)
        new = np.asarray(challenger, dtype=np.float64)
    except (TypeError, ValueError, ArithmeticError):
        return unjudged("Losses or times of the rows cannot be read as numbers.", window, metric)
    unfit = _unfit(times, old, new)
    if unfit:
        return replace(unjudged(unfit, window, metric), rows=old.shape[0] if old.ndim else 0)
    keys = block_keys(times, block)
    paired = BlockMean.of(new - old, keys)
    verdict = _measured(paired, _mean(old), _mean(new), metric, window)
    few = _few(paired, gate, classes)
    if few:
        return replace(verdict, reason=f"{few} The champion stays.")
    level = 1 - gate.confidence if level is None else level
    allowed = gate.delta * _mean(old)
    p_value = min(1.0, replace(paired, mean=allowed - paired.mean).p_greater() / share)
    verdict = replace(verdict, p_value=p_value, level=level)
    verdict = _ruled(verdict, paired, allowed, share * level, TIE * abs(_mean(old)))
    return _sliced(verdict, compared(parts, old, new, keys, gate))


def judge_first(
    *,
    training: NDArray[Any],
    labels: NDArray[Any],
    losses: Floats,
    task: Task,
    occurred_at: NDArray[Any],
    block: timedelta,
    window: Window,
) -> Verdict:
    """How the first model does beside the constant prediction; it reports and never refuses.

    `training` are the labels it was fitted on, `labels` those of the judging rows and `losses`
    its losses on them. The constant is the share of each class in training, or the mean; its loss
    stands where the champion's would. A model that is worse is released all the same, since there
    is nothing to serve instead, and the reason says so.
    """
    metric = "rmse" if task == "regression" else "log_loss"
    try:
        constant = _constant(training, labels, task)
        times = np.asarray(occurred_at).astype("datetime64[us]")
        own = np.asarray(losses, dtype=np.float64)
    except (TypeError, ValueError, ArithmeticError):
        return _first(unjudged("The first model could not be judged.", window, metric))
    unfit = _unfit(times, constant, own)
    if unfit:
        return _first(unjudged(unfit, window, metric))
    paired = BlockMean.of(own - constant, block_keys(times, block))
    verdict = _measured(paired, _mean(constant), _mean(own), metric, window)
    name = _NAMES[metric]
    compared = (
        f"{name} {verdict.challenger:.4g} against {verdict.champion:.4g} of the constant "
        f"prediction, on {paired.rows:,} rows in {paired.blocks} blocks."
    )
    if paired.mean < 0:
        return _first(replace(verdict, reason=f"The first model: {compared}"))
    reason = f"The first model is no better than a constant, released for want of any: {compared}"
    return _first(replace(verdict, reason=reason))


def unjudged(problem: str, window: Window | None, metric: str = "") -> Verdict:
    """The verdict where nothing could be compared; `problem` is one sentence."""
    return Verdict(
        promote=False,
        reason=problem,
        metric=metric,
        champion=None,
        challenger=None,
        difference=None,
        low=None,
        high=None,
        rows=0,
        blocks=0,
        window=window,
    )


_NAMES = {"log_loss": "log loss", "rmse": "RMSE"}


def _first(verdict: Verdict) -> Verdict:
    return replace(verdict, promote=True)


def _unfit(times: NDArray[Any], old: Floats, new: Floats) -> str:
    """Why nothing can be computed from these arrays; empty when something can."""
    if not (times.ndim == old.ndim == new.ndim == 1) or not len(times) == len(old) == len(new):
        return "Champion, challenger and times do not have one value for each row."
    if not len(old):
        return "There is no labelled row to judge by."
    if np.isnat(times).any():
        return "A row has no event time."
    for name, values in (("champion", old), ("challenger", new)):
        if not (np.abs(values) <= LARGEST).all():  # False for NaN as well
            return f"A loss of the {name} is not a finite number."
    return ""


def _few(paired: BlockMean, gate: Gate, classes: int | None) -> str:
    """Why the rows do not suffice to judge; empty when they do."""
    if paired.rows < gate.min_rows:
        return f"Only {paired.rows} rows, gate.min_rows asks for {gate.min_rows}."
    if paired.blocks < max(2, gate.min_blocks):
        return f"Only {paired.blocks} blocks of time, gate.min_blocks asks for {gate.min_blocks}."
    if classes is not None and classes < 2:
        return "All rows have the same label, which tells models apart by their bias alone."
    return ""


def _ruled(
    verdict: Verdict, paired: BlockMean, allowed: float, level: float, tie: float
) -> Verdict:
    """The verdict on rows that suffice: `allowed` is the difference that is no harm yet, `tie` the
    one that is none.
    """
    compared = (
        f"{_NAMES.get(verdict.metric, verdict.metric)} {verdict.challenger:.4g} against "
        f"{verdict.champion:.4g} on {paired.rows:,} rows in {paired.blocks} blocks"
    )
    if abs(paired.mean) <= tie:
        return replace(verdict, reason=f"A tie keeps the champion: {compared}.")
    if paired.mean > 0:
        return replace(verdict, reason=f"The challenger is worse: {compared}.")
    upper = paired.bound(1 - level)
    sure = f"the {100 * (1 - level):.4g}% bound of the difference is {upper:+.4g}"
    if upper <= allowed:
        reason = f"The challenger is better: {compared}; {sure}, allowed is {allowed:+.4g}."
        return replace(verdict, promote=True, reason=reason)
    reason = f"Harm is not excluded: {compared}, but {sure}, allowed is {allowed:+.4g}."
    return replace(verdict, reason=reason)


def _sliced(verdict: Verdict, found: Sequence[Slice]) -> Verdict:
    """The verdict with its slices, and without a promotion where one of them is worse."""
    name = verdict.metric
    rooted = [
        replace(one, champion=_unit(one.champion, name), challenger=_unit(one.challenger, name))
        for one in found
    ]
    verdict = replace(verdict, sliced=len(rooted), slices=tuple(rooted[:KEPT]))
    worse = [one for one in rooted if one.worse]
    if not worse or not verdict.promote:
        return verdict
    first = worse[0]
    others = f" and in {len(worse) - 1} more slices" if len(worse) > 1 else ""
    reason = (
        f"The challenger is worse where {first.column} is {first.level}{others}: "
        f"{_NAMES.get(name, name)} {first.challenger:.4g} against "
        f"{first.champion:.4g} on {first.rows:,} rows in {first.blocks} blocks "
        f"(p = {first.adjusted_p_value:.2g}, {len(rooted)} slices). Over all rows: {verdict.reason}"
    )
    return replace(verdict, promote=False, reason=reason)


def _unit(loss: float, metric: str) -> float:
    """A mean loss in the metric's unit."""
    return math.sqrt(max(loss, 0)) if metric == "rmse" else loss


def _measured(paired: BlockMean, old: float, new: float, metric: str, window: Window) -> Verdict:
    """The numbers of a verdict that does not promote yet."""
    told = paired.interval()
    return Verdict(
        promote=False,
        reason="",
        metric=metric,
        champion=_unit(old, metric),
        challenger=_unit(new, metric),
        difference=paired.mean,
        low=told.low,
        high=told.high,
        rows=paired.rows,
        blocks=paired.blocks,
        window=window,
    )


def _mean(values: Floats) -> float:
    return math.fsum(values.tolist()) / len(values)


def _constant(training: NDArray[Any], labels: NDArray[Any], task: Task) -> Floats:
    """The loss of the constant prediction on each judging row, shape (rows,)."""
    if task == "regression":
        fitted = _mean(np.asarray(training, dtype=np.float64))
        with np.errstate(over="ignore", invalid="ignore"):  # not finite is refused later
            return np.asarray((fitted - np.asarray(labels, dtype=np.float64)) ** 2)
    known, counts = np.unique(np.asarray(training).astype(str), return_counts=True)
    names = tuple(sorted({*known.tolist(), *np.asarray(labels).astype(str).tolist()}))
    share = dict(zip(known.tolist(), (counts / counts.sum()).tolist(), strict=True))
    output = np.tile([share.get(name, 0.0) for name in names], (len(labels), 1))
    target = Target("label", "multiclass", "str", names)
    return losses_of(output, np.asarray(labels).astype(str), target)
