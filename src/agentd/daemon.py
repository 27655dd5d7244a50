"""The daemon: builds store, runners, engine, web app and server, and stops them in order."""

import gc
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version as installed_version
from math import inf
from pathlib import Path
from typing import Final

import anyio
from attrs import define, evolve, field

from agent_orchestrator.configuration import EngineOptions, ProviderOptions
from agent_orchestrator.descriptors import raise_descriptor_limit
from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.engine import (
    EngineConfig,
    EnvPolicy,
    Orchestrator,
    ProviderConfig,
    Routing,
)
from agent_orchestrator.fields import values_of
from agent_orchestrator.hosts import this_host
from agent_orchestrator.notifiers.registry import build_targets
from agent_orchestrator.notifiers.webpush import WebPush
from agent_orchestrator.ports.store import Store
from agent_orchestrator.processes import hide_memory
from agent_orchestrator.runners.registry import build_runner
from agent_orchestrator.stores.registry import open_store
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.stores.sqlite.files import push_key_file
from agent_orchestrator.user_state import user_state, write_private
from agentd import logs
from agentd.app import create_app
from agentd.auth import Guard, is_loopback
from agentd.caller_scans import CallerScans
from agentd.callers import which_may_be_agents
from agentd.descriptors import Descriptors
from agentd.doctor import daemon_findings
from agentd.lifetime import ExitTimer, Lifetime, end_threads
from agentd.local_token import local_token
from agentd.memory import return_large_blocks
from agentd.metrics import Metrics
from agentd.own_files import (
    announced,
    database_check,
    forget_missing_configuration,
    protection,
    remember_database,
)
from agentd.server import listen, resolve, serve, url_of
from agentd.settings import Settings
from agentd.tls import server_context
from agentd.traces import agents_environment, tracing

STOP_S: Final = 2.0
"""Seconds that agents have to stop after the grace period, before they are killed."""

FORCED_STOP_S: Final = 4.5
"""Seconds after the grace period at which the process exits in any case."""

SECOND_SIGNAL_S: Final = 3.0
"""Seconds after a second signal at which the process exits in any case."""

CLOSE_S: Final = 5.0
"""Maximum seconds to finish answers and close connections at the end. A long drain leaves fewer."""

THREADS_S: Final = 0.5
"""Maximum seconds to wait for threads when everything is closed. Idle ones end at once."""

_log = logging.getLogger("agentd")


def run_daemon(
    settings: Settings,
    ready_file: str | None = None,
    *,
    accept_loss: bool = False,
    log_limit: int | None = None,
) -> int:
    """Run the daemon until a signal ends it, and return its exit status.

    :param ready_file: a file that contains ``{"url", "pid"}`` while the daemon answers.
    :param accept_loss: start even if the database has lost commits.
    :param log_limit: maximum size of the log file in bytes; see :class:`logs.LogFile`.
    :raises ConfigError: if a setting cannot be used.
    :raises StoreOpenError: if the database cannot be used.
    """
    hide_memory()
    log_file = logs.rotate_output(log_limit)
    logs.configure_logging(
        form=settings.log_format, level=settings.log_level, secrets=settings.secrets
    )
    daemon = Daemon(settings, Path(ready_file) if ready_file else None, accept_loss, log_file)
    return_large_blocks()
    with daemon.exit_timer:
        status = anyio.run(daemon.run, backend="asyncio")
        end_threads(status, THREADS_S)
    return status


@define
class Daemon:
    """One daemon, from start to exit."""

    settings: Settings
    ready_file: Path | None = None
    accept_loss: bool = False
    log_file: logs.LogFile = field(factory=logs.LogFile)
    lifetime: Lifetime = field(factory=Lifetime)
    _stopped: anyio.Event = field(factory=anyio.Event, init=False)
    _status: int = field(default=0, init=False)
    _exit_deadline: float = field(default=inf, init=False)
    exit_timer: ExitTimer = field(factory=ExitTimer, init=False)

    async def run(self) -> int:
        """Serve until a signal, drain, stop; return the exit status."""
        settings = self.settings
        _check_address(settings)
        tls = server_context(settings.tls_cert, settings.tls_key)
        metrics = Metrics(settings.database)
        descriptors = Descriptors(raise_descriptor_limit())
        config = evolve(engine_config(settings), environ=agents_environment(settings))
        with ExitStack() as stack:
            listener = stack.enter_context(listen(settings.host, settings.port))
            forget_missing_configuration()
            url = url_of(listener, settings.host, secured=tls is not None)
            port = listener.getsockname()[1]
            is_wanted = not settings.auth_tokens
            token_file = local_token(user_state(), port, is_wanted=is_wanted)
            guard = _guard(settings, stack.enter_context(token_file))
            announce_ready = stack.enter_context(_ready_writer(self.ready_file))
            agents, agents_url = None, url
            if tls is not None:
                # Agents need not trust the certificate, which may not be for a loopback address.
                agents = stack.enter_context(listen("127.0.0.1", 0))
                agents_url = url_of(agents, "127.0.0.1")
            async with (
                tracing(settings.traces, config.providers) as observers,
                self._store(metrics) as store,
                Orchestrator(
                    store, evolve(config, url=agents_url, observers=(metrics, *observers))
                ) as engine,
            ):
                if isinstance(store, SqliteStore):
                    remember_database(settings, store.database)
                app = create_app(
                    engine,
                    guard=guard,
                    lifetime=self.lifetime,
                    version=config.version,
                    max_body=settings.max_body,
                    metrics=metrics,
                    descriptors=descriptors,
                    base_path=settings.base_path or "",
                )
                _log_start(settings, url, guard)
                # The objects loaded so far stay, so the garbage collector need not scan them.
                gc.freeze()
                async with anyio.create_task_group() as tasks:
                    await tasks.start(self._watch_signals, engine)
                    # Connections wait in the listening socket until they are served.
                    stack.enter_context(announced(url, settings))
                    announce_ready(url)
                    tasks.start_soon(self._abandon_server, tasks.cancel_scope)
                    await serve(
                        app,
                        listener,
                        self._stopped.wait,
                        tls=tls,
                        agents=agents,
                        descriptors=descriptors,
                    )
                    tasks.cancel_scope.cancel()
        write_stop_report(settings, engine)
        _log.info("stopped")
        return self._status

    def _store(self, metrics: Metrics) -> Store:
        """Return the store, not opened yet.

        :raises ConfigError: if it needs a package that is not installed.
        """
        settings = self.settings
        if settings.store is not None:
            return open_store(
                settings.store, listen=settings.store_listen, on_commit=metrics.committed
            )
        return SqliteStore(
            settings.db,
            accept_loss=self.accept_loss,
            may_use=database_check(settings),
            on_commit=metrics.committed,
        )

    async def _watch_signals(
        self,
        engine: Orchestrator,
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        log_file = self.log_file
        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        with anyio.open_signal_receiver(*watched) as signals:
            task_status.started()
            async with anyio.create_task_group() as tasks:
                async for received in signals:
                    name = signal.Signals(received).name
                    # With a log file, SIGHUP reopens it. Otherwise the terminal was closed.
                    if received == signal.SIGHUP and log_file.path is not None:
                        _reopen(log_file)
                    elif not self.lifetime.draining:
                        self.lifetime.drain()
                        grace = self.settings.grace_s
                        _log.info("draining", extra=_log_fields(signal=name, grace_s=grace))
                        self._set_deadline(grace + FORCED_STOP_S)
                        tasks.start_soon(self._drain, engine)
                    elif not self.lifetime.closing:
                        _log.warning("second signal: stopping now", extra=_log_fields(signal=name))
                        self._status = 1
                        self._set_deadline(SECOND_SIGNAL_S)
                        engine.force_stop()
                        tasks.cancel_scope.cancel()
                        self._stop()

    async def _drain(self, engine: Orchestrator) -> None:
        report = await engine.drain(self.settings.grace_s, stop_s=STOP_S)
        counts = _log_fields(
            finished=report.finished, released=len(report.released), parked=len(report.parked)
        )
        _log.info("drained", extra=counts)
        self._stop()

    def _set_deadline(self, seconds: float) -> None:
        self._exit_deadline = anyio.current_time() + seconds
        self.exit_timer.set(seconds)

    def _stop(self) -> None:
        self.lifetime.close()
        self._stopped.set()

    async def _abandon_server(self, scope: anyio.CancelScope) -> None:
        # The server waits for stalled readers.
        await self._stopped.wait()
        remaining = self._exit_deadline - anyio.current_time() - 1
        await anyio.sleep(max(0.5, min(CLOSE_S, remaining)))
        _log.info("exiting without waiting for open connections")
        scope.cancel()


def _reopen(log_file: logs.LogFile) -> None:
    try:
        log_file.reopen()
        _log.info("the log was reopened", extra=_log_fields(path=log_file.path))
    except OSError as error:
        _log.warning("%s cannot be opened: %s", log_file.path, error.strerror)


def write_stop_report(settings: Settings, engine: Orchestrator) -> None:
    """Write the result of the drain to a file, for ``agentctl daemon stop``.

    It is beside the database, or in the user's state directory if the database is not a file.
    """
    report, state = engine.drain_report, user_state()
    if report is None or (settings.database is None and state is None):
        return
    document = {
        "pid": os.getpid(),
        "started_at": engine.core.started_at.isoformat(),
        "finished": report.finished,
        "released": list(report.released),
        "parked": list(report.parked),
    }
    if settings.database is not None:
        path = Path(f"{settings.database}-stopped")
    else:
        assert state is not None
        path = state.last_stop
    try:
        write_private(path, json.dumps(document).encode() + b"\n")
    except OSError as error:
        _log.warning("%s cannot be written: %s", path, error.strerror)


def _check_address(settings: Settings) -> None:
    if not settings.auth_tokens and not is_loopback(settings.host):
        resolve(settings.host, settings.port)
        raise ConfigError(
            f"cannot listen on {settings.host}, which other machines can reach, without a "
            "token: set AGENTD_AUTH_TOKEN, or listen on 127.0.0.1"
        )


def _guard(settings: Settings, local: str | None) -> Guard:
    return Guard(
        settings.auth_tokens,
        local_token=local,
        scans=CallerScans(which_may_be_agents),
        host=settings.host,
        allowed_hosts=settings.allowed_hosts,
        allowed_origins=settings.allowed_origins,
    )


def _push_key(settings: Settings) -> Path | None:
    """Return the file of the key for push services."""
    if settings.store is None:
        return push_key_file(Path(settings.db).absolute())
    state = user_state()
    return None if state is None else state.push_key


def engine_config(settings: Settings) -> EngineConfig:
    """Return the engine's configuration.

    :raises ConfigError: if a provider cannot be created.
    """
    providers = {
        name: ProviderConfig(
            runner=build_runner(name, provider.runner, provider.options),
            kind=provider.runner,
            env=EnvPolicy(inherit=provider.inherit, set=provider.set),
            **values_of(ProviderOptions, provider),
        )
        for name, provider in settings.providers.items()
    }
    return EngineConfig(
        host=this_host(),
        providers=providers,
        routing=Routing(
            settings.routing.default, settings.routing.fallback, settings.routing.prefer
        ),
        limits=settings.limits,
        **values_of(EngineOptions, settings),
        workspace_roots=settings.workspace_roots,
        notify=settings.notify.options,
        targets=build_targets(settings.notify, EnvPolicy().apply(os.environ)),
        push=WebPush(options=settings.notify.options, key_file=_push_key(settings)),
        version=installed_version("agent-orchestrator"),
        findings=partial(daemon_findings, settings, os.environ),
        protected=protection(settings),
    )


def _log_start(settings: Settings, url: str, guard: Guard) -> None:
    fields = _log_fields(
        pid=os.getpid(),
        db=settings.location,
        providers=",".join(settings.providers),
        auth="off" if guard.is_open else f"token ({settings.sources.get('auth_tokens', 'set')})",
    )
    _log.info("listening on %s", url, extra=fields)
    if any(len(token) < logs.SHORT_SECRET for token in settings.auth_tokens):
        _log.warning(
            "an auth token of fewer than %d characters is easily guessed", logs.SHORT_SECRET
        )


def _log_fields(**fields: object) -> dict[str, object]:
    return {"fields": fields}


@contextmanager
def _ready_writer(path: Path | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes the daemon's URL to the ready file; remove the file at the end.

    The file appears complete, by a rename. Its directory is tried at once, before the daemon opens
    anything.

    :raises ConfigError: if it cannot be written.
    """
    if path is None:
        yield lambda _: None
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    is_written = False

    def announce(url: str) -> None:
        nonlocal is_written
        temporary.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
        temporary.replace(path)
        is_written = True

    try:
        if path.is_dir():
            raise ConfigError(f"--ready-file {path}: is a directory; name a file")
        temporary.touch(mode=0o600)
    except OSError as error:
        raise ConfigError(f"--ready-file {path}: {error.strerror}") from None
    try:
        yield announce
    finally:
        temporary.unlink(missing_ok=True)
        if is_written:
            path.unlink(missing_ok=True)
