"""Who may talk to the daemon at all: Host, Origin and bearer token, before any handler runs.

The rules answer known attacks on local agent servers: a page whose DNS name was rebound to loopback
(Host), a page that sends requests across origins or opens a WebSocket (Origin), a token that leaks
through a URL (never read from one).
"""

import hashlib
import hmac
import ipaddress
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import SplitResult, urlsplit

import anyio
import anyio.to_thread

from agent_orchestrator.descriptors import Sparingly
from agent_orchestrator.domain.access import LOCAL, Principal
from agent_orchestrator.domain.errors import (
    ConfigError,
    Forbidden,
    InvalidRequest,
    MisdirectedRequest,
    RateLimited,
    Unauthorized,
)
from agent_orchestrator.domain.tokens import LOCAL_TOKEN_PREFIX, MADE_HERE, RUN_TOKEN_PREFIX
from agent_orchestrator.ports import Gateway
from agentd.callers import Ends
from agentd.lockout import Lockout, Peer

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

TOKEN_PARAMETERS = ("token", "access_token", "auth_token")
"""Query parameters refused on every call: a URL ends up in histories and logs."""

UNGUESSABLE = 32
"""Characters from which on a token is compared whatever came before: no list of words leads there,
and its holder must not be kept out by somebody else's guesses from the same address."""

LOOKERS = 2
"""How many connections are looked at for their programs at once."""

_HOST = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?"
)
_log = logging.getLogger("agentd.server")

_TOKEN = re.compile(r"[\x21-\x7e]+")


def is_loopback(host: str) -> bool:
    """Tell whether an address to listen on is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_wildcard(host: str) -> bool:
    """Tell whether an address to listen on stands for all of the machine's."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def one_form(host: str) -> str:
    """Return a host in the one form in which it is compared: IPv6 can write an address in many."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower()
    return str(getattr(address, "ipv4_mapped", None) or address)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _name(token: str) -> str:
    """Return the name of a configured token's principal: the same at every start.

    Whoever is let in to a session reads it, and could try words against it where no lock-out sees
    him. So it is made slowly of a token that somebody may have thought up.
    """
    digest = (
        hashlib.sha256(token.encode()).digest()
        if len(token) >= UNGUESSABLE
        else hashlib.scrypt(token.encode(), salt=b"agentd configured token", n=2**14, r=8, p=1)
    )
    return f"token-{digest.hex()[:8]}"


class Guard:
    """Decides whether a request may come in, and as whom.

    :param tokens: bearer tokens of administrators. With none, and before a named token is made, a
        caller without a token is the local one.
    :param local_token: a bearer token that stands for the local caller.
    :param may_be_agents: tells in a thread whether a connection may be an agent's
        (:func:`agentd.callers.may_be_agents`). None trusts every program of this machine.
    :param host: the address the daemon listens on.
    :param allowed_hosts: further names the daemon goes by.
    :param allowed_origins: origins of web pages that may call, beside the daemon's own.
    :raises ConfigError: if a token cannot stand in a header or an origin is not one.
    """

    def __init__(
        self,
        tokens: Iterable[str] = (),
        *,
        local_token: str | None = None,
        may_be_agents: Callable[[Ends], bool] | None = None,
        host: str = "127.0.0.1",
        allowed_hosts: Iterable[str] = (),
        allowed_origins: Iterable[str] = (),
    ) -> None:
        self._lockout = Lockout()
        self._refusals: defaultdict[str, Sparingly] = defaultdict(Sparingly)
        self._may_be_agents = may_be_agents
        self._lookers = anyio.CapacityLimiter(LOOKERS)
        self._local = [] if local_token is None else [(_digest(local_token), LOCAL)]
        self._tokens: list[tuple[bytes, Principal]] = []
        for token in tokens:
            if not _TOKEN.fullmatch(token):
                raise ConfigError("an auth token must be printable ASCII without blanks")
            digest = _digest(token)
            self._tokens.append((digest, Principal(_name(token), admin=True, kind="configured")))
        self._hosts = LOOPBACK_NAMES | {one_form(name) for name in (host, *allowed_hosts)}
        # Rebinding needs a DNS name: on a wildcard bind an address in Host is one of ours.
        self._any_address = is_wildcard(host)
        self.origins = frozenset(_origin(text) for text in allowed_origins)

    @property
    def open(self) -> bool:
        """Whether no token is configured."""
        return not self._tokens

    def check_place(self, hosts: list[str], origins: list[str], scheme: str = "http") -> None:
        """Check the Host and Origin headers.

        :param scheme: of the request's URL.
        :raises MisdirectedRequest: if the Host is not a name of ours.
        :raises Forbidden: if the request comes from a page that is not allowed.
        """
        if len(hosts) != 1 or not (match := _HOST.fullmatch(hosts[0])):
            raise MisdirectedRequest("the request needs one Host header that names this daemon")
        name = one_form(match["v6"] or match["name"])
        if name not in self._hosts and not (self._any_address and _is_address(name)):
            raise MisdirectedRequest(
                "the Host header names another server; `allowed_hosts` lists further names"
            )
        for origin in (origin.lower() for origin in origins):
            if origin not in self.origins and not _same_origin(origin, hosts[0], scheme):
                raise Forbidden("requests from this origin are not allowed")

    def check_query(self, names: Iterable[str]) -> None:
        """Refuse a token in the URL.

        :raises InvalidRequest: if there is one.
        """
        found = {
            name: "a token must not be in the URL" for name in names if name in TOKEN_PARAMETERS
        }
        if found:
            raise InvalidRequest.of(found)

    @contextmanager
    def noting(self, peer: Peer) -> Iterator[None]:
        """Let what is refused within this scope be logged: for each kind a line a minute at most, which
        counts those since the one before. Whoever is refused at the door chooses how often.
        """
        peer.is_turned_away = False
        try:
            yield
        except (Unauthorized, Forbidden, MisdirectedRequest, RateLimited) as error:
            peer.is_turned_away = True
            if count := self._refusals[error.code].due():
                fields = {"code": error.code, "address": peer.address, "count": count}
                _log.warning("refused at the door: %s", error, extra={"fields": fields})
            raise

    async def why_token(self, gateway: Gateway, peer: Peer) -> str | None:
        """Return why a caller needs a token; None where it needs none and is the local one.

        :param gateway: knows whether tokens were made.
        :param peer: whoever calls.
        """
        if not self.open or peer.agents_only:
            return "this call needs a token: Authorization: Bearer …"
        if gateway.has_tokens():
            return (
                "this call needs a token (Authorization: Bearer …), since named tokens were made; "
                "agentctl of the user that runs agentd finds one by itself on the same machine"
            )
        if await self._may_be_an_agent(peer):
            return (
                "a program that an agent started needs the token of its run, which is in its "
                "AGENTCTL_AUTH_TOKEN: Authorization: Bearer …"
            )
        return None

    async def caller(self, authorization: list[str], gateway: Gateway, peer: Peer) -> Principal:
        """Return who the Authorization header stands for.

        :param gateway: knows the tokens that were not configured but made.
        :param peer: whoever sent it.
        :raises Unauthorized: if it holds none that is known, and one is needed or it is a run's.
        :raises Forbidden: if an agent presents another token than its run's.
        :raises RateLimited: if too many wrong ones came from there.
        """
        if authorization:
            scheme, _, token = authorization[0].partition(" ")
            if len(authorization) == 1 and scheme.lower() == "bearer":
                return await self.holder(token.strip(), gateway, peer)
        if (reason := await self.why_token(gateway, peer)) is None:
            return LOCAL
        if authorization:
            reason = "the Authorization header must be: Bearer …"
        raise Unauthorized(reason)

    async def holder(self, token: str, gateway: Gateway, peer: Peer) -> Principal:
        """Return who a token stands for, in the same time for every wrong one of a kind.

        Who presents a token that was made here is held to it, also where callers need none. From an
        agent's program only the token of a run counts: others are not meant for it, wherever it read
        them.

        What cannot be guessed (a token made here, or a long one) and what let this very connection
        in before is looked at even while the address is locked out; who was let in by another one
        guesses like anybody. A wrong token that was made here counts for nothing: an agent may go
        on for a moment with one that is over.

        :raises Unauthorized: if it is nobody's, and one is needed.
        :raises Forbidden: if an agent presents another token than a run's.
        :raises RateLimited: if too many wrong ones came from there.
        """
        made_here = token.startswith(MADE_HERE)
        is_random = made_here or token.startswith(LOCAL_TOKEN_PREFIX)
        presented = hashlib.sha256(token.encode(errors="replace")).digest()
        again = peer.let_in_by is not None and hmac.compare_digest(peer.let_in_by, presented)
        if peer.agents_only and not token.startswith(RUN_TOKEN_PREFIX):
            raise Unauthorized("this port is for agents: use the one that speaks TLS")
        is_needed = made_here or not self.open or gateway.has_tokens()
        if is_needed and not (is_random or again or len(token) >= UNGUESSABLE):
            self._lockout.check(peer.address)
        found: Principal | None = None
        for digest, principal in (*self._tokens, *self._local):
            if hmac.compare_digest(digest, presented):
                found = principal
        if found is None and made_here:
            found = await gateway.holder(presented.hex())
        elif found is None and not is_needed and await self.why_token(gateway, peer) is None:
            return LOCAL
        if found is not None and found.run is None and await self._may_be_an_agent(peer):
            raise Forbidden("an agent's program may call with the token of its run only")
        peer.known = found is not None
        peer.let_in_by = presented if peer.known else None
        if found is None:
            if not is_random:
                self._lockout.failed(peer.address)
            raise Unauthorized("the token is not known, or what it was made for is over")
        return found

    async def _may_be_an_agent(self, peer: Peer) -> bool:
        """Return whether a connection may be an agent's; look once for each."""
        if self._may_be_agents is None:
            return False
        if peer.may_be_agents is None:
            peer.may_be_agents = peer.ends is None or await anyio.to_thread.run_sync(
                self._may_be_agents, peer.ends, limiter=self._lookers
            )
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
        parts.port  # noqa: B018 - raises for a port that is no number
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
    # The page of a proxy that speaks TLS before a daemon that does not is an allowed origin.
    return parts is not None and parts.scheme == scheme and parts.netloc == host.lower()
