"""Checks whether codex can run: that it is installed, executable and logged in, and has a valid
configuration.
"""

import os
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field

from agent_orchestrator.hosts import current_host
from agent_orchestrator.ports.runner import Availability
from agent_orchestrator.runners.codex.locate import locate
from agent_orchestrator.runners.codex.login import SYSTEM_FILES, dotenv_names, has_credentials
from agent_orchestrator.runners.program import NotInstalled

_VERSION_TIMEOUT = 10.0
"""Maximum seconds for ``--version``. The native binary takes 0.01, the wrapper 0.1."""

_ASK_AGAIN_S = 60.0
"""Seconds after which a program that did not print its version in time is asked again. The machine may have
been busy."""

_NO_HOME = (
    "codex has no home: this user has no home directory (no HOME, no passwd entry); set CODEX_HOME, "
    "or `home` in the provider's settings"
)

_BANNER = "codex-cli "


def home_of(env: Mapping[str, str]) -> Path:
    """Return the path of codex's home, by codex's own rules.

    :raises NotInstalled: if this user has none.
    """
    try:
        return Path(env.get("CODEX_HOME") or Path(env.get("HOME") or Path.home(), ".codex"))
    except RuntimeError:
        raise NotInstalled(_NO_HOME) from None


def profile_warning(profile: str | None, env: Mapping[str, str]) -> str | None:
    """Return a warning about a profile that codex 0.169 would silently ignore."""
    if profile is None:
        return None
    file = home_of(env) / f"{profile}.config.toml"
    if os.path.isfile(file):
        return None
    return f"codex ignores the profile {profile!r}: there is no file {file}"


@define
class Probe:
    """Checks a command. Caches the version of each program, and the content of configuration files,
    until the file changes.
    """

    _versions: dict[tuple[Path, int], str | None] = field(factory=dict, init=False)
    _unanswered: dict[tuple[Path, int], float] = field(factory=dict, init=False)
    """Time before which a program is not asked for its version again, by :func:`time.monotonic`."""
    _layers: dict[Path, tuple[tuple[int, ...], Mapping[str, Any]]] = field(factory=dict, init=False)
    """The content of each file, with its ``stat`` when it was read."""

    def is_cached(self, command: str, env: Mapping[str, str]) -> bool:
        """Return whether a probe would start no program, and only read a few small files."""
        try:
            program = locate(command, env)
            return (program, program.stat().st_mtime_ns) in self._versions
        except (NotInstalled, OSError):
            return False

    def __call__(
        self,
        command: str,
        env: Mapping[str, str],
        *,
        profile: str | None = None,
        config: Mapping[str, Any] | None = None,
        extra_args: Sequence[str] = (),
        is_exec: bool = True,
    ) -> Availability:
        """Return whether a run could start. Blocks for some milliseconds the first time.

        :param is_exec: whether its runs use ``codex exec``. Only that accepts CODEX_API_KEY (codex
            0.169).
        """
        try:
            program = locate(command, env)
            version = self._version(program, env)
            if version is None:
                return self._unknown(program, env, profile)
            settings, unreadable = self.settings(env, profile, config, extra_args)
            login = _login_problem(settings, env, is_exec=is_exec)
            if login and not unreadable and "--oss" not in extra_args:
                return Availability(available=False, reason=login, version=version, logged_in=False)
            reason = unreadable or profile_warning(profile, env)
            known = True if has_credentials(home_of(env)) else None
            return Availability(available=True, reason=reason, version=version, logged_in=known)
        except NotInstalled as problem:
            return Availability(available=False, reason=str(problem))

    def _unknown(self, program: Path, env: Mapping[str, str], profile: str | None) -> Availability:
        """Return the availability of a program that does not identify itself as codex.

        How it logs in is unknown.
        """
        reason = profile_warning(profile, env)
        if program in (silent for silent, _ in self._unanswered):
            reason = f"{program} did not print its version within {_VERSION_TIMEOUT:g} s"
        return Availability(available=True, reason=reason)

    def _version(self, program: Path, env: Mapping[str, str]) -> str | None:
        key = program, program.stat().st_mtime_ns
        if key not in self._versions and time.monotonic() >= self._unanswered.get(key, 0.0):
            try:
                self._versions[key] = _ask_version(program, env)
                self._unanswered.pop(key, None)
            except TimeoutError:
                self._unanswered[key] = time.monotonic() + _ASK_AGAIN_S
        return self._versions.get(key)

    def settings(
        self,
        env: Mapping[str, str],
        profile: str | None,
        config: Mapping[str, Any] | None,
        extra_args: Sequence[str],
    ) -> tuple[dict[str, Any], str | None]:
        """Return codex's settings from the files of its home and the overrides, and the problem
        with them.
        """
        try:
            settings, unreadable = self._files(home_of(env), profile)
        except NotInstalled as problem:
            settings, unreadable = {}, str(problem)
        for key, value in {**(config or {}), **_overrides(extra_args)}.items():
            _set_path(settings, key.split("."), value)
        return settings, unreadable

    def _files(self, home: Path, profile: str | None) -> tuple[dict[str, Any], str | None]:
        """Return the settings of the config file, overridden by the profile's, and the problem with
        them.
        """
        settings: dict[str, Any] = {}
        for name in ("config.toml", *([f"{profile}.config.toml"] if profile else ())):
            try:
                layer = self._layer(home / name)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                return settings, f"codex cannot read {home / name}: {error}"
            _merge(settings, layer)
        return settings, None

    def _layer(self, file: Path) -> Mapping[str, Any]:
        status = file.stat()
        state = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = self._layers.get(file)
        if known is None or known[0] != state:
            known = self._layers[file] = state, tomllib.loads(file.read_bytes().decode("utf-8-sig"))
        return known[1]


def _ask_version(program: Path, env: Mapping[str, str]) -> str | None:
    """Return codex's version; None if the program does not identify itself as codex.

    :raises TimeoutError: if it prints nothing in time.
    """
    try:
        answer = current_host().output(
            [str(program), "--version"], env=env, timeout_s=_VERSION_TIMEOUT
        )
    except TimeoutError:  # which is an OSError
        raise
    except OSError as error:
        raise NotInstalled(f"{program} cannot be run: {error.strerror}") from error
    text = answer.decode("utf-8", "replace").strip()
    return text.removeprefix(_BANNER) if text.startswith(_BANNER) else None


# --- login ----------------------------------------------------------------------------------


def _login_problem(
    settings: Mapping[str, Any], env: Mapping[str, str], *, is_exec: bool
) -> str | None:
    """Return why codex has no login; None if it has one, or if only codex can tell."""
    home = home_of(env)
    if any(map(os.path.exists, (*SYSTEM_FILES, home / "managed_config.toml"))):
        return None  # these files may choose the provider, and only codex knows how it reads them
    name = settings.get("model_provider", "openai")
    providers = settings.get("model_providers")
    provider = providers.get(name) if isinstance(providers, dict) else None
    if isinstance(provider, dict):
        key = provider.get("env_key")
        if isinstance(key, str):
            if env.get(key) or key in dotenv_names(home):
                return None
            if not provider.get("requires_openai_auth"):
                return (
                    f"codex's model provider {name!r} needs the environment variable {key}, which "
                    "is not set"
                )
        elif not provider.get("requires_openai_auth"):
            return None
    elif name != "openai":
        return None  # another built-in one, such as ollama
    if is_exec and env.get("CODEX_API_KEY"):
        return None
    if settings.get("cli_auth_credentials_store", "file") != "file":
        return None  # in a keyring, where only codex looks
    if has_credentials(home):
        return None
    if is_exec:
        return "codex is not logged in: run `codex login`, or set CODEX_API_KEY"
    ignored = "; only `codex exec` uses CODEX_API_KEY" if env.get("CODEX_API_KEY") else ""
    return f"codex is not logged in: run `codex login`{ignored}"


def _merge(settings: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, dict):
            inner = settings.get(key)
            settings[key] = inner = dict(inner) if isinstance(inner, dict) else {}
            _merge(inner, value)
        else:
            settings[key] = value


def _overrides(extra_args: Sequence[str]) -> dict[str, Any]:
    """Return the configuration overrides in the arguments. A value that is not TOML counts as text."""
    settings: dict[str, Any] = {}
    arguments = iter(extra_args)
    for argument in arguments:
        if argument in ("-c", "--config"):
            pair = next(arguments, "")
        elif argument.startswith("--config="):
            pair = argument.removeprefix("--config=")
        elif argument.startswith("-c"):
            pair = argument.removeprefix("-c").removeprefix("=")
        else:
            continue
        key, tag, text = pair.partition("=")
        if tag:
            try:
                settings[key.strip()] = tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError:
                settings[key.strip()] = text.strip()
    return settings


def _set_path(settings: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        inner = settings.get(key)
        if not isinstance(inner, dict):
            settings[key] = inner = {}
        settings = inner
    settings[path[-1]] = value


def environment(env: Mapping[str, str], home: str | None) -> dict[str, str]:
    """Return codex's environment.

    RUST_BACKTRACE is off, because codex 0.169 would add backtraces to its messages.
    """
    # Unchanged if `~` cannot be resolved: codex then reports that it does not exist.
    codex_home = {"CODEX_HOME": os.path.abspath(os.path.expanduser(home))} if home else {}  # noqa: PTH100, PTH111
    return {**env, "RUST_BACKTRACE": "0", **codex_home}
