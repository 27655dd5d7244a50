"""Lock-out of addresses, including loopback, that present too many wrong tokens."""

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
"""Wrong tokens within :data:`WINDOW_S` that lock out an address."""

WINDOW_S: Final = 60.0
"""Seconds in which wrong tokens are counted, and duration of a lock-out."""

MAX_ADDRESSES: Final = 10_000
"""Maximum number of addresses remembered. The one with the oldest failure is forgotten first."""

_log = logging.getLogger("agentd.server")


def _do_nothing() -> None:
    """Cut no connection: there is none."""


@define
class Peer:
    """The other end of a connection.

    :param ends: the addresses of the connection; None if unknown.
    :param may_be_agents: whether its program may be an agent's; None until it is needed.
    :param is_authenticated: whether its last request was authenticated.
    :param token_digest: the hash of the token of that request.
    :param run_id: the run of that token; None if it is not a run's.
    :param is_refused: whether its last request was refused by the guard.
    :param agents_only: whether it came by the port that accepts only tokens of runs.
    :param is_forwarded: whether its last request came through a proxy, as far as that shows.
    :param quiet_until: time until which the connection is not read, as of :func:`anyio.current_time`.
    :param cut: resets the connection.
    """

    address: str = ""
    ends: Ends | None = None
    may_be_agents: bool | None = None
    is_authenticated: bool = False
    token_digest: bytes | None = None
    run_id: str | None = None
    is_refused: bool = False
    agents_only: bool = False
    is_forwarded: bool = False
    quiet_until: float = 0.0
    cut: Callable[[], None] = _do_nothing


class Lockout:
    """Counts the wrong tokens of each address.

    :param clock: monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raise :class:`RateLimited` if an address is locked out; ``retry_after_s`` has the seconds."""
        failures = self._failures.get(_network(address)) or deque[float]()
        if len(failures) < ATTEMPTS or failures[-1] - failures[0] >= WINDOW_S:
            return
        remaining_s = failures[-1] + WINDOW_S - self._clock()
        if remaining_s > 0:
            raise RateLimited(
                "too many wrong tokens from this address: try again later",
                {"retry_after_s": math.ceil(remaining_s)},
            )

    def count_failure(self, address: str) -> None:
        """Count a wrong token. One that comes during a lock-out does not prolong it.

        :raises RateLimited: if the address is locked out.
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
    """Return the key to count by. For IPv6 this is the /64, in which one host can choose addresses."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address) or ip.ipv4_mapped is not None or ip.is_loopback:
        return str(getattr(ip, "ipv4_mapped", None) or ip)
    return str(ipaddress.ip_network((ip, 64), strict=False))
