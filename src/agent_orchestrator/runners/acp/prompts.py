"""The content of a prompt."""

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from agent_orchestrator.domain.images import ImageContent
from agent_orchestrator.runners.acp.agent import AcpAgent


def blocks(
    agent: AcpAgent, prompt: str, images: Sequence[ImageContent] = ()
) -> list[dict[str, Any]]:
    """Return a prompt in the agent's format.

    A ``/`` at its beginning is escaped, so that the agent does not read it as a command.
    """
    prefix = agent.slash_prefix if prompt.lstrip().startswith("/") else ""
    return [
        {"type": "text", "text": prefix + prompt},
        *(
            {
                "type": "image",
                "mimeType": one.image.media_type,
                "data": b64encode(one.data).decode(),
            }
            for one in images
        ),
    ]
