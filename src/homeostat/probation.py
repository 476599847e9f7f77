"""Probation: whether a champion does worse than the release that it replaced, looked at offline.

Takes the stores, the trainer that scores, and the settings. Gives the look that is due as a
`Trial`, on mature rows newer than both; the server takes no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

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


_MENDS = {"bare": "without its map", "earlier": "by the map of the release that it replaced"}


def look(by: Challenge, champion: Release, now: datetime) -> Trial | None:
    """The looks that are due, each recorded in the audit chain: one that finds the champion worse,
    or else that at the newest promotion; None where none is due.

    A promotion is looked at `decide.probation` times, each time on all whole windows since. With
    d = champion's loss − loss of the release it replaced, the champion is worse where the one-sided
    p-value of the mean of d being no greater than 0 is at most .05 ÷ looks: over
    all looks a champion that is as good is called worse with a probability of 5 % at most
    (Bonferroni). A look that said worse is given again until another release serves.

    Where a promotion brought a model and that model would be no worse on these rows bare, or by the
    map of the release that was replaced, `instead` says so: not the model is to blame.
    """
    if not by.settings.decide.probation:
        return None
    lines, found = by.audit.lines(), []
    moved = max((n for n, line in enumerate(lines) if line["kind"] in MOVES), default=0)
    again = next((each for each in _taken(lines[moved:]) if each.worse), None)
    if again is not None:
        return again
    for pair in _promotions(by, champion, lines):
        taken = max((e.look for e in _taken(lines) if e.release == pair[0].id), default=0)
        trial = _due(by, champion, pair, taken, now)
        if trial is not None:
            by.audit.write(PROBATION, now, jsonable(trial))
            found.append(trial)
    return next((each for each in found if each.worse), found[0] if found else None)


def _promotions(
    by: Challenge, champion: Release, lines: Sequence[Mapping[str, Json]]
) -> Iterator[tuple[Release, Release]]:
    """Each release of the champion's model with the one it replaced, but for those to which the
    loop came back, and for maps that probation itself gave a model, whose own looks go on.
    """
    moved = [line["body"]["release"] for line in lines if line["kind"] in MOVES]
    for each in lineage.kin(by.releases, champion):
        if each.manifest["parent"] is None or moved.count(each.id) != 1:
            return
        if each.manifest["kind"] != "recalibrate" or each.manifest["gate"]["rows"]:
            yield each, by.releases.get(each.manifest["parent"])


def _taken(lines: Sequence[Mapping[str, Json]]) -> Iterator[Trial]:
    for line in lines:
        if line["kind"] == PROBATION:
            body = {"alone": line["body"]["p_value"], **line["body"]}  # older lines lack it
            edges = (datetime.fromisoformat(body["window"][name]) for name in ("start", "end"))
            yield Trial(**{**body, "window": Window(*edges)})


def _due(
    by: Challenge, champion: Release, pair: tuple[Release, Release], taken: int, now: datetime
) -> Trial | None:
    (promotion, before), settings = pair, by.settings
    looks, length = settings.decide.probation, settings.monitor.window
    start = max(promotion.seen_until, before.seen_until, lineage.judged_until(promotion))
    number = min((now - settings.labels.delay - start) // length, looks)
    if number <= taken:
        return None
    window = Window(start, start + number * length)
    found = _compared(by, (champion, before), window, now)
    if found is None:
        return None
    losses, others = found.new.under(found.own), found.old.under(found.earlier)
    paired = BlockMean.of(losses - others, found.keys)
    if paired.rows < settings.gate.min_rows or paired.blocks < settings.gate.min_blocks:
        return None
    new, old = float(losses.mean()), float(others.mean())
    level = (1 - CONFIDENCE) / looks
    p_value = paired.p_greater()
    worse = p_value <= level and paired.mean > TIE * abs(old)
    compared = (
        f"loss {new:.4g} against {old:.4g} of {before.short}, which it replaced, on "
        f"{paired.rows:,} rows in {paired.blocks} blocks; p = {p_value:.2g}, asked is {level:.2g}"
    )
    told = "The champion is worse" if worse else "The champion is not shown to be worse"
    another = champion.manifest["objects"]["model"] != before.manifest["objects"]["model"]
    instead = found.mend(old, maps=settings.decide.recalibrate) if worse and another else ""
    if instead:
        compared += f"; its model is no worse {_MENDS[instead]}"
    return Trial(
        release=promotion.id,
        replaced=before.id,
        look=number,
        window=window,
        champion=new,
        before=old,
        difference=paired.mean,
        p_value=p_value,
        alone=BlockMean.of(found.new.under(()) - found.old.under(()), found.keys).p_greater(),
        level=level,
        rows=paired.rows,
        blocks=paired.blocks,
        worse=worse,
        reason=f"{told}: {compared}.",
        instead=instead,
    )


@dataclass(frozen=True)
class _Compared:
    """The champion and what it replaced, on rows that neither has seen."""

    new: lineage.Bare
    old: lineage.Bare
    own: Sequence[lineage.Map]  # over the champion's model
    earlier: Sequence[lineage.Map]  # over the other
    keys: NDArray[np.int64]  # the block of each row

    def mend(self, loss: float, *, maps: bool) -> str:
        """Of no map and, where there may be `maps`, the earlier one, that by which the champion's
        model did best, if it did no worse than `loss`.
        """
        ways: dict[str, Sequence[lineage.Map]] = {"bare": ()}
        alike = self.new.schema.target == self.old.schema.target
        if maps and alike and self.new.schema.fingerprint == self.old.schema.fingerprint:
            ways["earlier"] = self.earlier
        means = {name: float(self.new.under(of).mean()) for name, of in ways.items()}
        best = min(means, key=lambda name: means[name])
        return best if means[best] <= loss else ""


def _compared(
    by: Challenge, pair: tuple[Release, Release], window: Window, now: datetime
) -> _Compared | None:
    """On the labelled rows that no quarantine withholds from either; None without any."""
    tables = []
    for release in pair:
        schema = Schema.from_json(by.releases.object(release, "schema"))
        rows = by.journal.read(window, as_of=now, labelled=True, schema=schema)
        tables.append(quarantine.sound(rows, by.audit, schema))
    both = [_among(tables[0], tables[1]), _among(tables[1], tables[0])]
    if not both[0].num_rows:
        return None
    new, old = (
        lineage.Bare.of(by.trainer, by.releases, release, rows)
        for release, rows in zip(pair, both, strict=True)
    )
    own, earlier = (lineage.maps(by.releases, release) for release in pair)
    times = both[0].column("occurred_at").to_numpy()
    return _Compared(new, old, own, earlier, block_keys(times, by.settings.monitor.block))


def _among(rows: pa.Table, others: pa.Table) -> pa.Table:
    ids = others.column("prediction_id").combine_chunks()
    return rows.filter(pc.is_in(rows.column("prediction_id"), ids))
