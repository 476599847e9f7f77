"""The long memory of the journal: Delta tables of predictions and of labels.

It takes tables from the one process that may write here, the loop, and adds each as one atomic
commit. It gives back whole tables, which it keeps until the next commit.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from homeostat.errors import JournalError


class DeltaLog:
    """One Delta table that only grows; new columns are merged into its schema.

    The order of its rows says nothing: Delta promises none.
    """

    def __init__(self, path: Path, empty: pa.Schema) -> None:
        self._path = path
        self._table = empty.empty_table()
        self._version = -1

    def table(self) -> pa.Table:
        """All rows; an empty table before the first commit."""
        from deltalake import DeltaTable

        if not (self._path / "_delta_log").is_dir():
            return self._table
        try:
            delta = DeltaTable(self._path)
            if delta.version() != self._version:
                self._table = delta.to_pyarrow_table()
                self._version = delta.version()
        except Exception as error:  # deltalake raises bare Exceptions
            raise _failed("read", self._path, error) from error
        return self._table

    @property
    def commits(self) -> int:
        """How many commits the table that was read last has."""
        return self._version + 1

    def append(self, rows: pa.Table) -> None:
        """Add rows in one commit. Raises JournalError, also where a column changed its type."""
        from deltalake import write_deltalake

        present = self.table().schema
        for field in rows.schema:
            place = present.get_field_index(field.name)
            if place >= 0 and present.field(place).type != field.type:
                raise JournalError(
                    f"the column {field.name!r} is in the history with another type.",
                    hint=f"Give it another name in load(), or move {self._path.parent} aside.",
                )
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            write_deltalake(self._path, rows, mode="append", schema_mode="merge")
        except Exception as error:  # deltalake raises bare Exceptions
            raise _failed("append to", self._path, error) from error


def _failed(doing: str, path: Path, error: Exception) -> JournalError:
    return JournalError(f"could not {doing} the history {path} ({type(error).__name__}).")
