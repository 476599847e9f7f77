"""Evidently's drift report, drawn in a child process from samples of reference and current.

Takes two tables and the schema. Gives the HTML and, under the original names, Evidently's numbers
for each column; columns that Evidently cannot take are left out and named, and names and levels
reach it only in a harmless form, because its HTML does not escape them.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from homeostat.errors import EngineError, cause
from homeostat.records import Json
from homeostat.schema import Schema

if TYPE_CHECKING:
    import pandas as pd

MAX_LEVELS = 50  # with thousands of levels Evidently takes quarters of a minute
OTHERS = "all other levels"
LONGEST = 60  # characters of a name or level in the report


def draw(reference: pa.Table, current: pa.Table, schema: Schema) -> tuple[bytes, dict[str, Json]]:
    """The HTML page and the numbers, see `FileReporter.evidently`; runs in the child.

    Raises EngineError when not one column can be compared, or Evidently fails as a whole.
    """
    # Read when Evidently is imported and at each event that it would send.
    os.environ["DO_NOT_TRACK"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _draw(reference, current, schema)
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 - fails closed: raised without its text
            raise EngineError(f"Evidently failed: {cause(error)}.") from None


def harmless(names: Iterable[str]) -> dict[str, str]:
    """Each name with one that no HTML, script or chart can mistake: letters, digits and a few
    signs of any language, at most sixty, and no two alike.
    """
    shown: dict[str, str] = {}
    taken = {OTHERS}
    for name in names:
        plain = re.sub(r"[^\w .+-]", "_", name)[:LONGEST] or "empty text"
        unique, number = plain, 1
        while unique in taken:
            number += 1
            unique = f"{plain} {number}"
        taken.add(unique)
        shown[name] = unique
    return shown


def _draw(reference: pa.Table, current: pa.Table, schema: Schema) -> tuple[bytes, dict[str, Json]]:
    tables = (reference, current)
    names = [name for name in schema.names if all(_filled(table, name) for table in tables)]
    shown = harmless(names)
    frames = _frames(tables, schema, shown)
    try:
        result = _run(frames, schema, shown)
    except Exception:  # noqa: BLE001 - one bad column must not cost the others their report
        shown = {name: text for name, text in shown.items() if _takes(frames, schema, name, text)}
        result = _run(frames, schema, shown)
    numbers = _numbers(result.dict(), {text: name for name, text in shown.items()})
    numbers["left_out"] = [name for name in schema.names if name not in shown]
    numbers["rows"] = {"reference": reference.num_rows, "current": current.num_rows}
    return result.get_html_str(as_iframe=False).encode("utf-8", "replace"), numbers


def _filled(table: pa.Table, name: str) -> bool:
    return name in table.column_names and table.column(name).null_count < table.num_rows


def _frames(
    tables: Sequence[pa.Table], schema: Schema, shown: Mapping[str, str]
) -> tuple[pd.DataFrame, ...]:
    """The columns of each table under their shown names, levels made harmless and few."""
    import pandas as pd

    frames: list[dict[str, Any]] = [{} for _ in tables]
    for name, text in shown.items():
        feature = schema.by_name[name]
        columns = [table.column(name).cast(feature.arrow).to_pylist() for table in tables]
        if feature.kind == "boolean":
            columns = [[v if v is None else str(v).lower() for v in values] for values in columns]
        elif feature.kind == "category":
            seen = Counter(v for values in columns for v in values if v is not None)
            ranked = sorted(seen, key=lambda level: (-seen[level], level))
            codes = harmless(ranked[:MAX_LEVELS])
            columns = [
                [v if v is None else codes.get(v, OTHERS) for v in values] for values in columns
            ]
        dtype = "float64" if feature.kind == "number" else "str"
        for frame, values in zip(frames, columns, strict=True):
            frame[text] = pd.array(values, dtype=dtype)
    return tuple(pd.DataFrame(frame) for frame in frames)


def _run(frames: Sequence[pd.DataFrame], schema: Schema, shown: Mapping[str, str]) -> Any:
    if not shown:
        raise EngineError("there is no column that Evidently can compare.")
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    numbers = [shown[name] for name in shown if schema.by_name[name].kind == "number"]
    others = [text for text in shown.values() if text not in numbers]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=others)
    reference, current = (
        Dataset.from_pandas(frame[list(shown.values())], data_definition=definition)
        for frame in frames
    )
    return Report([DataDriftPreset()]).run(current, reference)


def _takes(frames: Sequence[pd.DataFrame], schema: Schema, name: str, text: str) -> bool:
    try:
        _run(frames, schema, {name: text}).get_html_str(as_iframe=False)
    except Exception:  # noqa: BLE001 - whatever it is, the column is left out and named
        return False
    return True


def _numbers(result: Mapping[str, Json], names: Mapping[str, str]) -> dict[str, Json]:
    """Evidently's numbers under the original names."""
    columns: dict[str, Json] = {}
    numbers: dict[str, Json] = {}
    for metric in result["metrics"]:
        config, value = metric["config"], metric["value"]
        if "drift_share" in config:
            share = float(value["share"])
            numbers["drifted_share"] = share
            numbers["dataset_drift"] = share >= config["drift_share"]
        elif config.get("column") in names:
            method, threshold, score = config["method"], config["threshold"], float(value)
            # A p-value drifts below its threshold, a distance at it or above.
            drifted = score < threshold if method.endswith("p_value") else score >= threshold
            columns[names[config["column"]]] = {
                "method": method,
                "value": score,
                "threshold": float(threshold),
                "drifted": drifted,
            }
    if len(columns) != len(names):
        raise EngineError("Evidently dropped columns without a word.")
    return {**numbers, "columns": columns}
