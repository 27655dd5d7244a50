"""Whether the daemon serves, drains or closes, and the waits that end when it closes."""

import logging
import os
import threading
from math import inf
from types import TracebackType
from typing import Self

from anyio import CancelScope

_log = logging.getLogger("agentd")


class ExitTimer:
    """Ends the process at a set time, as a kill would, whatever does not let go of it: a function that
    takes no notice of its cancellation, a disk that does not answer. Nothing acknowledged is lost by
    it, the agents' supervisors end what is left of them, and the next start takes up their runs.

    A scope: leaving it cancels the timer. The timer runs in a separate thread, because the event
    loop may hang.
    """

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def set(self, seconds: float) -> None:
        """End the process that many seconds from now, instead of any time set before."""
        self._cancel()
        self._timer = threading.Timer(seconds, _end)
        self._timer.daemon = True
        self._timer.start()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._cancel()


def _end() -> None:
    _log.critical("something does not end: the next start will clean it up")
    os._exit(1)


class Lifetime:
    """Shared by the web app and whoever stops the daemon.

    While it drains, answers are still given: streams are told, and show how runs end. When it
    closes, every wait and stream ends at once, so that the server can stop without cutting a
    connection.
    """

    def __init__(self) -> None:
        self.draining = False
        self.closing = False
        self._until_draining: set[CancelScope] = set()
        self._until_closing: set[CancelScope] = set()

    def until_draining(self, *, deadline: float) -> "LifetimeScope":
        """Return a scope that is left when the daemon begins to drain.

        :param deadline: when it is left otherwise, by :func:`anyio.current_time`.
        """
        return LifetimeScope(self._until_draining, self.draining, deadline)

    def until_closing(self) -> "LifetimeScope":
        """Return a scope that is left when the daemon closes: ``with lifetime.until_closing():``."""
        return LifetimeScope(self._until_closing, self.closing)

    def drain(self) -> None:
        """Tell every stream."""
        self.draining = True
        for scope in tuple(self._until_draining):
            scope.cancel()

    def close(self) -> None:
        """End every wait and every stream."""
        self.drain()
        self.closing = True
        for scope in tuple(self._until_closing):
            scope.cancel()


class LifetimeScope:
    """A cancel scope among those a draining or a closing daemon cancels."""

    def __init__(
        self,
        scopes: set[CancelScope],
        is_over: bool,
        deadline: float = inf,
    ) -> None:
        self._scopes = scopes
        self._scope = CancelScope(deadline=deadline)
        if is_over:
            self._scope.cancel()

    def __enter__(self) -> None:
        self._scope.__enter__()
        self._scopes.add(self._scope)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._scopes.discard(self._scope)
        return self._scope.__exit__(kind, error, trace)
