"""The state directory of a user, in which agentd and agentctl store private files.

The rules are in ``docs/decisions/0017-the-default-layout.md``.
"""

import contextlib
import errno
import os
import pwd
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from attrs import frozen

_NAME: Final = "agent-orchestrator"
_LARGEST: Final = 1 << 20
"""Maximum size of a private file, in bytes. Larger files are ignored."""


@frozen
class UserState:
    """The paths in the state directory of one user.

    Confined agents can neither read nor write them.

    :param root: the directory; it need not exist.
    """

    root: Path

    @property
    def daemons(self) -> Path:
        """The directory with an endpoint file for each running daemon."""
        return self.root / "daemons"

    @property
    def last_daemon(self) -> Path:
        """The endpoint file of the daemon that was started last."""
        return self.root / "last-daemon.json"

    @property
    def last_stop(self) -> Path:
        """The report of the daemon that was stopped last, of those whose store is not a file."""
        return self.root / "last-stop.json"

    @property
    def last_list(self) -> Path:
        """The file with the ids of the list that agentctl has shown last."""
        return self.root / "last-list.json"

    @property
    def tokens(self) -> Path:
        """The directory with the tokens that agentctl uses by default."""
        return self.root / "tokens"

    def token_file(self, port: int) -> Path:
        """Return the token file of the daemon on a loopback port."""
        return self.tokens / str(port)

    @property
    def logs(self) -> Path:
        """The directory with the logs of daemons that have no data directory."""
        return self.root / "logs"

    @property
    def trusted(self) -> Path:
        """The directory with a record for each trusted configuration file."""
        return self.root / "trusted"

    @property
    def runs(self) -> Path:
        """The directory with a directory for each active run, for files that its agent reads."""
        return self.root / "runs"

    @property
    def push_key(self) -> Path:
        """The key for push services of a daemon whose database is not a file."""
        return self.root / "push-key"

    @property
    def databases(self) -> Path:
        """The directory with a record for each database that the user has used."""
        return self.root / "databases"


def user_state(environ: Mapping[str, str] | None = None) -> UserState | None:
    """Return the state directory of the effective user; None if no place is usable. Creates nothing.

    It is the first of these that the user may write to and that belongs to no other user:
    ``$XDG_STATE_HOME``, ``~/.local/state`` of ``$HOME`` and of the user database,
    ``$XDG_RUNTIME_DIR``, ``/run/user/UID``. ``sudo`` may pass on the variables of another user, and
    cron sets no XDG variables.

    :param environ: the environment; None means that of this process.
    """
    environ = os.environ if environ is None else environ
    for base in _bases(environ):
        if _is_usable(base / _NAME):
            return UserState(base / _NAME)
    return None


def _bases(environ: Mapping[str, str]) -> Iterator[Path]:
    for path in _paths(environ):
        # The XDG specification says to ignore relative paths.
        if (base := Path(path)).is_absolute():
            yield base


def _paths(environ: Mapping[str, str]) -> Iterator[str]:
    yield environ.get("XDG_STATE_HOME", "")
    uid = os.geteuid()
    yield str(Path(environ.get("HOME", ""), ".local/state"))
    with contextlib.suppress(KeyError):  # a container may run as a user that has no entry
        yield str(Path(pwd.getpwuid(uid).pw_dir, ".local/state"))
    for path in (environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}"):
        if os.path.isdir(path):  # only the system creates these
            yield path


def _is_usable(path: Path) -> bool:
    """Return True if this user may use or create the directory, and it belongs to no other user."""
    try:
        while not path.exists():
            path = path.parent
        return (
            path.is_dir()
            and path.stat().st_uid in (os.geteuid(), 0)
            and os.access(path, os.W_OK | os.X_OK, effective_ids=True)
        )
    except (OSError, ValueError):  # no permission, or not a valid path
        return False


def make_private_directory(path: Path) -> None:
    """Create a directory of mode 0700, and its missing parents, whatever the umask is.

    Set the mode of a directory that exists, but not of its parents.

    :raises OSError: if it cannot be created, is not a directory, or belongs to another user.
    """
    if not path.parent.exists():
        make_private_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if status.st_uid != os.geteuid():
        raise PermissionError(errno.EACCES, "Belongs to another user", str(path))
    if stat.S_IMODE(status.st_mode) != 0o700:
        path.chmod(0o700)


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 atomically.

    :raises OSError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as file:  # noqa: PTH123
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_private(path: Path) -> bytes | None:
    """Return the content of a file that only this user may read and write.

    Return None if the file is missing, belongs to another user, is accessible to others, is not a regular
    file (a symbolic link, for example), or is larger than 1 MiB.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if (
                not stat.S_ISREG(status.st_mode)
                or status.st_uid != os.geteuid()
                or stat.S_IMODE(status.st_mode) & 0o077
                or status.st_size > _LARGEST
            ):
                return None
            return file.read(_LARGEST)
    except OSError:
        return None
