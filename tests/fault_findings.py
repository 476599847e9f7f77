"""What clients remember against what the journal holds, by its files and by its own reading."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deltalake import DeltaTable
from fault_fixtures import Memory

from homeostat.journal import FileJournal


@dataclass(frozen=True)
class Findings:
    """How many of each; all must be zero."""

    lost: int  # rows that were answered and are not in the journal
    duplicated: int
    altered: int  # answers or features that are recorded otherwise than they were given
    invented: int  # rows that no client sent
    labels_lost: int  # labels that were acknowledged and are not in the journal
    labels_altered: int  # ids whose versions are others than the ones that were sent
    wrong: tuple[str, ...]  # what clients were told and should not have been


NOTHING = Findings(0, 0, 0, 0, 0, 0, ())


def compare(root: Path, memory: Memory) -> Findings:
    """What clients remember against the plain files, and against what the journal reads."""
    journal = FileJournal(root / "data" / "logs")
    journal.catch_up()  # cuts off what a dead writer left
    read = journal.read().to_pylist()
    plain, versions = plain_rows(root / "data" / "logs"), plain_labels(root / "data" / "logs")
    history = filed_rows(root / "data" / "logs")
    counts = [Counter(row["prediction_id"] for row in rows) for rows in (read, plain, history)]
    ids = counts[0] | counts[1] | counts[2]  # a row may be in the tail and in history for a while
    plain = [*plain, *history]
    known = {row["prediction_id"]: row for row in read}
    found = {row["prediction_id"]: row for row in plain}
    lost = [n for n in memory.answers if n not in known or n not in found]
    altered = [
        name
        for rows in (known, found)
        for name, answer in memory.answers.items()
        if name in rows and not same(rows[name], answer, memory.rows[name])
    ]
    stray = [n for n in ids if n not in memory.answers and n not in memory.waiting]
    told = {name: (texts, name in memory.untold) for name, texts in memory.labels.items()}
    labels_lost = [
        name
        for name, (texts, untold) in told.items()
        if not set(texts[:-1] if untold else texts) <= set(versions.get(name, []))
    ]
    labels_altered = [
        name
        for name in {*told, *versions}
        if versions.get(name, []) not in expected(*told.get(name, ([], False)))
        or (name in known and known[name]["label"] != (versions.get(name) or [None])[-1])
    ]
    return Findings(
        lost=len(lost),
        duplicated=sum(count - 1 for count in ids.values()),
        altered=len(altered),
        invented=max(0, len(stray) - memory.nameless),
        labels_lost=len(labels_lost),
        labels_altered=len(labels_altered),
        wrong=tuple(sorted(memory.wrong)[:5]),
    )


def expected(texts: list[str], untold: bool) -> list[list[str]]:
    """The versions that may be recorded: the same label again is none; the last may be missing."""
    kept = [text for n, text in enumerate(texts) if n == 0 or texts[n - 1] != text]
    return [kept, expected(texts[:-1], untold=False)[0]] if untold else [kept]


def same(row: dict, answer: dict, sent: dict) -> bool:
    """Whether a recorded row, of texts or of values, is the one that was answered and sent."""
    texts = {n: "" if row[n] is None else str(row[n]).lower() for n in ("gap", "amount", "member")}
    numbers = (None if texts[n] == "" else float(texts[n]) for n in ("amount", "gap"))
    return (
        int(row["prediction"]) == answer["prediction"]
        and float(row["probability"]) == answer["probability"]
        and row["model_version"] == answer["model_version"]
        and (row["city"] or None) == sent["city"]
        and tuple(numbers) == (sent["amount"], sent["gap"])
        and texts["member"] == str(sent["member"]).lower()
    )


def plain_rows(logs: Path) -> list[dict]:
    """All rows of the files of predictions, read without the journal."""
    rows = []
    for file in sorted(logs.glob("predictions*.csv")):
        with file.open(newline="") as lines:
            rows += csv.DictReader(lines)
    return rows


def plain_labels(logs: Path) -> dict[str, list[str]]:
    """All versions of each label in order of arrival, read without the journal."""
    versions: dict[str, list[str]] = {}
    seen = set()
    for row in [*filed_labels(logs), *tail_labels(logs)]:
        at = datetime.fromisoformat(str(row["recorded_at"])).astimezone(UTC)
        version = row["prediction_id"], row["label"], at
        if version not in seen:  # else it is in the tail and in history
            seen.add(version)
            versions.setdefault(row["prediction_id"], []).append(row["label"])
    return versions


def tail_labels(logs: Path) -> list[dict]:
    if not (logs / "labels.csv").exists():
        return []
    with (logs / "labels.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def filed_labels(logs: Path) -> list[dict]:
    return delta(logs / "history" / "labels", "arrived_at", "number")


def filed_rows(logs: Path) -> list[dict]:
    """All rows of the history of predictions, read without the journal."""
    return delta(logs / "history" / "predictions", "occurred_at")


def delta(path: Path, *order: str) -> list[dict]:
    """The rows of a Delta table as its log names them; none where there is no table."""
    if not any((path / "_delta_log").glob("*.json")):
        return []
    ascending = [(name, "ascending") for name in order]
    return DeltaTable(path).to_pyarrow_table().sort_by(ascending).to_pylist()
