"""Pictures that codex takes."""

import os
import struct
import zlib

from agent_orchestrator.domain.images import ImageContent


def picture(width: int = 8, height: int = 8, colour: bytes = b"\xff\0\0", *, noise: bool = False):
    """Return a PNG of one colour, or one that cannot be made smaller."""
    rows = (b"\0" + (os.urandom(width * 3) if noise else colour * width) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"".join(rows), 0 if noise else 9)
    parts = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in parts
    )


RED = ImageContent.of(picture())
BLUE = ImageContent.of(picture(colour=b"\0\0\xff"))
