"""The HTTP service: `uvicorn src.inference.api:app --port 8000`."""

from pathlib import Path

from homeostat.web.api import create_app

app = create_app(Path(__file__).resolve().parents[2])
