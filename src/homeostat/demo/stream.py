"""The year as a server sees it: flights in the order of departure, labels as they land.

Takes the frame of `flights.read` and gives batches in event time: rows to be predicted, and the
labels of those flights that had landed by the end of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from homeostat.flights import FEATURES, TARGET

if TYPE_CHECKING:
    import pandas as pd

WEEK = timedelta(days=7)
ROWS = 1000  # flights in one request


@dataclass(frozen=True, slots=True)
class Batch:
    rows: list[dict[str, Any]]  # as POST /predict takes them
    labels: list[dict[str, Any]]  # as POST /feedback takes them


class Stream:
    """What departs and what lands from `start` on; each flight is given once, as is its label."""

    def __init__(self, year: pd.DataFrame, start: datetime) -> None:
        flying = year[year["occurred_at"] >= start]
        landing = flying[flying["labelled_at"].notna()].sort_values("labelled_at", kind="stable")
        self._departures = _index(flying["occurred_at"])
        self._landings = _index(landing["labelled_at"])
        self._flying, self._landing = flying, landing
        self._departed = self._landed = 0

    def until(self, end: datetime) -> Iterator[Batch]:
        """All that departs and lands before `end` and was not given yet, in order."""
        last, landed = _before(self._departures, end), _before(self._landings, end)
        while self._departed < last or self._landed < landed:
            stop = min(self._departed + ROWS, last)
            over = end if stop == last else self._departures[stop]
            yield self._batch(stop, _before(self._landings, over))

    def _batch(self, departed: int, landed: int) -> Batch:
        batch = Batch(
            _rows(self._flying.iloc[self._departed : departed]),
            _labels(self._landing.iloc[self._landed : landed]),
        )
        self._departed, self._landed = departed, landed
        return batch


def _index(times: pd.Series[Any]) -> pd.DatetimeIndex:
    import pandas as pd

    return pd.DatetimeIndex(times)


def _before(times: pd.DatetimeIndex, end: datetime) -> int:
    return int(times.searchsorted(end))


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """JSON objects; a null number is null, never NaN."""
    chosen = frame[FEATURES].astype(object).where(frame[FEATURES].notna(), None)
    chosen["prediction_id"] = frame["prediction_id"]
    chosen["occurred_at"] = frame["occurred_at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return [dict(zip(chosen.columns, row, strict=True)) for row in chosen.to_numpy().tolist()]


def _labels(frame: pd.DataFrame) -> list[dict[str, Any]]:
    at = frame["labelled_at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return [
        {"prediction_id": identity, "label": int(label), "labelled_at": moment}
        for identity, label, moment in zip(frame["prediction_id"], frame[TARGET], at, strict=True)
    ]
