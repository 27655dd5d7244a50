"""The parts of a host that are the same on every POSIX system."""

import os
import platform
import pwd
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final, Self

import anyio
from anyio.to_thread import run_sync
from attrs import evolve, frozen

from agent_orchestrator.domain.daemons import LOCAL_HOST
from agent_orchestrator.domain.model import Attempt
from agent_orchestrator.host import DirectoryChanges, ReapResult
from agent_orchestrator.hosts import checkout, process_tree, reaping, scratch
from agent_orchestrator.hosts.machine import machine_name
from agent_orchestrator.operations.daemon import Finding
from agent_orchestrator.operations.runs import ProcessView

_POLL_S: Final = 1.0
"""Seconds between checks of a process whose end the system does not report."""


@frozen
class LocalHost:
    """The machine that the calling process is on; see :class:`agent_orchestrator.host.Host`.

    :param id: see :attr:`agent_orchestrator.host.Host.id`.
    """

    id: str = LOCAL_HOST

    def named(self, name: str) -> Self:
        return evolve(self, id=name)

    def machine_name(self) -> str:
        return machine_name()

    def limited(self, ends_at: Callable[[], float]) -> Self:  # noqa: ARG002
        return self

    def extend(self) -> bool:
        return True

    def process_id(self) -> int:
        return os.getpid()

    def process_start_id(self, pid: int) -> str | None:
        raise NotImplementedError

    def hostname(self) -> str:
        return platform.node()

    def user(self) -> str:
        try:
            return pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            return f"user {os.geteuid()}"

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def current_directory(self) -> str:
        return str(Path.cwd())

    def configured_directory(self, path: str) -> str:
        return str(Path(path).expanduser().resolve(strict=True))

    def is_directory(self, path: str) -> bool:
        # Path.is_dir raises where a name is too long, or a directory may not be searched.
        return os.path.isdir(path)

    def resolve(self, path: str) -> str:
        return str(Path(path).resolve())

    def common_directory(self, paths: Collection[str]) -> str:
        return os.path.commonpath([os.path.realpath(path) for path in paths])

    async def directory_changes(
        self, directory: str, since: datetime, *, hidden: Collection[str] = ()
    ) -> DirectoryChanges | None:
        return await checkout.changes(directory, since, hidden)

    async def process_end(self, pid: int, start_id: str) -> None:
        while self.process_start_id(pid) == start_id:  # noqa: ASYNC110 - nothing reports its end
            await anyio.sleep(_POLL_S)

    def process_tree(self, pid: int, start_id: str | None, limit: int) -> Sequence[ProcessView]:
        return process_tree.process_tree(pid, start_id, limit, self.process_start_id)

    def findings(self) -> Sequence[Finding]:
        return (*_user_findings(), *self._findings())

    def _findings(self) -> Iterator[Finding]:
        """Yield the findings of this kind of host."""
        raise NotImplementedError

    def output(self, argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float) -> bytes:
        with subprocess.Popen(
            list(argv),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                return process.communicate(timeout=timeout_s)[0]
            except subprocess.TimeoutExpired:
                # With its children: usually a wrapper's child hangs, not the wrapper. Darwin refuses
                # this if the program itself has exited, and only a child outside its group is left.
                with suppress(PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise TimeoutError from None

    @asynccontextmanager
    async def private_files(self, files: Mapping[str, bytes]) -> AsyncIterator[Path]:
        async with scratch.private_directory() as directory:
            await run_sync(_write_all, directory, files)
            yield directory

    async def reap(self, attempts: Sequence[Attempt]) -> Mapping[tuple[str, int], ReapResult]:
        return await reaping.reap(self.id, attempts, self._reap_one)

    async def _reap_one(self, attempt: Attempt) -> ReapResult:
        """End the processes of an attempt of this host."""
        raise NotImplementedError


def _user_findings() -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding(
            "warning",
            "agents",
            "they run as root",
            "run agentd as a dedicated user",
            security=True,
        )


def _write_all(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        scratch.write(directory / name, data)
