"""The limits that an administrator sets for codex's threads, for example in
``/etc/codex/requirements.toml``.
"""

from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve, frozen

from agent_orchestrator.runners.codex.appserver.threads import LoadedThread

METHOD: Final = "configRequirements/read"


@frozen
class Requirements:
    """Allowed values; None allows everything.

    :param approval_policies: in order. The first one replaces a policy that is not allowed.
    """

    sandboxes: tuple[str, ...] | None = None
    approval_policies: tuple[str, ...] | None = None

    @classmethod
    def of(cls, answer: Any) -> "Requirements":
        """Parse codex's answer to :data:`METHOD`. Unknown parts are ignored."""
        found = answer.get("requirements") if isinstance(answer, Mapping) else None
        found = found if isinstance(found, Mapping) else {}
        allowed = ("allowedSandboxModes", "allowedApprovalPolicies")
        return cls(*(_words(found.get(name)) for name in allowed))

    def applied(self, requested: LoadedThread) -> LoadedThread:
        """Return the confinement that codex uses for a requested one.

        When codex 0.169 loads a thread with a sandbox that is not allowed, it uses ``read-only``,
        which always is. It refuses a turn with such a sandbox.
        """
        if self.sandboxes is not None and requested.sandbox not in self.sandboxes:
            requested = evolve(requested, sandbox="read-only")
        policies = self.approval_policies
        if policies is not None and requested.approval_policy not in policies:
            requested = evolve(requested, approval_policy=policies[0])
        return requested


def _words(found: Any) -> tuple[str, ...] | None:
    words = tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()
    return words or None
