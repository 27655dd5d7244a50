"""Faults that stop a store from writing."""

from attrs import frozen

from agent_orchestrator.domain.errors import Unavailable


@frozen
class Fault:
    """The reason why the database cannot be written.

    :param retry_after_s: seconds after which a caller may retry.
    :param is_final: True if only a restart can end the fault.
    """

    code: str
    message: str
    retry_after_s: int = 2
    is_final: bool = False

    def refusal(self) -> Unavailable:
        """Return a new exception for one caller: exceptions carry tracebacks and cannot be shared."""
        details = {"problem": self.code}
        return Unavailable(self.message, details, retry_after_s=self.retry_after_s)
