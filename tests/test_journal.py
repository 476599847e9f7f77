"""The journal's files: what is read back, what is counted, what the files look like."""

from __future__ import annotations

import pytest

from homeostat.journal import FileJournal
from homeostat.testing import JournalContract


@pytest.fixture
def journal(tmp_path):
    return FileJournal(tmp_path / "logs")


class TestFileJournalKeepsTheContract(JournalContract):
    pass
