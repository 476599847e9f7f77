"""An environment for each peer, and in it the model, fitted there and stored as that peer wants it.

It takes the folder that keeps them from run to run, and makes what is missing or was made from
other pins or another model. It gives the paths of interpreters and models.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from load import BenchmarkError

PEERS = Path(__file__).parent / "peers"
STORED = {"mlflow": "mlflow", "bentoml": "pickle", "litserve": "pickle", "apps": "pickle"}
"""Environment → how its model is stored, if it has one; `peers/<environment>.txt` are its pins."""
QUIET = {
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Environment:
    """One peer's interpreter and what its model is stored as."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def script(self, name: str) -> str:
        return str(self.python.with_name(name))


def variables(**more: str) -> dict[str, str]:
    """The environment of every process of the benchmark: one thread, nothing sent anywhere."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HOMEOSTAT_", "PYTHONPATH"))}
    return {**kept, **QUIET, **more}


def made(name: str, kept: Path) -> Environment:
    """The environment `name`, as it was or anew. Raises BenchmarkError when it cannot be made."""
    here = Environment(kept / name)
    pins, stamp = PEERS / f"{name}.txt", here.folder / "stamp"
    stored = STORED.get(name)
    sources = [pins, *([PEERS / "model.py", PEERS / "prepare.py"] if stored else [])]
    wanted = hashlib.sha256(b"".join(f.read_bytes() for f in sources)).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return here
    shutil.rmtree(here.folder, ignore_errors=True)
    here.folder.mkdir(parents=True)
    venv = here.folder / "venv"
    if shutil.which("uv"):
        run("uv", "venv", "--quiet", "--python", sys.executable, str(venv))
        run("uv", "pip", "install", "--quiet", "--python", str(here.python), "-r", str(pins))
    else:
        run(sys.executable, "-m", "venv", str(venv))
        run(str(here.python), "-m", "pip", "install", "--quiet", "-r", str(pins))
    if stored:
        run(str(here.python), str(PEERS / "prepare.py"), stored, str(here.model))
    stamp.write_text(wanted)
    return here


def run(*command: str) -> str:
    """What a command prints. Raises BenchmarkError with the end of what it said when it fails."""
    ran = subprocess.run(command, env=variables(), capture_output=True, text=True, check=False)
    if ran.returncode:
        said = "\n".join((ran.stdout + ran.stderr).splitlines()[-20:])
        raise BenchmarkError(f"{' '.join(command)} failed:\n{said}")
    return ran.stdout
