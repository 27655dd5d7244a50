"""Images of messages: decoded from a command, stored until the run has ended, passed to the agent.

See ``docs/decisions/0026-images.md``.
"""

from binascii import Error, a2b_base64
from collections.abc import Iterable, Sequence
from typing import Final

from anyio.to_thread import run_sync

from agent_orchestrator.domain.errors import InvalidRequest, Unavailable
from agent_orchestrator.domain.images import ImageContent, size_problem
from agent_orchestrator.domain.model import Message
from agent_orchestrator.engine.core import QUEUE_RETRY_S
from agent_orchestrator.operations.options import ImageUpload
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import MessageQueries

MAX_STORED: Final = 256 * 2**20
"""Maximum bytes of the stored images of all runs."""


async def decode_uploads(uploads: Sequence[ImageUpload | bytes]) -> tuple[ImageContent, ...]:
    """Return the images of a command.

    :raises InvalidRequest: naming each invalid entry, or ``images`` if they are too large.
    """
    # Decoding large images would block the event loop for too long.
    return await run_sync(_decoded, uploads) if uploads else ()


def _decoded(uploads: Sequence[ImageUpload | bytes]) -> tuple[ImageContent, ...]:
    problems: dict[str, str] = {}
    images = []
    for index, upload in enumerate(uploads):
        assert isinstance(upload, ImageUpload)  # the command has converted bytes
        try:
            content = ImageContent.of(a2b_base64(upload.data, strict_mode=True))
        except Error as error:
            problems[f"images[{index}].data"] = f"is not base64: {error}"
        except ValueError as error:
            problems[f"images[{index}].data"] = str(error)
        else:
            images.append(content)
            if upload.media_type not in (None, content.image.media_type):
                problems[f"images[{index}].media_type"] = (
                    f"does not match the data, which is {content.image.media_type}"
                )
    if not problems and (problem := size_problem([len(image.data) for image in images])):
        problems["images"] = problem
    if problems:
        raise InvalidRequest.of(problems)
    return tuple(images)


def store_images(tx: Transaction, message: Message, images: Sequence[ImageContent]) -> None:
    """Store the bytes of a message's images.

    :raises Unavailable: if all stored images exceed :data:`MAX_STORED`.
    """
    for content in images:
        tx.add_image(message.id, content.image.digest, content.data)
    if images and tx.image_space() > MAX_STORED:
        raise Unavailable(
            f"the images of unfinished runs exceed {MAX_STORED:,} bytes: try again when some runs have ended",
            {"max_bytes": MAX_STORED},
            retry_after_s=QUEUE_RETRY_S,
        )


def delete_images(tx: Transaction, messages: Iterable[Message]) -> None:
    """Delete the bytes of the images of messages."""
    for message in messages:
        if message.images:
            tx.remove_images(message.id)


def contents(view: MessageQueries, messages: Iterable[Message]) -> tuple[ImageContent, ...]:
    """Return the images of messages with their bytes, in order, except those whose bytes were deleted."""
    return tuple(
        ImageContent(image, data)
        for message in messages
        for image in message.images
        if (data := view.image(image.digest)) is not None
    )
