"""A simulation of several engines on one store, on a virtual clock: see ``simulation.py``.

Clients call any engine that lives. Engines are lost, paused for longer than their lease, and drained, at
moments that follow from the seed, while the others go on and take over.
``python tests/engine/fleets.py --seeds 1000`` runs many simulations.
"""

import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Final, Self

import anyio
import trio
import trio.testing
from attrs import define, evolve, field, frozen
from crashing import Crashed
from shared_memory import SharedHandle, SharedMemory
from simulation import (
    STEPS,
    Actor,
    Agents,
    SimulatedHost,
    World,
    _after,
    _plans,
    main,
    predictable,
)

from agent_orchestrator import Client, RunContext
from agent_orchestrator.domain.errors import OrchestratorError, Unavailable
from agent_orchestrator.engine import EngineConfig, Orchestrator

FLEET_QUIET_S: Final = 3_000.0
"""Virtual seconds after which all engines must be idle."""

FATES: Final = (("lost", "paused", "drained"), (4, 4, 2))


@define
class FleetAgents(Agents):
    """Agents whose supervisors end them with the lease of their daemon."""

    store: SharedMemory = field(factory=SharedMemory)

    async def _live(self, context: RunContext) -> None:
        if not self.store.fleet.may_work(context.run.worker_id):
            await anyio.sleep_forever()
        await super()._live(context)


@frozen(kw_only=True)
class FleetHost(SimulatedHost):
    """A machine whose agents end with a lease of the simulated clock."""

    ends_at: Any = None

    def limited(self, ends_at: Any) -> Self:
        return type(self)(agents=self.agents, ends_at=ends_at)

    def extend(self) -> bool:
        return bool(anyio.current_time() < self.ends_at())


@define(eq=False)
class Node:
    """An engine that clients can call, until it is gone."""

    handle: SharedHandle
    engine: Orchestrator
    scopes: set[anyio.CancelScope] = field(factory=set)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Have the calls in this scope fail when the engine is gone."""
        with anyio.CancelScope() as scope:
            self.scopes.add(scope)
            try:
                yield
            except Crashed:
                raise Unavailable("the engine is gone") from None
            finally:
                self.scopes.discard(scope)
        if scope.cancelled_caught:
            raise Unavailable("the engine is gone")

    def leave(self) -> None:
        for scope in tuple(self.scopes):
            scope.cancel()


@define
class Router:
    """A transport to any of the engines that live."""

    rng: random.Random
    nodes: list[Node] = field(factory=list)

    def node(self) -> Node:
        if not self.nodes:
            raise Unavailable("no engine lives")
        return self.rng.choice(self.nodes)

    async def call(self, operation: Any, request: Any) -> Any:
        node = self.node()
        with node.calling():
            return await node.engine.call(operation, request)


class FleetActor(Actor):
    """A client that follows a session through the loss of engines."""

    async def follow(self, client: Client) -> None:
        router = client.transport
        assert isinstance(router, Router)
        while True:
            try:
                node = router.node()
                with node.calling():
                    await super().follow(Client(node.engine))
            except OrchestratorError:
                await anyio.sleep(0.5)


@define
class FleetWorld(World):
    """Several engines at once."""

    shared: SharedMemory = field(factory=SharedMemory)
    router: Router = field(default=None)  # type: ignore[assignment]
    lives: int = 0
    """Number of engines that were started."""

    def _config(self) -> EngineConfig:
        return evolve(super()._config(), host=FleetHost(agents=self.agents))

    async def live(self) -> None:
        client = Client(self.router)
        async with self.shared, anyio.create_task_group() as tasks:
            for _ in range(self.rng.randrange(2, 5)):
                fates = [self.rng.choices(*FATES)[0] for _ in range(self.rng.randrange(1, 4))]
                tasks.start_soon(self._node, fates, random.Random(self.rng.random()))
            async with self._actors(client):
                with anyio.fail_after(FLEET_QUIET_S):
                    await self._until_all_stay()
                    await self._until_quiet(client)
            tasks.cancel_scope.cancel()
        await self._judge()

    restless: int = 0
    """Number of engines to which something will still happen."""

    async def _until_all_stay(self) -> None:
        await anyio.sleep(1)
        while self.restless:
            await anyio.sleep(1)

    async def _until_quiet(self, client: Client) -> None:
        while True:
            try:
                await super()._until_quiet(client)
            except Unavailable:
                await anyio.sleep(1)
            else:
                return

    async def _resolve(self, client: Client) -> None:
        while True:
            try:
                await super()._resolve(client)
            except Unavailable:
                await anyio.sleep(1)

    async def _node(self, fates: list[str], rng: random.Random) -> None:
        """Start an engine, let its fates befall it, each time with another engine after it, and go on."""
        self.restless += 1
        for fate in fates:
            await anyio.sleep(rng.random() * 5)
            await getattr(self, f"_{fate}_node")(rng)
        self.restless -= 1
        async with self._opened() as node:
            await anyio.sleep_forever()
            del node

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Node]:
        """Open an engine that clients call."""
        self.lives += 1
        handle = SharedHandle(self.shared)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(handle)
            engine = await stack.enter_async_context(Orchestrator(handle, self._config()))
            heartbeats = await stack.enter_async_context(anyio.create_task_group())
            heartbeats.start_soon(handle.send_heartbeats)
            stack.callback(heartbeats.cancel_scope.cancel)
            node = Node(handle, engine)
            self.router.nodes.append(node)
            try:
                yield node
            finally:
                if node in self.router.nodes:
                    self.router.nodes.remove(node)
                node.leave()

    async def _lost_node(self, rng: random.Random) -> None:
        """Lose an engine at some await."""
        with anyio.CancelScope() as scope:
            try:
                async with self._opened() as node:

                    def lose() -> None:
                        node.handle.crashed = True
                        node.handle.lease.is_gone = True
                        node.leave()
                        scope.cancel()

                    with _after(rng.randrange(1, STEPS), lose):
                        await anyio.sleep_forever()
            except* Crashed:
                pass

    async def _paused_node(self, rng: random.Random) -> None:
        """Pause an engine at some await, mostly for longer than its lease, and let it go on."""
        async with self._opened() as node:
            try:
                with _after(rng.randrange(1, STEPS), node.handle.stop):
                    while node.handle._going.is_set():
                        await anyio.sleep(0.5)
                self.router.nodes.remove(node)  # nobody gets an answer there
                node.leave()
                await anyio.sleep(rng.random() * 40)
            finally:
                node.handle.go_on()
            self.router.nodes.append(node)
            await anyio.sleep(rng.random() * 40)

    async def _drained_node(self, rng: random.Random) -> None:
        async with self._opened() as node:
            await anyio.sleep(rng.random() * 50)
            await node.engine.drain(rng.choice((0, 5)))


def simulate_fleet(seed: int) -> FleetWorld:
    """Run one simulation; violations are in its ``faults``."""
    rng = random.Random(f"fleet {seed}")
    store = SharedMemory()
    actors: list[Actor] = []
    for number in range(rng.randrange(2, 5)):
        actors.append(FleetActor(number, _plans(rng, number)))
    settings = {
        "max_concurrency": rng.choice((1, 2, 8)),
        "park_after_s": rng.choice((0, 0.1, 5, 600)),
    }
    world = FleetWorld(
        seed,
        rng,
        actors,
        FleetAgents(seed, store=store),
        store=store,
        settings=settings,
        shared=store,
        router=Router(random.Random(f"router {seed}")),
    )
    with predictable(seed):
        trio.run(world.live, clock=trio.testing.MockClock(autojump_threshold=0))
    return world


if __name__ == "__main__":
    sys.exit(main(__doc__, simulate_fleet))
