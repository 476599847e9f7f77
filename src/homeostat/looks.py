"""What is kept of each look for people: how its columns were distributed, and Evidently's report.

Takes a folder, the end of a look's window, its release, and bytes. Gives packed files, of which the
newest stay; no verdict rests on them.
"""

from __future__ import annotations

import gzip
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from homeostat import files

FOLDER = "looks"  # beside the status file
KEPT = {"shapes.json": 400, "report.html": 30}
"""Of each kind so many newest looks: a year of days, and of the large ones a month."""


def path(reports: Path, end: datetime, release: str, kind: str) -> Path:
    """Where the file of one kind of a look lies, whether it is there or not."""
    told = re.sub(r"\W", "", release[:12])
    return reports / FOLDER / f"{end.astimezone(UTC):%Y%m%dT%H%M%S%f}-{told}.{kind}.gz"


def keep(reports: Path, end: datetime, release: str, kind: str, content: bytes) -> None:
    """Keep `content`, and take away what is older than the newest; raises OSError."""
    at = path(reports, end, release, kind)
    # Without a time in it, so that the same look gives the same bytes.
    files.write(at, gzip.compress(content, compresslevel=6, mtime=0))
    older = sorted(at.parent.glob(f"*.{kind}.gz"))[: -KEPT[kind]]
    for each in older:
        each.unlink(missing_ok=True)


def kept(reports: Path, end: datetime, release: str, kind: str) -> bytes | None:
    """What was kept; None where it is not there any more, or cannot be read."""
    with suppress(OSError, EOFError):
        return gzip.decompress(path(reports, end, release, kind).read_bytes())
    return None
