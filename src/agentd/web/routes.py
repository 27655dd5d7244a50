"""The routes of the page. They need no token: the files are the same for everyone, and hold no data."""

from typing import Any, Final, cast

import anyio.to_thread
from hypercorn.typing import Scope
from quart import Quart, Response, request

from agent_orchestrator.domain.errors import NotFound
from agentd.web.files import INDEX, WORKER, PageFile, page_files

ENDPOINTS: Final = frozenset({"page", "page_file", "page_request", "page_without_slash"})
"""The names of the page's routes."""

_POLICY: Final = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    # Text cannot become markup or code in the page. The one policy names the service worker.
    "require-trusted-types-for 'script'; trusted-types agentd"
)

_PART_HEADERS: Final = {
    # Browsers ask each time whether a file has changed. Away from the network, the worker has them.
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}

HEADERS: Final = {
    **_PART_HEADERS,
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


def headers_of(name: str) -> dict[str, str]:
    """Return the headers of a file of the page.

    The policy is for documents and workers. Scripts and styles are parts of them and have theirs; a
    browser that opens one alone shows its text. With it they would be a fifth larger.
    """
    is_part = name.endswith((".js", ".mjs", ".css")) and name != WORKER
    return _PART_HEADERS if is_part else HEADERS


BASE_PATH: Final = "agentd.base_path"
"""The name of the base path in an ASGI scope."""


def without_base_path(scope: Scope, base_path: str) -> Scope:
    """Return an ASGI scope whose paths have no base path before them."""
    connection = cast("dict[str, Any]", scope)
    path, raw_path = connection["path"], connection["raw_path"]
    if not path.startswith(f"{base_path}/"):
        return scope
    path = path.removeprefix(base_path)
    raw_path = raw_path.removeprefix(base_path.encode())
    return cast("Scope", {**connection, "path": path, "raw_path": raw_path, BASE_PATH: base_path})


def base_path_of(scope: Scope) -> str:
    """Return the base path that a request's path had; empty if it had none."""
    return str(cast("dict[str, Any]", scope).get(BASE_PATH, ""))


def add_page(app: Quart, base_path: str = "") -> None:
    """Add the page's routes to the app: ``/``, ``/r/ID`` for one request, and its files.

    All addresses in the page are relative, so that it works below any path of a proxy.

    :param base_path: a path before all others, without a slash at its end.
    """

    @app.get("/")
    async def page() -> Response:
        return await _answer(INDEX)

    @app.get("/r/<request_id>")
    async def page_request(request_id: str) -> Response:
        # The page reads the rest of the address. Identifiers need no escapes; others name nothing.
        if not request_id.replace("_", "").isalnum() or not request_id.isascii():
            raise NotFound("unknown path")
        return Response(b"", 302, {**HEADERS, "Location": f"../#/r/{request_id}"})

    if base_path:

        @app.get(base_path)
        async def page_without_slash() -> Response:
            # Relative addresses need the slash.
            location = f"{base_path.rpartition('/')[2]}/"
            return Response(b"", 308, {**HEADERS, "Location": location})

    for path in ("/web/<path:name>", "/<any('sw.js', 'manifest.webmanifest'):name>"):
        app.add_url_rule(path, "page_file", _answer, methods=["GET"])


async def _answer(name: str) -> Response:
    # Only the first reading is work; a thread for each file would take longer than the file.
    is_read = page_files.cache_info().currsize > 0
    files = page_files() if is_read else await anyio.to_thread.run_sync(page_files)
    if (file := files.get(name)) is None:
        raise NotFound("unknown path")
    return _file_response(name, file)


def _file_response(name: str, file: PageFile) -> Response:
    headers = {**headers_of(name), "ETag": file.etag}
    if file.etag.strip('"') in request.if_none_match:
        return Response(b"", 304, headers)
    body = file.content
    if request.accept_encodings["gzip"] > 0 and len(file.compressed) < len(file.content):
        headers["Content-Encoding"] = "gzip"
        body = file.compressed
    return Response(body, 200, headers, content_type=file.content_type)
