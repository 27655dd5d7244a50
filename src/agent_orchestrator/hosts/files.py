"""The directories, files and environment of a machine, for hosts of every kind."""

import os
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from anyio.to_thread import run_sync

from agent_orchestrator.hosts import scratch


class LocalFiles:
    """The parts of a host that are the same on every POSIX system."""

    __slots__ = ()

    def process_id(self) -> int:
        return os.getpid()

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def current_directory(self) -> str:
        return str(Path.cwd())

    def configured_directory(self, path: str) -> str:
        return str(Path(path).expanduser().resolve(strict=True))

    def is_directory(self, path: str) -> bool:
        # Path.is_dir raises where a name is too long, or a directory may not be searched.
        return os.path.isdir(path)  # noqa: PTH112

    def resolve(self, path: str) -> str:
        return str(Path(path).resolve())

    def common_directory(self, paths: Collection[str]) -> str:
        return os.path.commonpath([os.path.realpath(path) for path in paths])

    @asynccontextmanager
    async def private_files(self, files: Mapping[str, bytes]) -> AsyncIterator[Path]:
        async with scratch.private_directory() as directory:
            await run_sync(_write_all, directory, files)
            yield directory


def _write_all(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        scratch.write(directory / name, data)
