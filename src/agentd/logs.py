"""The daemon's log on stderr: text for a person, one JSON object a line for a machine."""

import errno
import io
import json
import logging
import os
import re
import stat
import sys
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO, cast

_BEARER: Final = re.compile(r"""(?i)(\bbearer[ .:=]+)[^\s"'\\,]+""")
_HEADER: Final = re.compile(
    r"""(?i)(\bauthorization[\\'" ]*[:=,][\\'" ]*(?:b['"])?(?:\w+ +)?)[^\s"'\\,]+"""
)
_MADE_HERE: Final = re.compile(r"\b(a[rp]t_)[A-Za-z0-9_-]{20,}")
HIDDEN: Final = "[hidden]"

_log = logging.getLogger("agentd")

SHORT_SECRET: Final = 8
"""Characters below which a secret is guessed too easily, and too ordinary a text to be hidden
wherever it stands."""


class Redactor:
    """Takes secrets out of what is about to be written: the one place that does.

    :param secrets: texts that must never appear. Those of fewer than eight characters are taken
        out only where they are told as tokens: elsewhere they are ordinary letters.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        shown = {
            form
            for secret in secrets
            if len(secret) >= SHORT_SECRET
            for form in (secret, json.dumps(secret)[1:-1])
        }
        # The longest first: one secret may be a part of another.
        self._secrets = sorted(shown, key=len, reverse=True)

    def __call__(self, line: str) -> str:
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN)
        line = _MADE_HERE.sub(rf"\1{HIDDEN}", line)
        return _BEARER.sub(rf"\1{HIDDEN}", _HEADER.sub(rf"\1{HIDDEN}", line))


class _Formatter(logging.Formatter):
    def __init__(self, redactor: Redactor, *, as_json: bool) -> None:
        super().__init__()
        self._redact = redactor
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        trace = self.formatException(record.exc_info) if record.exc_info else None
        moment = datetime.fromtimestamp(record.created, UTC)
        if not self._as_json:
            told = "".join(f" {name}={value}" for name, value in fields.items())
            # One message is one line: what it quotes cannot forge another.
            message = json.dumps(record.getMessage() + told, ensure_ascii=False)[1:-1]
            message = message.replace('\\"', '"').replace("\\\\", "\\")
            line = (
                f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03} {record.levelname:<7} {message}"
            )
            return _printable(self._redact(line if trace is None else f"{line}\n{trace}"))
        document = {
            "time": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields,
        }
        if trace is not None:
            document["traceback"] = trace
        return _printable(self._redact(json.dumps(document, ensure_ascii=False, default=str)))


def _printable(line: str) -> str:
    """Return a line that can be written: a name from the system may hold bytes that are no text."""
    return line.encode(errors="backslashreplace").decode()


def configure_logging(
    *, form: str, level: str, secrets: Iterable[str] = (), stream: TextIO | None = None
) -> logging.Handler:
    """Send the log of the whole process to stderr and return what does it.

    :param form: ``text``, ``json``, or ``auto``: text on a terminal.
    :param level: the least severe messages of the daemon's own; of others, warnings.
    :param secrets: texts that must never appear.
    """
    stream = stream or sys.stderr
    as_json = form == "json" or (form == "auto" and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(Redactor(secrets), as_json=as_json))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in ("agentd", "agent_orchestrator"):
        logging.getLogger(name).setLevel(level.upper())
    logging.captureWarnings(capture=True)
    return handler


def put_aside(path: Path) -> Path:
    """Return the path of the older log beside a log file."""
    return path.with_name(f"{path.name}.1")


class LogFile:
    """The file that standard error was sent to, if it is one.

    :param limit: bytes after which it is kept as ``NAME.1``, in the place of the one before, and a
        new one is begun; None is no limit.
    """

    def __init__(self, descriptor: int = 2, *, limit: int | None = None) -> None:
        self._descriptor = descriptor
        self._limit = limit
        self._most = limit
        self._lock = threading.RLock()
        self.path: Path | None = None
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                # As it is called now: once it is renamed, the system tells the new name.
                self.path = Path(f"/proc/self/fd/{descriptor}").readlink()
        except OSError:
            pass  # closed, or of a system without /proc: nothing to open anew

    def reopen(self) -> None:
        """Go on in the file of the first one's name, which is made if it is not there.

        :raises OSError: if it cannot be opened, or is no regular file; the log goes on where it was.
        """
        if self.path is None:
            return
        # Whoever may write to the directory could have put a link or a pipe there.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        fresh = os.open(self.path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fresh).st_mode):
                raise OSError(errno.EINVAL, "is not a regular file")
            with self._lock:
                before = os.fstat(self._descriptor)
                os.dup2(fresh, self._descriptor)
                if self._descriptor == 2 and os.path.samestat(before, os.fstat(1)):
                    os.dup2(fresh, 1)
                self._most = self._limit
        finally:
            os.close(fresh)

    def keep_short(self) -> None:
        """Put the file aside if it has become too long: called after each write.

        Where that fails, it is tried again once as much was written again.
        """
        if self._most is None or self.path is None or self._size() <= self._most:
            return
        with self._lock:
            size = self._size()
            if size <= self._most:
                return  # another thread came first
            self._most = size + (self._limit or 0)
            try:
                self._put_aside(self.path)
                self.reopen()
            except OSError as error:
                _log.warning("%s cannot be renamed: %s", self.path, error.strerror)

    def _size(self) -> int:
        try:
            return os.fstat(self._descriptor).st_size
        except OSError:
            return 0

    def _put_aside(self, path: Path) -> None:
        try:
            is_ours = os.path.samestat(path.lstat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return  # somebody has moved it away
        if is_ours:
            path.replace(put_aside(path))

    def bound(self, stream: TextIO) -> TextIO:
        """Return a stream that writes what it is given to another one, and keeps the file short."""
        return cast("TextIO", _Bounded(stream, self))


class _Bounded:
    """A text stream into the log file. What else is printed there counts too: tracebacks of threads,
    warnings, what functions that are run as agents print.
    """

    def __init__(self, stream: TextIO, file: LogFile) -> None:
        self._stream = stream
        self._file = file

    def write(self, text: str) -> int:
        written = self._stream.write(text)
        self._file.keep_short()
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def bound_output(limit: int | None) -> LogFile:
    """Return the file that standard error goes to, which is kept short from now on.

    :param limit: bytes it may have; None is no limit.
    """
    file = LogFile(limit=limit)
    if limit is not None and file.path is not None:
        try:
            is_shared = os.path.samestat(os.fstat(1), os.fstat(2))
        except OSError:
            is_shared = False
        if is_shared and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)
            sys.stdout = file.bound(sys.stdout)
        sys.stderr = file.bound(sys.stderr)
        file.keep_short()
    return file
