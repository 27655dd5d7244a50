"""Access to the store under test."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel

from agent_orchestrator.ports.store import Store


class Opening:
    """Each test opens an empty store with :meth:`open_store`, and may take a minute."""

    def open_store(self, directory: Path) -> AbstractAsyncContextManager[Store]:
        """Return an empty store, not yet opened.

        :param directory: an empty directory for its files.
        """
        raise NotImplementedError

    @asynccontextmanager
    async def opened(self, directory: Path) -> AsyncIterator[Store]:
        """Open a store for one test."""
        with anyio.fail_after(60):
            async with self.open_store(directory) as store:
                yield store
