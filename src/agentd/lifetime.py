"""Whether the daemon serves, drains or closes, and the waits that end when it closes."""

from types import TracebackType

from anyio import CancelScope


class Lifetime:
    """Shared by the web app and whoever stops the daemon.

    While it drains, answers are still given: streams show how runs end. When it closes, every
    wait and stream ends at once, so that the server can stop without cutting a connection.
    """

    def __init__(self) -> None:
        self.draining = False
        self.closing = False
        self._scopes: set[CancelScope] = set()

    def until_closing(self) -> "EndedByClosing":
        """Return a scope that is left when the daemon closes: ``with lifetime.until_closing():``."""
        return EndedByClosing(self._scopes, closing=self.closing)

    def close(self) -> None:
        """End every wait and every stream."""
        self.draining = self.closing = True
        for scope in tuple(self._scopes):
            scope.cancel()


class EndedByClosing:
    """A cancel scope among those a closing daemon cancels."""

    def __init__(self, scopes: set[CancelScope], *, closing: bool) -> None:
        self._scopes = scopes
        self._scope = CancelScope()
        if closing:
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
