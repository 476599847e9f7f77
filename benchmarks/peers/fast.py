"""FastAPI at its leanest: `scored` parses with msgspec and scores with ONNX, `echo` gives the body
back.

They take and give raw bodies, so that neither pydantic nor FastAPI's encoder is in the way.
"""

import os

from fastapi import FastAPI, Request, Response

if "PEER_ONNX" in os.environ:
    from twin import answered

scored, echo = FastAPI(), FastAPI()


@scored.post("/predict")
async def predict(request: Request) -> Response:
    return Response(answered(await request.body()), media_type="application/json")


@echo.post("/predict")
async def returned(request: Request) -> Response:
    return Response(await request.body(), media_type="application/json")
