"""How a device's browser presents its two secrets: a cookie, and a header of the page.

A cookie is sent with every request of the browser to this host, whichever page makes it. So it opens
nothing alone: the page also sends a header, which other sites cannot set.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import evolve, frozen
from quart import Response

from agent_orchestrator.domain.errors import Forbidden, Unauthorized
from agent_orchestrator.domain.tokens import device_hash
from agent_orchestrator.operations.devices import NewDevice

HEADER: Final = "Agentd-Device"
"""The header with a device's id, a dot, and the secret that the page keeps."""

SUBPROTOCOL: Final = "device."
"""The beginning of the WebSocket subprotocol with the same. Browsers cannot send headers there."""

_MAX_AGE_S: Final = 400 * 86_400
"""Seconds that a browser keeps the cookie: the most that browsers allow."""


@frozen
class PresentedDevice:
    """The secrets of a device in a request."""

    device_id: str
    token_hash: str

    @classmethod
    def of(cls, presented: str, cookies: Mapping[str, str]) -> "PresentedDevice":
        """Return the secrets.

        :param presented: the value of the header, or the rest of the subprotocol.
        :raises Unauthorized: if one is missing.
        """
        device_id, _, secret = presented.strip().partition(".")
        cookie = cookies.get(cookie_name(device_id))
        if not secret or not cookie:
            raise Unauthorized(f"a device needs its cookie and its secret ({HEADER})")
        return cls(device_id, device_hash(cookie, secret))


def cookie_name(device_id: str) -> str:
    """Return the name of a device's cookie. Cookies of all ports of a host are in one jar."""
    return f"agentd_{device_id}"


def check_page(method: str, origins: Sequence[str], sites: Sequence[str]) -> None:
    """Refuse a device's request that another site may have made.

    :param origins: the Origin headers, which were checked before.
    :param sites: the Sec-Fetch-Site headers. Browsers send one to hosts with TLS and to loopback.
    :raises Forbidden: then.
    """
    if any(site != "same-origin" for site in sites):
        raise Forbidden("a device's requests must come from a page of this daemon")
    if method not in ("GET", "HEAD") and not origins:
        raise Forbidden("a device's request that changes something needs an Origin header")


def without_cookie(answer: NewDevice) -> NewDevice:
    """Return a new device as the body of an answer, which scripts can read."""
    return evolve(answer, cookie=None)


def set_cookie(response: Response, answer: NewDevice, *, secure: bool, path: str) -> None:
    """Give a browser the cookie of a new device.

    :param secure: whether it came over TLS, so that the cookie must not be sent without.
    :param path: the path below which the browser sends it.
    """
    assert answer.cookie is not None
    response.set_cookie(
        cookie_name(answer.device.id),
        answer.cookie,
        max_age=_MAX_AGE_S,
        path=path,
        secure=secure,
        httponly=True,
        samesite="Strict",
    )
