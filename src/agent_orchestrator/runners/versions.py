"""Compares versions of agents with the supported and the tested ones."""

from attrs import evolve, frozen

from agent_orchestrator.ports.runner import Availability


@frozen
class SupportedVersions:
    """The versions of an agent.

    :param agent: its name, for messages.
    :param newest: the newest tested version.
    :param update: how to get a newer one.
    """

    agent: str
    oldest: tuple[int, ...]
    newest: tuple[int, ...]
    update: str

    def has(self, version: str | None) -> bool:
        """Return whether a version is known, and not too old."""
        found = self._numbers(version)
        return found is not None and found >= self.oldest

    def judged(self, found: Availability) -> Availability:
        """Return an availability, with a note if its version is too old or was not tested."""
        version = self._numbers(found.version)
        if version is None:
            return found
        name = f"{self.agent} {found.version}"
        if version < self.oldest:
            reason = f"{name} is too old: {_text(self.oldest)} or newer is needed; {self.update}"
            return Availability(available=False, reason=reason, version=found.version)
        if version > self.newest and found.reason is None:
            reason = f"{name} is newer than the tested versions (up to {_text(self.newest)})"
            return evolve(found, reason=reason)
        return found

    def _numbers(self, version: str | None) -> tuple[int, ...] | None:
        """Return the first numbers of a version such as ``2.1.332``; None if there are too few."""
        parts = (version or "").split(".")[: len(self.oldest)]
        is_known = all(part.isdecimal() and len(part) < 10 for part in parts)
        return tuple(map(int, parts)) if is_known and len(parts) == len(self.oldest) else None


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
