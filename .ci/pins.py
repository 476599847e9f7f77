"""Write requirements.txt: the direct dependencies at the versions of requirements.lock.

It takes both files' folder from its own place in the repository. It gives one pin for each direct
dependency and extra of pyproject.toml, several where the lock differs between Python versions.
"""

import re
import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# What the project runs on, pinned; the same versions with their hashes, and all that they need in
# turn, stand in requirements.lock. `make lock` writes both.
-e .[all]
"""


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    direct = {canonicalize_name(Requirement(text).name) for text in wanted} - {project["name"]}
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pins = []
    for line in re.findall(r"^[a-z0-9].*?(?= \\$)", lock, re.M):
        pin = Requirement(line)
        pin.extras.clear()  # an extra's own dependencies are pinned in the lock
        if canonicalize_name(pin.name) in direct:
            pins.append(str(pin))
    (ROOT / "requirements.txt").write_text(HEAD + "\n".join(pins) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
