"""Wrong tokens: counted for each address, loopback too, and no more tried after too many."""

import ipaddress
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from attrs import define

from agent_orchestrator.domain.errors import RateLimited
from agentd.callers import Ends

ATTEMPTS: Final = 10
"""Wrong tokens an address may present within :data:`WINDOW_S`."""

WINDOW_S: Final = 60.0
"""Seconds in which they are counted, and that the address is locked out for afterwards."""

MAX_ADDRESSES: Final = 10_000
"""Addresses kept in mind; the one that failed longest ago is forgotten first."""

_log = logging.getLogger("agentd.server")


def _do_nothing() -> None:
    """Do what there is to do about a connection that is not there."""


@define
class Peer:
    """The other end of a connection.

    :param is_authenticated: whether it was let in, by the last token it presented where tokens are wanted.
    :param token_digest: the hash of that token.
    :param run_id: the run whose token that is, if it is a run's.
    :param cut: ends the connection, whatever of it was not taken yet.
    :param is_refused: whether its last request was refused before it was let in.
    :param agents_only: whether it came by the port that lets in nobody but runs.
    :param ends: the addresses of the connection, where they are known.
    :param may_be_agents: whether its program may be an agent's; None until somebody asked.
    """

    address: str = ""
    ends: Ends | None = None
    may_be_agents: bool | None = None
    is_authenticated: bool = False
    token_digest: bytes | None = None
    run_id: str | None = None
    is_refused: bool = False
    agents_only: bool = False
    cut: Callable[[], None] = _do_nothing


class Lockout:
    """Counts the wrong tokens of each address.

    :param clock: seconds that only go up.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Do nothing, or refuse an address that is locked out.

        :raises RateLimited: telling the seconds until it may try again.
        """
        failures = self._failures.get(_network(address)) or deque[float]()
        if len(failures) < ATTEMPTS or failures[-1] - failures[0] >= WINDOW_S:
            return
        left = failures[-1] + WINDOW_S - self._clock()
        if left > 0:
            raise RateLimited(
                "too many wrong tokens from this address: try again later",
                {"retry_after_s": math.ceil(left)},
            )

    def count_failure(self, address: str) -> None:
        """Take note of a wrong token; one that comes while the address is locked out prolongs nothing.

        :raises RateLimited: if it is locked out.
        """
        self.check(address)
        network = _network(address)
        failures = self._failures.setdefault(network, deque(maxlen=ATTEMPTS))
        failures.append(self._clock())
        self._failures.move_to_end(network)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
        if len(failures) == ATTEMPTS and failures[-1] - failures[0] < WINDOW_S:
            _log.warning("%d wrong tokens from %s: locked out for a minute", ATTEMPTS, address)


def _network(address: str) -> str:
    """Return what counts as one address: of IPv6 the 64 bits a single host may choose under."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address) or ip.ipv4_mapped is not None or ip.is_loopback:
        return str(getattr(ip, "ipv4_mapped", None) or ip)
    return str(ipaddress.ip_network((ip, 64), strict=False))
