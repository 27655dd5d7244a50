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
_STORED_TOKEN: Final = re.compile(r"\b(a[rp]t_)[A-Za-z0-9_-]{20,}")
HIDDEN: Final = "[hidden]"

_log = logging.getLogger("agentd")

SHORT_SECRET: Final = 8
"""Characters below which a secret is easily guessed, and too common a text to hide everywhere."""


class Redactor:
    """Replaces secrets in text to be written.

    :param secrets: texts to hide. Those shorter than :data:`SHORT_SECRET` are hidden only after
        "Authorization" or "Bearer".
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {
            form
            for secret in secrets
            if len(secret) >= SHORT_SECRET
            for form in (secret, json.dumps(secret)[1:-1])
        }
        # The longest first, because one secret may be a part of another.
        self._secrets = sorted(forms, key=len, reverse=True)

    def __call__(self, line: str) -> str:
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN)
        line = _STORED_TOKEN.sub(rf"\1{HIDDEN}", line)
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
            field_text = "".join(f" {name}={value}" for name, value in fields.items())
            # Escaped, so that quoted text cannot forge another line.
            message = json.dumps(record.getMessage() + field_text, ensure_ascii=False)[1:-1]
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
    """Return a line with surrogates escaped: names from the system need not be UTF-8."""
    return line.encode(errors="backslashreplace").decode()


def configure_logging(
    *, form: str, level: str, secrets: Iterable[str] = (), stream: TextIO | None = None
) -> logging.Handler:
    """Log the whole process to stderr and return the handler.

    :param form: ``text``, ``json``, or ``auto``: text on a terminal.
    :param level: the lowest level to log for the daemon; other loggers log warnings.
    :param secrets: texts to hide.
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


def rotated_path(path: Path) -> Path:
    """Return the path of a log file's previous part."""
    return path.with_name(f"{path.name}.1")


class LogFile:
    """The log file, if standard error is a regular file.

    :param limit: size in bytes after which it is rotated: renamed to ``NAME.1``, which replaces an
        older one. None means no limit.
    """

    def __init__(self, descriptor: int = 2, *, limit: int | None = None) -> None:
        self._descriptor = descriptor
        self._limit = limit
        self._rotate_at = limit
        self._lock = threading.RLock()
        self.path: Path | None = None
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                # Read now, because after a rename the link has the new name.
                self.path = Path(f"/proc/self/fd/{descriptor}").readlink()
        except OSError:
            pass  # closed, or a system without /proc: cannot be reopened

    def reopen(self) -> None:
        """Log to the file at the original path, which is created if it is missing.

        :raises OSError: if it cannot be opened, or is not a regular file. The log stays in the old file.
        """
        if self.path is None:
            return
        # Others may write to the directory, and could have put a link or a pipe there.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "is not a regular file")
            with self._lock:
                before = os.fstat(self._descriptor)
                os.dup2(descriptor, self._descriptor)
                if self._descriptor == 2 and os.path.samestat(before, os.fstat(1)):
                    os.dup2(descriptor, 1)
                self._rotate_at = self._limit
        finally:
            os.close(descriptor)

    def rotate_if_full(self) -> None:
        """Rotate the file if it has reached the limit. Called after each write.

        After a failure, this tries again when as much was written again.
        """
        if self._rotate_at is None or self.path is None or self._size() <= self._rotate_at:
            return
        with self._lock:
            size = self._size()
            if size <= self._rotate_at:
                return  # rotated by another thread
            self._rotate_at = size + (self._limit or 0)
            try:
                self._rename(self.path)
                self.reopen()
            except OSError as error:
                _log.warning("%s cannot be renamed: %s", self.path, error.strerror)

    def _size(self) -> int:
        try:
            return os.fstat(self._descriptor).st_size
        except OSError:
            return 0

    def _rename(self, path: Path) -> None:
        try:
            is_ours = os.path.samestat(path.lstat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return  # moved by another program
        if is_ours:
            path.replace(rotated_path(path))

    def rotating(self, stream: TextIO) -> TextIO:
        """Return a stream that writes to another stream and rotates this file."""
        return cast("TextIO", _RotatingStream(stream, self))


class _RotatingStream:
    """A text stream to the log file, for everything that is printed there: log lines, tracebacks of
    threads, warnings, and output of functions that run as agents.
    """

    def __init__(self, stream: TextIO, file: LogFile) -> None:
        self._stream = stream
        self._file = file

    def write(self, text: str) -> int:
        written = self._stream.write(text)
        self._file.rotate_if_full()
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def rotate_output(limit: int | None) -> LogFile:
    """Return the file of standard error, and rotate it from now on.

    :param limit: maximum size in bytes; None means no limit.
    """
    file = LogFile(limit=limit)
    if limit is not None and file.path is not None:
        try:
            is_shared = os.path.samestat(os.fstat(1), os.fstat(2))
        except OSError:
            is_shared = False
        if is_shared and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)
            sys.stdout = file.rotating(sys.stdout)
        sys.stderr = file.rotating(sys.stderr)
        file.rotate_if_full()
    return file
