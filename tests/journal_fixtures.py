"""Journals, rows changed in one column, and deaths at chosen steps, for tests of the journal."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pytest

from homeostat.journal import FileJournal
from homeostat.schema import TIMESTAMP
from homeostat.testing import START, FakeClock


class KilledError(BaseException):
    """Nobody may catch it: the process is gone."""


def opened(folder, **options):
    return FileJournal(folder, clock=FakeClock(START), **options)


def ids(rows):
    return rows.column("prediction_id").to_pylist()


def replaced(rows, name, values):
    """The rows with one value in the column, or a list of values, of the type that it has."""
    place, field = rows.schema.get_field_index(name), rows.schema.field(name)
    values = values if isinstance(values, list) else [values] * rows.num_rows
    return rows.set_column(place, field, [pa.array(values, field.type)])


def to_load(rows, labels, at="occurred_at"):
    """The rows with one label, or a list of labels, known since `at`: a time or a column."""
    labels = labels if isinstance(labels, list) else [labels] * rows.num_rows
    table = rows.append_column("label", pa.array(labels, pa.string()))
    times = rows[at] if isinstance(at, str) else pa.array([at] * rows.num_rows, TIMESTAMP)
    return table.append_column("labelled_at", times)


class Steps:
    """Methods that tell when they begin and when they are done, and call `hook` each time."""

    def __init__(self, monkeypatch, watched):
        self.taken, self.hook = [], lambda: None
        for owner, name in watched:
            monkeypatch.setattr(owner, name, self._watched(getattr(owner, name), name))

    def _watched(self, original, name):
        def step(*args, **kwargs):
            self._take(f"before {name}")
            result = original(*args, **kwargs)
            self._take(f"after {name}")
            return result

        return step

    def _take(self, step):
        self.taken.append(step)
        self.hook()

    def killed_at(self, chosen, do, folder):
        """Do it in the folder, killed as soon as `chosen` says so of the steps that it took."""

        def kill():
            if chosen(self.taken):
                self.hook = lambda: None
                raise KilledError

        self.taken.clear()
        self.hook = kill
        with pytest.raises(KilledError):
            do(folder)

    def killed_at_each(self, do, full, tmp_path):
        """For each step: the last that was taken, and a copy of `full` in which none came after.

        In the folder `whole` all of them are done.
        """
        self.taken.clear()
        do(shutil.copytree(full, tmp_path / "whole"))
        for number in range(len(self.taken)):
            folder = shutil.copytree(full, tmp_path / str(number))
            self.killed_at(lambda taken, number=number: len(taken) > number, do, folder)
            yield self.taken[-1], folder
            shutil.rmtree(folder)
