"""A row of the table of calls."""

from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

from attrs import evolve, frozen

from agent_orchestrator.domain.access import Scope

Req = TypeVar("Req")
Res = TypeVar("Res")


@frozen
class Operation(Generic[Req, Res]):
    """One call.

    :param name: the name of the client's method, and the id in the API description.
    :param path: the route; a part in braces is the field of that name. The command's other fields are
        the query of a GET, and the body of any other method.
    :param status: the HTTP status of success, or a function from the answer to it.
    :param scope: the scope that the caller needs, unless the operation is public.
    """

    name: str
    method: Literal["GET", "POST", "PATCH", "PUT", "DELETE"]
    path: str
    request: type[Req]
    answer: type[Res]
    summary: str
    scope: Scope = "read"
    status: int | Callable[[Any], int] = 200
    statuses: tuple[int, ...] = (200,)
    """Every HTTP status of success, for the API description."""
    public: bool = False
    """Whether callers need no token. A call that is refused with 401 counts as a wrong token."""
    shared: bool = False
    """Whether a share link allows it, for its session and what is below."""
    answers_lines: bool = False
    """Whether a success has a stream of JSON lines in place of an answer."""
    takes_lines: bool = False
    """Whether the body is a stream of JSON lines. The command's fields are then in the query."""
    takes_long: bool = False
    """Whether the call's time grows with the store: a client should set no time limit."""

    @property
    def is_mutation(self) -> bool:
        return self.method != "GET"

    @property
    def has_query(self) -> bool:
        """Whether the command's fields are in the query, not in the body."""
        return not self.is_mutation or self.takes_lines

    def status_of(self, answer: Res) -> int:
        """Return the HTTP status for this answer."""
        return self.status(answer) if callable(self.status) else self.status

    @property
    def path_fields(self) -> tuple[str, ...]:
        return tuple(
            part[1:-1] for part in self.path.split("/") if part.startswith("{") and part[-1] == "}"
        )


def _made(operation: Operation[Req, Res]) -> Operation[Req, Res]:
    return evolve(operation, status=201, statuses=(201,))
