"""A server that sends the bytes of a file to each reader in large pieces: the least that a stream can cost.

Run as ``python -m benchmarks.bare_stream --file PATH --ready-file PATH``.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anyio
from hypercorn.asyncio import serve
from hypercorn.config import Config

from agentd.server import listen, url_of

PIECE_BYTES: Final = 64 * 1024


def pieces(data: bytes) -> Iterator[bytes]:
    return (data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES))


async def run(data: bytes, ready_file: Path) -> None:
    """Serve until SIGTERM."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        start = {"type": "http.response.start", "status": 200}
        if scope["path"] == "/health":
            await send({**start, "headers": [(b"content-type", b"application/json")]})
            await send({"type": "http.response.body", "body": b'{"status":"ok"}'})
            return
        await send({**start, "headers": [(b"content-type", b"text/event-stream")]})
        for piece in pieces(data):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    config = Config()
    config.accesslog = config.errorlog = None
    with (
        listen("127.0.0.1", 0) as listener,
        anyio.open_signal_receiver(signal.SIGTERM) as signals,
    ):
        config.bind = [f"fd://{os.dup(listener.fileno())}"]  # hypercorn closes it
        url = url_of(listener, "127.0.0.1")
        fresh = ready_file.with_suffix(".fresh")
        fresh.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        fresh.replace(ready_file)  # whole whenever it is there

        async def stopped() -> None:
            await anext(signals)

        await serve(app, config, shutdown_trigger=stopped)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--ready-file", type=Path, required=True)
    options = parser.parse_args()
    anyio.run(run, options.file.read_bytes(), options.ready_file)
    sys.exit(0)
