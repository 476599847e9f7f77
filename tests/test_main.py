"""The front door: what ends in one line and not in a traceback, and where its remedy stands."""

import pytest

from homeostat.cli import main
from homeostat.errors import HomeostatError


def test_what_the_machine_refuses_is_one_line_with_the_reason(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as ended:
        main(["init", str(tmp_path / "file" / "project")])
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "Not a directory" in told
    assert told.count("\n") == 1


def test_a_remedy_stands_below_a_traceback_and_beside_a_sentence():
    assert str(HomeostatError("It broke.", hint="Mend it.")) == "It broke. Mend it."
    assert str(HomeostatError("It broke:\nhere", hint="Mend it.")) == "It broke:\nhere\nMend it."
