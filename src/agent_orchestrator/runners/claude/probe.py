"""Checks whether Claude Code is installed, of a supported version, and logged in."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field, frozen

from agent_orchestrator.hosts import current_host
from agent_orchestrator.ports.runner import Availability
from agent_orchestrator.runners.claude.locate import locate
from agent_orchestrator.runners.claude.trust import config_directory, state_file
from agent_orchestrator.runners.program import NotInstalled
from agent_orchestrator.runners.versions import SupportedVersions

VERSIONS: Final = SupportedVersions("Claude Code", (2, 1, 332), (2, 1, 332), "run `claude update`")
"""The tested versions. Older and newer ones were not tried."""

_BANNER: Final = " (Claude Code)"

_TIMEOUT_S: Final = 10.0
_ASK_AGAIN_S: Final = 60.0
"""Seconds after which a missing login is checked again, even if its files have not changed."""

_LOGIN_FILES: Final = (".credentials.json", "settings.json")
"""The files of its configuration directory that only a login or the user changes."""


@frozen
class _Login:
    """The result of a login check.

    :param asked_at: its time, by :func:`time.monotonic`.
    :param state: the state of ``.claude.json``, which each start of Claude Code may change.
    :param is_logged_in: None if it is unknown.
    """

    asked_at: float
    state: "_FileState"
    is_logged_in: bool | None

    def is_valid(self, state: "_FileState") -> bool:
        """Return whether the result is still good. A login that has gone meanwhile fails the run, after which
        it is checked again.
        """
        if self.is_logged_in:
            return True
        is_recent = time.monotonic() - self.asked_at <= _ASK_AGAIN_S
        return is_recent and (self.is_logged_in is None or self.state == state)


@define
class Probe:
    """Checks a command. Caches the version of each program, and the login, until their files change."""

    _versions: dict[tuple[Path, int], str | None] = field(factory=dict, init=False)
    _logins: dict[tuple[Any, ...], _Login] = field(factory=dict, init=False)
    """The last login check, by the environment and the states of files."""

    def __call__(self, command: str, env: Mapping[str, str]) -> Availability:
        """Return whether a run could start. Blocks for half a second the first time."""
        try:
            program = locate(command, env)
            version = self.version(program, env)
        except NotInstalled as problem:
            return Availability(available=False, reason=str(problem))
        if version is None:
            reason = f"{program} does not say that it is Claude Code"
            return Availability(available=False, reason=reason)
        found = VERSIONS.judged(Availability(available=True, version=version))
        if not found.available:
            return found
        is_logged_in = self._login(program, env)
        if is_logged_in is False:
            reason = (
                "Claude Code is not logged in: run `claude auth login`, or set ANTHROPIC_API_KEY"
            )
            return evolve(found, available=False, reason=reason, logged_in=False)
        return evolve(found, logged_in=is_logged_in)

    def version(self, program: Path, env: Mapping[str, str]) -> str | None:
        """Return the version of a program; None if it does not identify itself as Claude Code.

        :raises NotInstalled: if it cannot be run.
        """
        key = program, program.stat().st_mtime_ns
        if key not in self._versions:
            said = _output(program, ("--version",), env).strip()
            self._versions[key] = said.removesuffix(_BANNER) if said.endswith(_BANNER) else None
        return self._versions[key]

    def _login(self, program: Path, env: Mapping[str, str]) -> bool | None:
        directory = config_directory(env)
        files = [directory / name if directory is not None else None for name in _LOGIN_FILES]
        key = (frozenset(env.items()), *map(_state_of, files))
        known = self._logins.get(key)
        if known is None or not known.is_valid(_state_of(state_file(env))):
            self._logins.clear()
            found = _is_logged_in(program, env)
            # Afterwards, as the check itself starts Claude Code.
            known = _Login(time.monotonic(), _state_of(state_file(env)), found)
            self._logins[key] = known
        return known.is_logged_in

    def forget_login(self) -> None:
        """Check the login again at the next probe, because a run has shown that the result was wrong."""
        self._logins.clear()


_FileState = tuple[int, int] | None
"""The time of the last change of a file in nanoseconds, and its size; None if there is no such file."""


def _state_of(file: Path | None) -> _FileState:
    try:
        found = file.stat() if file is not None else None
    except OSError:
        found = None
    return None if found is None else (found.st_mtime_ns, found.st_size)


def _is_logged_in(program: Path, env: Mapping[str, str]) -> bool | None:
    """Return the result of ``auth status``; None if it is unknown."""
    try:
        status = json.loads(_output(program, ("auth", "status"), env))
    except (NotInstalled, ValueError):
        return None
    if not isinstance(status, dict) or status.get("apiProvider", "firstParty") != "firstParty":
        return None
    found = status.get("loggedIn")
    return found if isinstance(found, bool) else None


def _output(program: Path, arguments: tuple[str, ...], env: Mapping[str, str]) -> str:
    try:
        said = current_host().output([str(program), *arguments], env=env, timeout_s=_TIMEOUT_S)
    except TimeoutError:
        raise NotInstalled(f"{program} did not answer within {_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise NotInstalled(f"{program} cannot be run: {error.strerror}") from error
    return said.decode("utf-8", "replace")
