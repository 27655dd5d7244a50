"""What an administrator lets codex's threads be told, by ``/etc/codex/requirements.toml`` or likewise."""

from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve, frozen

from agent_orchestrator.runners.codex.appserver.threads import LoadedThread

METHOD: Final = "configRequirements/read"


@frozen
class Requirements:
    """What is allowed; None allows everything.

    :param approval_policies: in order; the first takes the place of one that is not among them.
    """

    sandboxes: tuple[str, ...] | None = None
    approval_policies: tuple[str, ...] | None = None

    @classmethod
    def of(cls, answer: Any) -> "Requirements":
        """Return what codex's answer to :data:`METHOD` says; what is not understood says nothing."""
        found = answer.get("requirements") if isinstance(answer, Mapping) else None
        found = found if isinstance(found, Mapping) else {}
        allowed = ("allowedSandboxModes", "allowedApprovalPolicies")
        return cls(*(_words(found.get(name)) for name in allowed))

    def applied(self, wanted: LoadedThread) -> LoadedThread:
        """Return how a thread's turns are where they are to be so.

        Codex 0.169 puts ``read-only``, which is always allowed, in the place of a sandbox that is
        not, as it loads a thread; a turn that is told one is refused.
        """
        if self.sandboxes is not None and wanted.sandbox not in self.sandboxes:
            wanted = evolve(wanted, sandbox="read-only")
        policies = self.approval_policies
        if policies is not None and wanted.approval_policy not in policies:
            wanted = evolve(wanted, approval_policy=policies[0])
        return wanted


def _words(found: Any) -> tuple[str, ...] | None:
    words = tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()
    return words or None
