"""Authentication: the checks of Host, Origin and bearer token before any handler runs.

The rules defend against known attacks on local servers: a web page whose DNS name was rebound to
loopback (Host), a page that sends cross-origin requests or opens a WebSocket (Origin), and tokens
that leak through URLs (tokens in URLs are refused).
"""

import hashlib
import hmac
import ipaddress
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import SplitResult, urlsplit

from agent_orchestrator.descriptors import RateLimitedWarning
from agent_orchestrator.domain.access import ANONYMOUS, LOCAL, Principal
from agent_orchestrator.domain.errors import (
    ConfigError,
    Forbidden,
    InvalidRequest,
    MisdirectedRequest,
    RateLimited,
    Unauthorized,
)
from agent_orchestrator.domain.tokens import LOCAL_TOKEN_PREFIX, RUN_TOKEN_PREFIX, STORED_PREFIXES
from agent_orchestrator.ports.transport import Gateway
from agentd.caller_scans import CallerScans
from agentd.devices import PresentedDevice
from agentd.lockout import Lockout, Peer

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

TOKEN_PARAMETERS = ("token", "access_token", "auth_token")
"""Query parameters that every call refuses: URLs end up in histories and logs."""

FORWARDING_HEADERS = frozenset(
    {"forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"}
)
"""Headers with which a proxy says for whom it calls."""

MIN_SAFE_LENGTH = 32
"""Minimum length of tokens that are checked even during a lock-out. Such a token cannot be guessed, and
its holder must not be locked out by another caller's guesses from the same address."""

_HOST = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?"
)
_log = logging.getLogger("agentd.server")

_TOKEN = re.compile(r"[\x21-\x7e]+")


def is_loopback(host: str) -> bool:
    """Return True if an address to listen on can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_wildcard(host: str) -> bool:
    """Return True if an address to listen on means all addresses of this machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def normalized_host(host: str) -> str:
    """Return a host in canonical form, for comparison. An IPv6 address has several spellings."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower()
    return str(getattr(address, "ipv4_mapped", None) or address)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _name(token: str) -> str:
    """Return the principal's name of a configured token. It is the same at every start.

    Others can read this name in shared sessions, and could test guessed tokens against it offline. For a
    short token the name is therefore derived with a slow hash.
    """
    digest = (
        hashlib.sha256(token.encode()).digest()
        if len(token) >= MIN_SAFE_LENGTH
        else hashlib.scrypt(token.encode(), salt=b"agentd configured token", n=2**14, r=8, p=1)
    )
    return f"token-{digest.hex()[:8]}"


class Guard:
    """Decides whether a request is allowed, and which principal it comes from.

    :param tokens: bearer tokens of administrators. Without any, and until a named token is created,
        a caller without a token is the local principal.
    :param local_token: a bearer token of the local principal.
    :param scans: finds out whether a connection may be an agent's. None trusts every program of this machine.
    :param host: the address that the daemon listens on.
    :param allowed_hosts: further host names of the daemon.
    :param allowed_origins: origins of web pages that may call, besides the daemon's own.
    :raises ConfigError: if a token is not valid in a header, or an origin is invalid.
    """

    def __init__(
        self,
        tokens: Iterable[str] = (),
        *,
        local_token: str | None = None,
        scans: CallerScans | None = None,
        host: str = "127.0.0.1",
        allowed_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
    ) -> None:
        self._lockout = Lockout()
        self._refusals: defaultdict[str, RateLimitedWarning] = defaultdict(RateLimitedWarning)
        self._scans = scans
        self._local = [] if local_token is None else [(_digest(local_token), LOCAL)]
        self._tokens: list[tuple[bytes, Principal]] = []
        for token in tokens:
            if not _TOKEN.fullmatch(token):
                raise ConfigError("an auth token must be printable ASCII without blanks")
            digest = _digest(token)
            self._tokens.append((digest, Principal(_name(token), admin=True, kind="configured")))
        self._own_hosts = LOOPBACK_NAMES | {normalized_host(host)}
        self._hosts = LOOPBACK_NAMES | {normalized_host(name) for name in (host, *allowed_hosts)}
        # DNS rebinding needs a name. With a wildcard bind, an IP address in Host is one of ours.
        self._any_address = is_wildcard(host)
        self.origins = frozenset(_origin(text) for text in allowed_origins)

    @property
    def is_open(self) -> bool:
        """True if no token is configured."""
        return not self._tokens

    def check_host_and_origin(
        self, hosts: list[str], origins: list[str], scheme: str = "http"
    ) -> None:
        """Check the Host and Origin headers.

        :param scheme: the scheme of the request's URL.
        :raises MisdirectedRequest: if Host is not a name of this daemon.
        :raises Forbidden: if the request comes from a page of an origin that is not allowed.
        """
        if len(hosts) != 1 or not (match := _HOST.fullmatch(hosts[0])):
            raise MisdirectedRequest("the request needs one Host header that names this daemon")
        name = normalized_host(match["v6"] or match["name"])
        if name not in self._hosts and not (self._any_address and _is_address(name)):
            raise MisdirectedRequest(
                "the Host header is not allowed; add it to `allowed_hosts` if it is right"
            )
        for origin in (origin.lower() for origin in origins):
            if origin not in self.origins and not _same_origin(origin, hosts[0], scheme):
                raise Forbidden(
                    "requests from this origin are not allowed; add it to `allowed_origins` if it is right"
                )

    def is_forwarded(self, hosts: list[str], names: Iterable[str]) -> bool:
        """Return whether a request came through a proxy, as far as it shows.

        A proxy on this machine makes every caller look local. So its callers are not trusted as local ones
        are.

        :param hosts: the Host headers, which were checked before.
        :param names: the names of all headers.
        """
        if any(name.lower() in FORWARDING_HEADERS for name in names):
            return True
        match = _HOST.fullmatch(hosts[0])
        name = normalized_host((match["v6"] or match["name"]) if match else "")
        return name not in self._own_hosts and not _is_address(name)

    def check_query(self, names: Iterable[str]) -> None:
        """Refuse a token in the URL.

        :raises InvalidRequest: if there is one.
        """
        problems = {
            name: "a token must not be in the URL" for name in names if name in TOKEN_PARAMETERS
        }
        if problems:
            raise InvalidRequest.of(problems)

    @contextmanager
    def logging_refusals(self, peer: Peer) -> Iterator[None]:
        """Log the refusals in this scope, at most one line a minute for each code.

        The line counts the refusals since the line before. Callers decide how often they are
        refused, so the log must not grow with it.
        """
        peer.is_refused = False
        try:
            yield
        except (Unauthorized, Forbidden, MisdirectedRequest, RateLimited) as error:
            peer.is_refused = True
            if count := self._refusals[error.code].due():
                fields = {"code": error.code, "address": peer.address, "count": count}
                _log.warning("refused before authentication: %s", error, extra={"fields": fields})
            raise

    async def token_reason(self, gateway: Gateway, peer: Peer) -> str | None:
        """Return why a caller needs a token; None if it needs none and is the local principal.

        :param gateway: knows whether named tokens exist.
        :param peer: the caller's connection.
        """
        if not self.is_open or peer.agents_only:
            return "this call needs a token: Authorization: Bearer …"
        if peer.is_forwarded:
            return (
                "a call through a proxy needs a token (Authorization: Bearer …) or a device: run agentctl "
                "device add on the daemon's machine"
            )
        if gateway.has_tokens():
            return (
                "this call needs a token (Authorization: Bearer …), because named tokens exist. "
                "On the same machine, agentctl of agentd's user finds one by itself."
            )
        if await self._may_be_an_agent(peer):
            return (
                "a program that an agent started needs the token of its run from the variable "
                "AGENTCTL_AUTH_TOKEN: Authorization: Bearer …"
            )
        return None

    async def caller(self, authorization: list[str], gateway: Gateway, peer: Peer) -> Principal:
        """Return the principal of the Authorization header.

        :param gateway: knows named tokens and tokens of runs.
        :param peer: the caller's connection.
        :raises Unauthorized: if it has no valid token, and one is needed or it is a run's.
        :raises Forbidden: if an agent presents another token than its run's.
        :raises RateLimited: if the address is locked out.
        """
        if authorization:
            scheme, _, token = authorization[0].partition(" ")
            if len(authorization) == 1 and scheme.lower() == "bearer":
                return await self.holder(token.strip(), gateway, peer)
        if (reason := await self.token_reason(gateway, peer)) is None:
            return LOCAL
        if authorization:
            reason = "the Authorization header must be: Bearer …"
        raise Unauthorized(reason)

    async def holder(self, token: str, gateway: Gateway, peer: Peer) -> Principal:
        """Return the principal of a token. Every wrong token of one kind takes the same time.

        A caller that presents a token of the daemon must have a valid one, even if callers need none.
        From an agent's program only a run's token is accepted, wherever it found another one.

        Two kinds of token are checked even while the address is locked out: one that cannot be
        guessed (created by the daemon, or long), and the one that authenticated this connection
        before. A wrong token of the daemon's own kind does not count as a guess: an agent may use
        its token for a moment after the end of its attempt.

        :raises Unauthorized: if the token is unknown, and one is needed.
        :raises Forbidden: if an agent presents another token than a run's.
        :raises RateLimited: if the address is locked out.
        """
        is_stored = token.startswith(STORED_PREFIXES)
        is_random = is_stored or token.startswith(LOCAL_TOKEN_PREFIX)
        presented = hashlib.sha256(token.encode(errors="replace")).digest()
        again = peer.token_digest is not None and hmac.compare_digest(peer.token_digest, presented)
        if peer.agents_only and not token.startswith(RUN_TOKEN_PREFIX):
            raise Unauthorized("this port is for agents only: use the daemon's TLS port")
        is_needed = is_stored or not self.is_open or gateway.has_tokens()
        if is_needed and not (is_random or again or len(token) >= MIN_SAFE_LENGTH):
            self._lockout.check(peer.address)
        holder: Principal | None = None
        for digest, principal in (*self._tokens, *self._local):
            if hmac.compare_digest(digest, presented):
                holder = principal
        if holder is None and is_stored:
            holder = await gateway.holder(presented.hex())
        elif holder is None and not is_needed and await self.token_reason(gateway, peer) is None:
            return LOCAL
        if holder is not None and holder.run is None and await self._may_be_an_agent(peer):
            raise Forbidden("an agent's program may use only the token of its run")
        peer.is_authenticated = holder is not None
        peer.token_digest = presented if peer.is_authenticated else None
        peer.run_id = holder.run.run_id if holder is not None and holder.run is not None else None
        if holder is None:
            if not is_random:
                self._lockout.count_failure(peer.address)
            raise Unauthorized("the token is unknown, revoked or expired")
        return holder

    async def device(self, presented: PresentedDevice, gateway: Gateway, peer: Peer) -> Principal:
        """Return the principal of a device.

        :raises Unauthorized: if the secrets do not belong together, or the device was revoked.
        :raises Forbidden: if an agent presents them.
        """
        if peer.agents_only:
            raise Unauthorized("this port is for agents only: use the daemon's TLS port")
        holder = await gateway.holder(presented.token_hash)
        if holder is None or holder.token_id != presented.device_id:
            raise Unauthorized("the device is unknown or revoked")
        if await self._may_be_an_agent(peer):
            raise Forbidden("an agent's program may use only the token of its run")
        peer.is_authenticated = True
        peer.token_digest = None
        peer.run_id = None
        return holder

    async def stranger(self, peer: Peer) -> Principal:
        """Return the principal of a caller of a public operation.

        :raises Forbidden: if the caller is an agent.
        :raises RateLimited: if the address is locked out.
        """
        self._lockout.check(peer.address)
        if peer.agents_only or await self._may_be_an_agent(peer):
            raise Forbidden("an agent's program may use only the token of its run")
        return ANONYMOUS

    def count_failure(self, peer: Peer) -> None:
        """Count a public operation that was refused like a wrong token.

        :raises RateLimited: if the address is locked out.
        """
        self._lockout.count_failure(peer.address)

    async def _may_be_an_agent(self, peer: Peer) -> bool:
        """Return whether a connection may be an agent's. The answer is kept for the connection."""
        if self._scans is None:
            return False
        if peer.may_be_agents is None:
            peer.may_be_agents = peer.ends is None or await self._scans.may_be_agents(peer.ends)
        return peer.may_be_agents


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _split(origin: str) -> SplitResult | None:
    try:
        parts = urlsplit(origin)
        parts.port  # noqa: B018 - raises for a port that is not a number
    except ValueError:
        return None
    plain = f"{parts.scheme}://{parts.netloc}" == origin and "@" not in parts.netloc
    return parts if plain and parts.scheme in ("http", "https") and parts.netloc else None


def _origin(text: str) -> str:
    text = text.rstrip("/").lower()
    if _split(text) is None:
        raise ConfigError(f"allowed origin {text!r}: must be scheme://host[:port]")
    return text


def _same_origin(origin: str, host: str, scheme: str) -> bool:
    parts = _split(origin)
    # A page of a TLS proxy before a daemon without TLS must be in the allowed origins.
    return parts is not None and parts.scheme == scheme and parts.netloc == host.lower()
