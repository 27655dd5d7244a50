"""Where agentd and agentctl keep what belongs to one user: the state directory and its private files.

The rules are in ``docs/decisions/0017-the-default-layout.md``.
"""

import contextlib
import errno
import os
import pwd
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import frozen

_NAME: Final = "agent-orchestrator"
_LARGEST: Final = 1 << 20
"""Bytes that a private file may have: a larger one is none of ours."""


@frozen
class UserState:
    """The state directory of one user, and what is where in it.

    Agents that are confined can neither read nor write anything in it.

    :param root: the directory; it need not exist.
    """

    root: Path

    @property
    def daemons(self) -> Path:
        """The directory with an endpoint file for each daemon that runs."""
        return self.root / "daemons"

    @property
    def last_daemon(self) -> Path:
        """The file that says which daemon was started last."""
        return self.root / "last-daemon.json"

    @property
    def tokens(self) -> Path:
        """The directory with the tokens that agentctl finds by itself."""
        return self.root / "tokens"

    def token_file(self, port: int) -> Path:
        """Return the file with the token for the daemon that listens on a loopback port."""
        return self.tokens / str(port)

    @property
    def logs(self) -> Path:
        """The directory with the logs of daemons that have no directory of their own."""
        return self.root / "logs"

    @property
    def trusted(self) -> Path:
        """The directory with a record for each trusted configuration file."""
        return self.root / "trusted"

    @property
    def runs(self) -> Path:
        """The directory with files that the programs of running agents read, a directory for each run."""
        return self.root / "runs"

    @property
    def databases(self) -> Path:
        """The directory with a record for each database that the user has used."""
        return self.root / "databases"


def user_state(environ: Mapping[str, str] | None = None) -> UserState | None:
    """Return the state directory of the effective user, or None if there is no place for one.

    Take the first place that this user may write to and that belongs to no other user:
    ``$XDG_STATE_HOME``, ``~/.local/state`` of ``$HOME`` and of the user database,
    ``$XDG_RUNTIME_DIR``, ``/run/user/UID``. ``sudo`` may hand on the variables of another user,
    and cron sets none of the XDG ones. Nothing is created.

    :param environ: the environment to look at; None means this process's.
    """
    environ = os.environ if environ is None else environ
    for base in _bases(environ):
        if _is_usable(base / _NAME):
            return UserState(base / _NAME)
    return None


def _bases(environ: Mapping[str, str]) -> list[Path]:
    uid = os.geteuid()
    homes = [environ.get("HOME", "")]
    with contextlib.suppress(KeyError):  # a container may run as a user that has no entry
        homes.append(pwd.getpwuid(uid).pw_dir)
    # A relative path is ignored, as the XDG specification says. Runtime directories are the system's
    # to make.
    runtime = [
        path
        for path in (environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}")
        if Path(path).is_dir()
    ]
    state = [str(Path(home, ".local/state")) for home in homes]
    bases = [environ.get("XDG_STATE_HOME", ""), *state, *runtime]
    return [Path(base) for base in bases if Path(base).is_absolute()]


def _is_usable(path: Path) -> bool:
    """Return whether this user may use the directory, or make it, and it is no other user's."""
    try:
        while not path.exists():
            path = path.parent
        return (
            path.is_dir()
            and path.stat().st_uid in (os.geteuid(), 0)
            and os.access(path, os.W_OK | os.X_OK, effective_ids=True)
        )
    except (OSError, ValueError):  # one may not look there, or it is no path
        return False


def make_private_directory(path: Path) -> None:
    """Create a directory that only its owner may use, whatever the umask is, and its parents likewise.

    Take rights of others away from one that exists; leave parents that exist as they are.

    :raises OSError: if it cannot be made, is not a directory, or belongs to another user.
    """
    if not path.parent.exists():
        make_private_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EACCES, "Belongs to another user", str(path))
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read or write, whole whenever it is there.

    :raises OSError: if it cannot be written.
    """
    fresh = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with open(os.open(fresh, flags, 0o600), "wb") as file:  # noqa: PTH123
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def read_private(path: Path) -> bytes | None:
    """Return the content of a file that only this user may have written or read.

    Return None for any other: one that is missing, is another user's, is open to others, is a
    symbolic link or is larger than 1 MiB.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123
            found = os.fstat(file.fileno())
            if (
                not stat.S_ISREG(found.st_mode)
                or found.st_uid != os.geteuid()
                or stat.S_IMODE(found.st_mode) & 0o077
                or found.st_size > _LARGEST
            ):
                return None
            return file.read(_LARGEST)
    except OSError:
        return None
