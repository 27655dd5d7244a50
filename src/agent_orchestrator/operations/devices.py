"""Calls about devices: the browsers and phones that a person has let in."""

from collections.abc import Sequence
from typing import Final

from attrs import field, frozen

from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.fields import command, identifier, optional_name, param, required
from agent_orchestrator.operations.access import MAX_PRINCIPAL, PRINCIPAL_PATTERN
from agent_orchestrator.operations.options import Page
from agent_orchestrator.operations.table import Operation, _made


@command
class AddDevice:
    name: str | None = optional_name("The device's name in lists. Default: what it calls itself.")
    scopes: Sequence[str] = param(
        "What the device may do: `read`, `write`, `approve`, `admin` (everything).",
        default=("read", "write", "approve"),
        flag="--scope",
    )
    principal: str | None = param(
        "The principal whose sessions the device sees. Default: the caller.",
        default=None,
        max_length=MAX_PRINCIPAL,
        pattern=PRINCIPAL_PATTERN,
    )


@command
class ClaimDevice:
    code: str = required("The code of the invitation.", kw_only=False, max_length=32)
    name: str | None = optional_name(
        "What the device calls itself, if its invitation has no name. Default: `device`."
    )


@command
class ListDevices(Page):
    pass


@command
class RevokeDevice:
    token_id: str = identifier("The device.", kw_only=False)


@frozen
class NewInvitation:
    device: AccessToken
    """The invitation. The device that claims it has the same id."""
    code: str = field(repr=False)
    """Valid for five minutes, and once. No other answer contains it."""
    page: str | None = None
    """The address at which people open the page: `link_base` of the settings of notices, if it is set."""


@frozen
class NewDevice:
    device: AccessToken
    secret: str = field(repr=False)
    """The secret that the device sends in the header `Agentd-Device`, after its id and a dot. No other answer
    contains it."""
    cookie: str | None = field(default=None, repr=False)
    """The secret that the device sends as a cookie. None over HTTP: it is in `Set-Cookie`."""


@frozen
class DeviceReply:
    device: AccessToken


@frozen
class DevicePage:
    devices: tuple[AccessToken, ...]
    next_cursor: str | None


ADD_DEVICE: Final = _made(
    Operation(
        "add_device",
        "POST",
        "/devices",
        AddDevice,
        NewInvitation,
        "Invite a device: get a code with which it is let in.",
        scope="admin",
    )
)
CLAIM_DEVICE: Final = _made(
    Operation(
        "claim_device",
        "POST",
        "/devices/claim",
        ClaimDevice,
        NewDevice,
        "Exchange a code for the secrets of a device. Needs no token.",
        public=True,
    )
)
LIST_DEVICES: Final = Operation(
    "list_devices",
    "GET",
    "/devices",
    ListDevices,
    DevicePage,
    "List the caller's devices, oldest first; for an administrator, all devices.",
)
REVOKE_DEVICE: Final = Operation(
    "revoke_device",
    "POST",
    "/devices/{token_id}/revoke",
    RevokeDevice,
    DeviceReply,
    "Revoke a device of the caller. Its streams end.",
    scope="write",
)
