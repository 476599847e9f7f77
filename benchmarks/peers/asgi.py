"""Bare ASGI applications: `scored` parses and scores and no more, `constant` is the limit.

They take any request. They give 200 and JSON; there is no routing, no check, no journal.
"""

import os
from typing import Any

HEADERS = [(b"content-type", b"application/json")]
CONSTANT = b'{"prediction":1,"probability":0.5}'

if "PEER_ONNX" in os.environ:
    from twin import answered


async def scored(scope: dict[str, Any], receive: Any, send: Any) -> None:
    message = await receive()
    body = message["body"]
    while message["more_body"]:
        message = await receive()
        body += message["body"]
    await _answer(send, answered(body))


async def constant(scope: dict[str, Any], receive: Any, send: Any) -> None:
    while (await receive())["more_body"]:
        pass
    await _answer(send, CONSTANT)


async def _answer(send: Any, body: bytes) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, length]})
    await send({"type": "http.response.body", "body": body})
