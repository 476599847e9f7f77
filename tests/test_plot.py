"""The report's picture."""

from __future__ import annotations

import struct

from report_fixtures import evidence

from homeostat.findings import findings
from homeostat.plot import plot
from homeostat.report import to_status
from homeostat.settings import Monitor


def drawn(known):
    return plot(findings(to_status(known), known.shapes, known.importance, (), Monitor()))


def size(content):
    assert content.startswith(b"\x89PNG")
    return struct.unpack(">II", content[16:24])


def test_the_same_evidence_gives_the_same_bytes_with_names_of_all_kinds():
    one = drawn(evidence())
    assert one == drawn(evidence())
    assert size(one)[0] == 1_200
    assert b"matplotlib" not in one.lower()


def test_one_column_and_three_hundred_make_a_picture_of_bounded_size():
    alone = drawn(evidence(("a",), performance=None))
    many = drawn(evidence(tuple(f"column {place}" for place in range(300))))
    assert size(alone)[1] < size(many)[1] < 1_400
    assert len(many) < 200_000
