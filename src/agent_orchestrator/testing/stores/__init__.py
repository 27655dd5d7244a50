"""The contract suite for stores: subclass :class:`StoreContract` and override ``open_store``."""

from agent_orchestrator.testing.stores.changes import Changes
from agent_orchestrator.testing.stores.family import Family
from agent_orchestrator.testing.stores.notices import Notices
from agent_orchestrator.testing.stores.pruning import Pruning
from agent_orchestrator.testing.stores.queue import Queue
from agent_orchestrator.testing.stores.reads import Reads
from agent_orchestrator.testing.stores.searches import Searches
from agent_orchestrator.testing.stores.sharing import Sharing
from agent_orchestrator.testing.stores.values import Values


class StoreContract(Values, Changes, Reads, Queue, Family, Sharing, Searches, Notices, Pruning):
    """The whole contract. The test module needs ``pytestmark = pytest.mark.anyio``.

    For example::

        class TestMyStore(StoreContract):
            def open_store(self, directory):
                return MyStore(directory / "data")
    """


__all__ = ["StoreContract"]
