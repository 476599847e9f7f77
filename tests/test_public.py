"""What `import homeostat` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import homeostat

HEAVY = ("pandas", "numpy", "pyarrow", "sklearn", "evidently", "mlflow", "fastapi", "deltalake")


def in_a_new_process(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


def test_importing_the_package_imports_nothing_heavy():
    told = in_a_new_process("import homeostat, sys; print(*sys.modules)")
    assert "homeostat" in told
    assert set(HEAVY).isdisjoint(told)


def test_a_server_and_the_command_line_start_without_the_loops_libraries():
    for module in ("homeostat.predictor", "homeostat.cli"):
        told = in_a_new_process(f"import {module}, sys; print(*sys.modules)")
        assert module in told
        assert {"evidently", "mlflow", "sklearn"}.isdisjoint(told)


@pytest.mark.parametrize("name", homeostat.__all__)
def test_every_public_name_is_there_and_is_told_about(name):
    thing = getattr(homeostat, name)
    assert name == "__version__" or thing.__doc__


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Loop'"):
        _ = homeostat.Loop
    assert not hasattr(homeostat, "no_such_name")
