"""Serve phone.html and forward /api to the daemon, like a small reverse proxy.

Before real use, put TLS in front of it, and listen on an address that the phone can reach.

    python examples/phone.py 127.0.0.1:5002        # then open http://127.0.0.1:5002
"""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx
from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart, Response, request

PAGE = (Path(__file__).parent / "phone.html").read_text()
PASSED_ON = ("host", "origin", "authorization", "content-type", "last-event-id")
"""Headers to forward. With Host and Origin, the daemon's checks apply to these pages too."""


async def parts(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        with anyio.CancelScope(shield=True):
            await answer.aclose()


async def main(address: str = "127.0.0.1:5002", url: str = "http://127.0.0.1:8765") -> None:
    app = Quart(__name__)
    app.config["RESPONSE_TIMEOUT"] = None  # a stream has no time limit
    async with httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(10, read=None)) as daemon:

        @app.get("/")
        async def page() -> tuple[str, dict[str, str]]:
            return PAGE, {"Content-Security-Policy": "frame-ancestors 'none'"}

        @app.route("/api/<path:path>", methods=["GET", "POST"])
        async def api(path: str) -> Response:
            headers = {name: value for name, value in request.headers if name.lower() in PASSED_ON}
            asked = daemon.build_request(
                request.method,
                f"/{path}?{request.query_string.decode()}".rstrip("?"),
                headers=headers,
                content=await request.get_data(),
            )
            answer = await daemon.send(asked, stream=True)
            kind = answer.headers.get("content-type", "text/plain")
            return Response(parts(answer), answer.status_code, content_type=kind)

        await serve(app, Config.from_mapping(bind=[address]))


if __name__ == "__main__":
    anyio.run(lambda: main(*sys.argv[1:]))
