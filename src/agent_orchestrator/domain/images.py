"""Images of messages, and their limits."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from attrs import field, frozen

from agent_orchestrator.domain.model import Image

MAX_IMAGES: Final = 8
"""Maximum number of images of a message."""

MAX_IMAGE_BYTES: Final = 5 * 2**20
"""Maximum total bytes of a message's images. In base64 they fit into a request body of the default limit."""


@frozen
class ImageContent:
    """An image with its bytes."""

    image: Image
    data: bytes = field(repr=False)

    @classmethod
    def of(cls, data: bytes) -> "ImageContent":
        """Return the image with these bytes.

        :raises ValueError: if they are not a supported image. The text is a reason such as ``is empty``.
        """
        if not data:
            raise ValueError("is empty")
        if len(data) > MAX_IMAGE_BYTES:
            raise ValueError(f"must be at most {MAX_IMAGE_BYTES:,} bytes")
        media_type = _media_type_of(data)
        if media_type is None:
            raise ValueError("is not a PNG, JPEG, GIF or WebP image")
        return cls(Image(media_type, len(data), sha256(data).hexdigest()), data)


def size_problem(sizes: Sequence[int]) -> str | None:
    """Return the problem with a message's image sizes in bytes; None if there is none."""
    if len(sizes) > MAX_IMAGES:
        return f"must have at most {MAX_IMAGES} entries, has {len(sizes):,}"
    if (size := sum(sizes)) > MAX_IMAGE_BYTES:
        return f"must be at most {MAX_IMAGE_BYTES:,} bytes together, but are {size:,}"
    return None


def _media_type_of(data: bytes) -> str | None:
    """Return the media type that a file's first bytes indicate."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None
