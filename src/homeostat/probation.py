"""Probation: whether a champion does worse than the release that it replaced, looked at offline.

Takes the stores, the trainer that scores, and the settings. Gives the look that is due as a
`Trial`, on mature rows newer than both; the server takes no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from homeostat import lineage, quarantine
from homeostat.audit import jsonable
from homeostat.challenge import Challenge
from homeostat.gate import TIE
from homeostat.past import MOVES, PROBATION
from homeostat.records import Json, Release, Trial, Window
from homeostat.schema import Schema
from homeostat.stats import CONFIDENCE, BlockMean, block_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]


def look(by: Challenge, champion: Release, now: datetime) -> Trial | None:
    """The looks that are due, each recorded in the audit chain: one that finds the champion worse,
    or else that at the newest promotion; None where none is due.

    A promotion is looked at `decide.probation` times, each time on all whole windows since. With
    d = champion's loss − loss of the release it replaced, the champion is worse where the one-sided
    p-value of the mean of d being no greater than 0 is at most .05 ÷ looks: over
    all looks a champion that is as good is called worse with a probability of 5 % at most
    (Bonferroni). A look that said worse is given again until another release serves.
    """
    if not by.settings.decide.probation:
        return None
    lines, found = by.audit.lines(), []
    for pair in _promotions(by, champion, lines):
        taken = [each for each in _taken(lines) if each.release == pair[0].id]
        if taken and taken[-1].worse:
            return taken[-1]
        trial = _due(by, champion, pair, taken[-1].look if taken else 0, now)
        if trial is not None:
            by.audit.write(PROBATION, now, jsonable(trial))
            found.append(trial)
    return next((each for each in found if each.worse), found[0] if found else None)


def _promotions(
    by: Challenge, champion: Release, lines: Sequence[Mapping[str, Json]]
) -> Iterator[tuple[Release, Release]]:
    """Each release of the champion's model with the one it replaced, but for those to which the
    loop came back.
    """
    moved = [line["body"]["release"] for line in lines if line["kind"] in MOVES]
    for each in lineage.kin(by.releases, champion):
        if each.manifest["parent"] is None or moved.count(each.id) != 1:
            return
        yield each, by.releases.get(each.manifest["parent"])


def _taken(lines: Sequence[Mapping[str, Json]]) -> Iterator[Trial]:
    for line in lines:
        if line["kind"] == PROBATION:
            body = dict(line["body"])
            edges = (datetime.fromisoformat(body["window"][name]) for name in ("start", "end"))
            yield Trial(**{**body, "window": Window(*edges)})


def _due(
    by: Challenge, champion: Release, pair: tuple[Release, Release], taken: int, now: datetime
) -> Trial | None:
    (promotion, before), settings = pair, by.settings
    looks, length = settings.decide.probation, settings.monitor.window
    start = max(promotion.seen_until, before.seen_until, *_judged(promotion))
    number = min((now - settings.labels.delay - start) // length, looks)
    if number <= taken:
        return None
    window = Window(start, start + number * length)
    rows, times = _losses(by, (champion, before), window, now)
    if not len(times):
        return None
    paired = BlockMean.of(rows[0] - rows[1], block_keys(times, settings.monitor.block))
    if paired.rows < settings.gate.min_rows or paired.blocks < settings.gate.min_blocks:
        return None
    new, old = (float(losses.mean()) for losses in rows)
    level = (1 - CONFIDENCE) / looks
    p_value = paired.p_greater()
    worse = p_value <= level and paired.mean > TIE * abs(old)
    compared = (
        f"loss {new:.4g} against {old:.4g} of {before.short}, which it replaced, on "
        f"{paired.rows:,} rows in {paired.blocks} blocks; p = {p_value:.2g}, asked is {level:.2g}"
    )
    told = "The champion is worse" if worse else "The champion is not shown to be worse"
    return Trial(
        release=promotion.id,
        replaced=before.id,
        look=number,
        window=window,
        champion=new,
        before=old,
        difference=paired.mean,
        p_value=p_value,
        level=level,
        rows=paired.rows,
        blocks=paired.blocks,
        worse=worse,
        reason=f"{told}: {compared}.",
    )


def _judged(promotion: Release) -> list[datetime]:
    """The end of the rows that the gate judged it by, which are no new evidence."""
    verdict = promotion.manifest["gate"]
    window = verdict and verdict["window"]
    return [datetime.fromisoformat(window["end"])] if window else []


def _losses(
    by: Challenge, pair: Sequence[Release], window: Window, now: datetime
) -> tuple[list[Floats], NDArray[Any]]:
    """The losses of each release on the labelled rows that no quarantine withholds from either,
    and their event times.
    """
    tables = []
    for release in pair:
        schema = Schema.from_json(by.releases.object(release, "schema"))
        rows = by.journal.read(window, as_of=now, labelled=True, schema=schema)
        tables.append(quarantine.sound(rows, by.audit, schema))
    both = [_among(tables[0], tables[1]), _among(tables[1], tables[0])]
    if not both[0].num_rows:
        return [np.empty(0), np.empty(0)], np.empty(0, dtype="datetime64[us]")
    found = [
        lineage.losses(by.trainer, by.releases, release, rows)
        for release, rows in zip(pair, both, strict=True)
    ]
    return found, both[0].column("occurred_at").to_numpy()


def _among(rows: pa.Table, others: pa.Table) -> pa.Table:
    ids = others.column("prediction_id").combine_chunks()
    return rows.filter(pc.is_in(rows.column("prediction_id"), ids))
