"""Homeostat's own server with one part taken out, to tell what that part costs or brings.

It takes what to take out, `journal` or `twin`, then the arguments of `homeostat`. It serves as
`homeostat serve` does, and that is all that differs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import pyarrow as pa

from homeostat.cli import main
from homeostat.entries import Committed, Entry
from homeostat.journal import FileJournal
from homeostat.records import Release
from homeostat.release import FileReleases

champion = FileReleases.champion


def kept_nowhere(
    _journal: FileJournal, _columns: pa.Schema, entries: Sequence[Entry]
) -> list[Committed]:
    return [Committed(len(entry.ids), 0, None) for entry in entries]


def without_twin(releases: FileReleases) -> Release | None:
    found = champion(releases)
    if found is None:
        return None
    objects = {k: v for k, v in found.manifest["objects"].items() if k != "twin"}
    return replace(found, manifest={**found.manifest, "objects": objects, "twin": None})


if __name__ == "__main__":
    taken_out = {
        "journal": (FileJournal, "commit", kept_nowhere),
        "twin": (FileReleases, "champion", without_twin),
    }
    with patch.object(*taken_out[sys.argv[1]]):
        main(sys.argv[2:])
