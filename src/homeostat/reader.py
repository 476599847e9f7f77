"""Read a request's body at once into checked rows, by a decoder made from the model's schema.

It takes the bytes of a body that fits the schema and says nothing unusual, and gives the same
`Batch` as `decode.parse` and `decode.rows` would. For all other bodies it gives None: they are for
`decode`, which takes longer and can explain what is wrong.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeAlias

import msgspec
import uuid_utils

from homeostat.decode import Batch, event_time, identity, stamp
from homeostat.listening import Serving
from homeostat.schema import Schema

Texts: TypeAlias = Sequence[str | None]

_TYPES: dict[str, Any] = {"number": float, "category": str, "boolean": bool}


# Two workers that were forked from one process must not make the same ids.
os.register_at_fork(after_in_child=uuid_utils.reseed_rng)


def new_id() -> str:
    """A UUIDv7, as a server gives it to a row that brings no id; no other row ever has it."""
    return str(uuid_utils.uuid7())


class Reader:
    """Reads the bodies of one model's requests; safe to use from many threads."""

    def __init__(self, schema: Schema, serving: Serving) -> None:
        self._max_rows = serving.max_rows
        self._max_skew = serving.max_skew
        self._colons = sum(1 + name.count(":") for name in schema.names)  # of one row's keys
        self._texts = [i for i, f in enumerate(schema.features) if f.kind == "category"]
        fields: list[Any] = [("identity", str | None, None), ("time", str | None, None)]
        for place, feature in enumerate(schema.features):
            kind = _TYPES[feature.kind]
            fields.append((f"f{place}", kind | None if feature.nullable else kind))
        # A name that JSON escapes stands in no body that is read here.
        self._plain = all(
            json.dumps(name, ensure_ascii=False) == f'"{name}"' for name in schema.names
        )
        told = schema.names if self._plain else ()
        names = {f"f{place}": name for place, name in enumerate(told)}
        row: Any = msgspec.defstruct(
            "Row",
            fields,
            rename={**names, "identity": "prediction_id", "time": "occurred_at"},
            forbid_unknown_fields=True,
            kw_only=True,
            gc=False,
        )
        self._one = msgspec.json.Decoder(row)
        self._many = msgspec.json.Decoder(list[row])

    def read(self, body: bytes, now: datetime) -> Batch | None:
        """The rows of `body`, or None where only `decode` can tell.

        Raises RowError for a time or an id that does not fit, as `decode.rows` does.
        """
        # With an escape, text and bytes would not have the same colons.
        if b"\\" in body or not self._plain:
            return None
        try:
            found = self._many.decode(body) if body[:1] == b"[" else (self._one.decode(body),)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not 0 < len(found) <= self._max_rows:
            return None
        given, times, *columns = zip(*map(msgspec.structs.astuple, found), strict=True)
        if not self._each_key_once(body, (given, times), columns):
            return None
        return self._batch(given, times, columns, now)

    def _each_key_once(
        self, body: bytes, optional: Sequence[Texts], columns: Sequence[Sequence[Any]]
    ) -> bool:
        """Whether no object has a key twice, of which the decoder would keep the last.

        Every colon of the body belongs to a key or stands within a text. Since every row has each
        of its keys at least once, none has one twice if these are as many colons as there are.
        """
        spare = body.count(b":") - len(optional[0]) * self._colons
        for texts in optional:
            spare -= sum(1 + text.count(":") for text in texts if text is not None)
        if spare:
            for place in self._texts:
                spare -= sum(text.count(":") for text in columns[place] if text is not None)
        return not spare

    def _batch(
        self, given: Texts, times: Texts, columns: Sequence[Sequence[Any]], now: datetime
    ) -> Batch | None:
        present = stamp(now)
        if given.count(None) == times.count(None) == len(given):
            made = [new_id() for _ in given]
            return Batch(made, made, [present] * len(made), columns, made=True)
        ids, stamps, untimed = [], [], []
        for row, (name, when) in enumerate(zip(given, times, strict=True)):
            ids.append(new_id() if name is None else identity(name, row))
            if when is not None:
                stamps.append(stamp(event_time(when, row, now, self._max_skew)))
            else:
                stamps.append(present)
                if name is not None:
                    untimed.append(name)
        if len(set(ids)) < len(ids):
            return None
        return Batch(ids, ids, stamps, columns, frozenset(untimed))
