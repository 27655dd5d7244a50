"""The daemon's state (serving, draining or closing), and scopes that end with a state."""

import logging
import os
import threading
import time
from math import inf
from types import TracebackType
from typing import Self

from anyio import CancelScope

_log = logging.getLogger("agentd")


class ExitTimer:
    """Ends the process at a set time, like a kill, if something hangs: a function that ignores its
    cancellation, or a disk that does not answer. Acknowledged changes are not lost. The supervisors
    end the agents, and the next start recovers their runs.

    A context manager: leaving it cancels the timer. The timer runs in a separate thread, because
    the event loop may hang.
    """

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def set(self, seconds: float) -> None:
        """End the process in this many seconds. This replaces a time set before."""
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
    _log.critical("the daemon hangs while it stops: killing it; the next start recovers")
    os._exit(1)


def end_threads(status: int, seconds: float) -> None:
    """Wait for the threads that keep the process alive. End the process if one takes longer.

    It may wait for a directory on a server that does not answer. Nothing else is left to do when this is called.

    :param status: the exit status of the process.
    """
    deadline = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                _log.warning("ending without the thread %s, which has not ended", thread.name)
                logging.shutdown()
                os._exit(status)


class Lifetime:
    """The state of the daemon, for the web app.

    A draining daemon still answers. Its streams announce the drain and show how runs end. When it
    closes, all waits and streams end at once, so that the server can close its connections.
    """

    def __init__(self) -> None:
        self.draining = False
        self.closing = False
        self._until_draining: set[CancelScope] = set()
        self._until_closing: set[CancelScope] = set()

    def until_draining(self, *, deadline: float) -> "LifetimeScope":
        """Return a scope that is canceled when the daemon begins to drain.

        :param deadline: time at which it is canceled in any case, as of :func:`anyio.current_time`.
        """
        return LifetimeScope(self._until_draining, self.draining, deadline)

    def until_closing(self) -> "LifetimeScope":
        """Return a scope that is canceled when the daemon closes."""
        return LifetimeScope(self._until_closing, self.closing)

    def drain(self) -> None:
        """Begin to drain: cancel the scopes of :meth:`until_draining`."""
        self.draining = True
        for scope in tuple(self._until_draining):
            scope.cancel()

    def close(self) -> None:
        """Close: cancel the scopes of :meth:`until_closing`, which ends all waits and streams."""
        self.drain()
        self.closing = True
        for scope in tuple(self._until_closing):
            scope.cancel()


class LifetimeScope:
    """A cancel scope that belongs to a set of scopes while it is active."""

    def __init__(
        self,
        scopes: set[CancelScope],
        is_canceled: bool,
        deadline: float = inf,
    ) -> None:
        self._scopes = scopes
        self._scope = CancelScope(deadline=deadline)
        if is_canceled:
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
