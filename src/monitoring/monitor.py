"""Compare the newest window of traffic with the champion's reference; write both reports."""

import sys
from pathlib import Path

from homeostat.cli import main

ROOT = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    main(["monitor", "--project", str(ROOT), *sys.argv[1:]])
