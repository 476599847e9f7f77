"""Train a challenger if the last report found drift; it serves only if the gate lets it."""

import sys
from pathlib import Path

from homeostat.cli import main

ROOT = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    main(["retrain", "--project", str(ROOT), *sys.argv[1:]])
