"""A project of Homeostat's with the benchmark's model, trained and released by its own command.

It takes a folder. It gives the project in it, copies for servers, and the twin that the release
holds, which the peers with ONNX serve as well.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from environments import PEERS, run
from load import BenchmarkError

from homeostat import load_project
from homeostat.schema import Schema

SETTINGS = """\
[project]
target = "target"

[tracking]
enabled = false
"""


def trained(root: Path, features: list[str]) -> Path:
    """A project in `root` with its first release. Raises BenchmarkError when training fails."""
    script = root / "src" / "training" / "train.py"
    script.parent.mkdir(parents=True)
    shutil.copy(PEERS / "model.py", script)
    (root / "homeostat.toml").write_text(SETTINGS, encoding="utf-8")
    run(sys.executable, "-m", "homeostat", "train", "--project", str(root))
    releases = load_project(root).releases
    release = releases.champion()
    if release is None:
        raise BenchmarkError("`homeostat train` released nothing.")
    if list(Schema.from_json(releases.object(release, "schema")).names) != features:
        raise BenchmarkError("the release has its features in another order than the peers.")
    return root


def twin(root: Path, to: Path) -> Path | None:
    """The release's twin, as a file; None where it has none."""
    releases = load_project(root).releases
    release = releases.champion()
    if release is None or "twin" not in release.manifest["objects"]:
        return None
    to.write_bytes(releases.object(release, "twin"))
    return to
