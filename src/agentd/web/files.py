"""The page's files as they are served: content, compressed content, type and version."""

import functools
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import frozen

STATIC: Final = Path(__file__).parent / "static"

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}

INDEX: Final = "index.html"
WORKER: Final = "sw.js"
"""The service worker. It is served with the list of the page's files and their version before it."""


@frozen
class PageFile:
    """A file of the page.

    :param etag: changes with the content, as an HTTP header has it.
    """

    content: bytes
    compressed: bytes
    content_type: str
    etag: str

    @classmethod
    def of(cls, name: str, content: bytes) -> "PageFile":
        """Return a file with its type, from its name, and its version, from its content."""
        etag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
        # Without a time, the same content is always compressed to the same bytes.
        compressed = gzip.compress(content, 9, mtime=0)
        return cls(content, compressed, _TYPES[Path(name).suffix], etag)


@functools.cache
def page_files() -> dict[str, PageFile]:
    """Return the page's files by their paths below the page's address, with slashes."""
    contents = dict(sorted(_contents()))
    offline = [name for name in contents if name != WORKER and not name.startswith("vendor/LIC")]
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    version = json.dumps(digest.hexdigest()[:20])
    head = f"const VERSION = {version};\nconst FILES = {json.dumps(offline)};\n"
    contents[WORKER] = head.encode() + contents[WORKER]
    return {name: PageFile.of(name, content) for name, content in contents.items()}


def _contents() -> Iterator[tuple[str, bytes]]:
    for path in STATIC.rglob("*"):
        if path.is_file() and path.suffix in _TYPES:
            yield path.relative_to(STATIC).as_posix(), path.read_bytes()
