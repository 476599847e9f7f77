"""Drift: whether a window lies further from the reference than this stream does by nature.

Takes the profiles of reference and window. Gives for each column, and for the columns together, a
distance with the threshold that it had to pass; the chance that any of them passes while nothing
has changed is at most `alpha`. What is compared stands in `columns` and `joint`, the nulls in
`stretches` and `nulls`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import special

from homeostat.monitor import joint
from homeostat.monitor.columns import Aspect, Tested, column_tests
from homeostat.monitor.stretches import SMALLEST, Family, Layout
from homeostat.profile import Profile
from homeostat.records import ColumnDrift

COLUMNS, JOINT = "columns", "joint"
STEPS = 50  # halvings until a threshold is found
LEAST = 2  # rows on either side: no distance of a single one could be told from chance


@dataclass(frozen=True, slots=True)
class Drift:
    """The verdict on one window: each column by itself, and what only all together show."""

    columns: tuple[ColumnDrift, ...]
    joint: ColumnDrift | None  # None where not calibrated, and with fewer than two columns
    calibrated: bool = False  # on ten disjoint stretches as long as the window, or more

    @property
    def drifted(self) -> bool:
        together = self.joint is not None and self.joint.drifted
        return together or any(column.drifted for column in self.columns)


NOTHING = Drift((), None)


def drift(
    reference: Profile,
    current: Profile,
    *,
    alpha: float,
    min_effect: float,
    columns: Sequence[str],
) -> Drift:
    """Compare `columns` of the window `current` with the reference, in the order given.

    Distances lie in [0, 1]; p-values are adjusted over all aspects of all columns and over the
    joint tests, so that the chance of any false alarm is at most `alpha`; a distance up to
    `min_effect` is never called drift. Columns without rows on either side are left out. The null
    is made of stretches of the reference (`Family`), as long as the window where ten fit. Where
    they do not, shorter ones stand for them, which holds in a stream that stays as it is but cannot
    know what longer ones do: the verdict is not `calibrated`, there is no joint test, p-values are
    of half the degrees of freedom, times the number of tests, and the test's name says "shorter
    stretches". Below ten blocks nothing tells how they differ: rows are
    taken as independent, the p-values are those of the multinomial null times the number of tests,
    and the name says "rows". Raises ValueError where the two profiles have different bins.
    """
    before, after, names = _aligned(reference, current, columns)
    if not names:
        return NOTHING
    layout = Layout.of(len(before.blocks), len(after.blocks))
    by_column = {
        name: column_tests(
            before.column(name)[0], before.column(name)[1], after.column(name)[1], layout
        )
        for name in names
    }
    together = _joint(before, after, layout)
    rule = _Rule.of(by_column, together, layout, alpha)
    found = tuple(rule.judged(COLUMNS, name, t, min_effect) for name, t in by_column.items())
    joined = [rule.judged(group, JOINT, t, min_effect) for group, t in together.items()]
    return Drift(found, nearest(joined) if joined else None, layout.calibrated)


def nearest(found: Sequence[ColumnDrift]) -> ColumnDrift:
    """The one that drifted furthest, or else came nearest to it, in units of its threshold."""
    return max(found, key=lambda c: (c.drifted, c.distance / max(c.threshold, 1e-12)))


def _aligned(
    reference: Profile, current: Profile, columns: Sequence[str]
) -> tuple[Profile, Profile, list[str]]:
    """The columns that hold rows on both sides, and the blocks in which all of these do."""
    names = []
    for name in columns:
        column, old = reference.column(name)
        other, new = current.column(name)
        if other != column:
            raise ValueError(f"reference and window count {name!r} in different bins")
        if old.sum() and new.sum():
            names.append(name)
    sides = []
    for profile in (reference, current):
        held = np.ones(len(profile.blocks), dtype=bool)
        for name in names:
            held &= profile.column(name)[1].sum(axis=1) > 0
        sides.append(profile.only(names).take(held))
    return sides[0], sides[1], names if all(len(side.blocks) for side in sides) else []


def _joint(before: Profile, after: Profile, layout: Layout) -> dict[str, Tested]:
    if not layout.calibrated or len(before.columns) < 2:
        return {}
    tests = {
        "given the others": joint.given_the_others(before, after, layout),
        "pairs": joint.pairs(before, after, layout),
    }
    return {group: found for group, found in tests.items() if found is not None}


@dataclass(frozen=True)
class _Rule:
    """From p-values among blocks and among rows to one that is adjusted, and back."""

    layout: Layout
    family: Family | None  # None where not calibrated
    tests: int  # of the columns
    alpha: float

    @classmethod
    def of(
        cls,
        columns: Mapping[str, Tested],
        together: Mapping[str, Tested],
        layout: Layout,
        alpha: float,
    ) -> _Rule:
        tests = sum(len(found.aspects) for found in columns.values())
        if not layout.calibrated:
            return cls(layout, None, tests, alpha)
        smallest = {COLUMNS: (tests, np.min([t.smallest for t in columns.values()], axis=0))}
        smallest |= {g: (len(t.aspects), t.smallest) for g, t in together.items()}
        return cls(layout, Family.of(layout.windows, smallest), tests, alpha)

    def adjusted(self, group: str, aspect: Aspect, distance: float) -> float:
        """Never less than what independent rows would give, whatever the stretches say."""
        rows = min(1.0, self.tests * aspect.rows(distance))
        if not self.layout.known:
            return rows
        if self.family is None:
            return max(rows, min(1.0, self.tests * self._blocks(aspect, distance)))
        return max(rows, min(1.0, self.family.p_value(group, self._blocks(aspect, distance))))

    def _blocks(self, aspect: Aspect, distance: float) -> float:
        """The p-value among blocks; of shorter stretches with half the degrees of freedom.

        They are no windows, so that they cannot say how heavy the tails of windows are: the t of
        the p-value is read in a distribution whose tails are heavier.
        """
        p_value = aspect.blocks(distance)
        if self.layout.calibrated or not self.layout.known or p_value >= 1:
            return p_value
        freedom = self.layout.windows - 1
        t = special.stdtrit(freedom, max(p_value, SMALLEST) / 2)
        return float(2 * special.stdtr(freedom / 2, t))

    @cached_property
    def levels(self) -> Mapping[str, float]:
        """The p-value among blocks at which the adjusted one is `alpha`, by group."""
        if self.family is None:
            return {COLUMNS: self.alpha / self.tests}
        return {group: self.family.level(group, self.alpha) for group in self.family.groups}

    def judged(self, group: str, name: str, found: Tested, min_effect: float) -> ColumnDrift:
        """The aspect that alarms, or else comes nearest to it, speaks for all."""
        levels = self.levels[group], self.alpha / self.tests

        def nearness(aspect: Aspect) -> tuple[bool, float]:
            passes = self._passes(aspect, aspect.distance, levels)
            return passes and aspect.distance > min_effect, self._near(aspect, levels)

        aspect = max(found.aspects, key=nearness)
        tails = self._blocks(aspect, aspect.distance), aspect.rows(aspect.distance)
        threshold = max(min_effect, self._critical(aspect, levels))
        return ColumnDrift(
            column=name,
            test=f"{aspect.name}, {self._null}",
            distance=aspect.distance,
            threshold=threshold,
            p_value=max(tails) if self.layout.known else tails[1],
            adjusted_p_value=self.adjusted(group, aspect, aspect.distance),
            drifted=aspect.distance > threshold,
            minimum_detectable_shift=threshold,
            windows=self.layout.disjoint,
        )

    @property
    def _null(self) -> str:
        if not self.layout.known:
            return "rows"
        return "blocks" if self.layout.calibrated else "shorter stretches"

    def _passes(self, aspect: Aspect, distance: float, levels: tuple[float, float]) -> bool:
        among_blocks = not self.layout.known or self._blocks(aspect, distance) <= levels[0]
        return among_blocks and aspect.rows(distance) <= levels[1]

    def _critical(self, aspect: Aspect, levels: tuple[float, float]) -> float:
        """The largest distance that is no alarm."""
        low, high = 0.0, 1.0
        if not self._passes(aspect, high, levels):
            return high
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._passes(aspect, middle, levels) else (middle, high)
        return low

    def _near(self, aspect: Aspect, levels: tuple[float, float]) -> float:
        """How near both p-values are to their levels, as normal scores; 1 is where they are."""
        tails = self._blocks(aspect, aspect.distance), aspect.rows(aspect.distance)
        first = 0 if self.layout.known else 1
        ratios = [
            special.ndtri(min(max(tail, SMALLEST), 0.5))
            / special.ndtri(min(max(level, SMALLEST), 0.4))
            for tail, level in zip(tails[first:], levels[first:], strict=True)
        ]
        return float(min(ratios))
