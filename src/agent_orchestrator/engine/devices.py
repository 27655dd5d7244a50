"""The calls for devices: invite, claim, list, revoke.

An invitation is stored as a token that gives no access. When a device claims it, the device's token replaces it
under the same id.
"""

from datetime import timedelta
from typing import Final

from attrs import evolve

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import NotFound, Unauthorized
from agent_orchestrator.domain.tokens import (
    COOKIE_PREFIX,
    DEVICE_SECRET_PREFIX,
    AccessToken,
    code_hash,
    device_hash,
    new_code,
    new_token,
)
from agent_orchestrator.engine.access import forbid_runs, require_active, require_admin
from agent_orchestrator.engine.core import MAX_READ_ROWS, Change, Core
from agent_orchestrator.engine.paging import PAGE_SIZE, page
from agent_orchestrator.engine.push_devices import forget_devices_of
from agent_orchestrator.engine.tokens import MADE_TOPIC, check_scopes, require_nameable
from agent_orchestrator.operations.devices import (
    AddDevice,
    ClaimDevice,
    DevicePage,
    DeviceReply,
    ListDevices,
    NewDevice,
    NewInvitation,
    RevokeDevice,
)
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View

VALID_S: Final = 300.0
"""Seconds that an invitation is valid."""

_DEFAULT_NAME: Final = "device"


async def add(core: Core, caller: Principal, command: AddDevice) -> Change[NewInvitation]:
    scopes = check_scopes(command.scopes)
    # The caller's own name is allowed, although it may be a reserved one such as "local".
    if command.principal not in (None, caller.id):
        require_nameable("principal", command.principal or "")
    code = new_code()

    def change(tx: Transaction) -> NewInvitation:
        require_admin(tx, caller)
        now = core.now()
        for token in tx.tokens(order="newest", limit=MAX_READ_ROWS):
            if token.purpose == "invitation" and token.expires_at and token.expires_at <= now:
                tx.remove_token(token.id)
        invitation = AccessToken(
            id=core.config.ids("tok"),
            name=command.name or _DEFAULT_NAME,
            principal=command.principal or caller.id,
            scopes=scopes,
            created_by=caller.id,
            created_at=now,
            expires_at=now + timedelta(seconds=VALID_S),
            purpose="invitation",
        )
        tx.add_token(invitation, code_hash(code))
        tx.notify(MADE_TOPIC)
        return NewInvitation(invitation, code, core.config.notify.link_base)

    return change


async def claim(core: Core, _: Principal, command: ClaimDevice) -> Change[NewDevice]:
    cookie, secret = new_token(COOKIE_PREFIX), new_token(DEVICE_SECRET_PREFIX)

    def change(tx: Transaction) -> NewDevice:
        now = core.now()
        invitation = tx.token_of_hash(code_hash(command.code))
        if (
            invitation is None
            or invitation.purpose != "invitation"
            or invitation.revoked_at is not None
            or (invitation.expires_at is not None and invitation.expires_at <= now)
        ):
            raise Unauthorized(
                "the code is wrong, used or expired: make a new one with agentctl device add"
            )
        has_default_name = invitation.name == _DEFAULT_NAME
        device = evolve(
            invitation,
            name=(command.name if has_default_name else None) or invitation.name,
            created_at=now,
            expires_at=None,
            purpose="device",
            seen_at=now,
        )
        tx.remove_token(invitation.id)
        tx.add_token(device, device_hash(cookie, secret))
        return NewDevice(device, secret, cookie)

    return change


async def list_(core: Core, caller: Principal, command: ListDevices) -> DevicePage:
    forbid_runs(caller)

    def query(view: View) -> DevicePage:
        require_active(view, caller)

        def tokens(after: str | None, limit: int) -> list[AccessToken]:
            return view.tokens(after=after, limit=limit, size=PAGE_SIZE)

        def matches(token: AccessToken) -> bool:
            return _is_device_of(caller, token)

        return DevicePage(*page(tokens, command.cursor, command.limit, matches=matches))

    return await core.store.read(query)


async def revoke(core: Core, caller: Principal, command: RevokeDevice) -> Change[DeviceReply]:
    forbid_runs(caller)

    def change(tx: Transaction) -> DeviceReply:
        require_active(tx, caller)
        device = tx.token(command.token_id)
        if device is None or not _is_device_of(caller, device):
            raise NotFound(f"no device {command.token_id}", {"token_id": command.token_id})
        if device.revoked_at is None:
            device = evolve(device, revoked_at=core.now())
            tx.put_token(device)
            forget_devices_of(tx, device)
        return DeviceReply(device)

    return change


def _is_device_of(caller: Principal, token: AccessToken) -> bool:
    return token.purpose == "device" and (caller.admin or token.principal == caller.id)
