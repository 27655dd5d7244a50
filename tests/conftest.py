"""What all tests share."""

import functools
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import shortcuts
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from hypothesis import find, settings, strategies
from loops import ON_ONE_LOOP
from order import long_first, processes
from quick import AT_LENGTH

# A shell lets what it starts in the background ignore interrupts, and so would whatever a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes on a busy machine says nothing about it.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

pytest.register_assert_rewrite("agent_orchestrator.testing")


pytest_plugins = ("postgres",)

HERE = Path(__file__).parent

# What collecting the tests makes is there to stay: looking through it for garbage finds none.
gc.disable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only what one runs before each commit")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("quick") or not collection_path.is_relative_to(HERE):
        return None
    return collection_path.relative_to(HERE).as_posix() in AT_LENGTH or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not (_is_on_trio(item) and _is_for_one_loop(item))]
    if config.getoption("quick"):
        left_out = [item for item in items if _is_on_trio(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not _is_on_trio(item)]
    if (count := processes()) > 1:
        items[:] = long_first(items, count, _module, _is_long)


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Use Hypothesis once while there are few objects: it looks through all of them for its generator, and does not
    see frozen ones."""
    find(strategies.none(), lambda _: True, settings=settings(derandomize=True, database=None))


def pytest_collection_finish() -> None:
    """Let the garbage collector look only at what tests make, and seldom: each of its looks at some 500,000
    objects of loaded modules and collected tests takes as long as many a test."""
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    gc.enable()


def _module(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _is_long(module: str) -> bool:
    """Return whether a module, or its folder, is left out of the quick tier."""
    folder, _, file = module.removeprefix(f"{HERE.name}/").partition("/")
    return not AT_LENGTH.isdisjoint((folder, f"{folder}/{file}"))


def _is_for_one_loop(item: pytest.Item) -> bool:
    return item.get_closest_marker(ON_ONE_LOOP.name) is not None


def _is_on_trio(item: pytest.Item) -> bool:
    spec = getattr(item, "callspec", None)
    return spec is not None and spec.params.get("anyio_backend") == "trio"


@pytest.fixture(scope="session", autouse=True)
def _certificates() -> Iterator[None]:
    """Load the system's certificates once, and not for each client a test makes of plain HTTP: that takes
    forty times as long as a call."""
    make = httpx.create_ssl_context
    kept = functools.cache(lambda *_: make())

    def context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> Any:
        if verify is not True or cert is not None or not trust_env:
            return make(verify, cert, trust_env)
        return kept(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", context)
        yield


@pytest.fixture(scope="session", autouse=True)
def _timeouts() -> Iterator[None]:
    """Let clients of tests wait a minute, not five seconds, for a daemon that waits for a processor."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "read", "write", "pool"):
            patch.setattr(DEFAULT_TIMEOUT_CONFIG, name, 60.0)
        yield


@pytest.fixture(scope="session", autouse=True)
def _shortcuts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        shortcuts.take(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what daemons and agentctl leave for their user out of the home of who runs the tests."""
    path = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "XDG_STATE_HOME", str(path))
        yield path


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run the library's tests on both event loops."""
    return str(request.param)
