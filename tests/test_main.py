"""The front door, `python -m homeostat`: what ends in one line and not in a traceback."""

import pytest

from homeostat.cli import main


def test_what_the_machine_refuses_is_one_line_with_the_reason(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as ended:
        main(["init", str(tmp_path / "file" / "project")])
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "Not a directory" in told
    assert told.count("\n") == 1
