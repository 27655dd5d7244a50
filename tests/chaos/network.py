"""A network for one machine that plays several: each host has a network namespace, on one bridge.

A host that is unplugged gets and sends nothing, not even a reset. A proxy cannot do that: its ends go on
acknowledging what they receive.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from attrs import define

_NEW_NETWORK: Final = 0x40000000
"""``CLONE_NEWNET`` of unshare(2) and setns(2). Python has both functions since 3.12."""

_BRIDGE: Final = "chaos"

CENTRE: Final = "10.77.0.1"
"""The address of the bridge, where the database's server and the clients are."""


@define
class Place:
    """Where one daemon runs.

    :param address: where it listens.
    :param entry: the beginning of a command that starts a program there.
    :param cable: the network interface at the bridge. Empty on loopback, where nothing can be unplugged.
    """

    address: str = "127.0.0.1"
    entry: tuple[str, ...] = ()
    cable: str = ""

    def unplug(self) -> None:
        """Lose whatever is sent to or from this place, until :meth:`plug`."""
        _ip("link", "set", self.cable, "down")

    def plug(self) -> None:
        """Let everything through again."""
        _ip("link", "set", self.cable, "up")


def missing() -> str | None:
    """Return why there can be no namespaces here, or ``None``."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if absent := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
        return f"without {', '.join(absent)} there are no network namespaces"
    try:
        _run("unshare", "--net", "ip", "link", "add", _BRIDGE, "type", "bridge")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr.strip()}"
    return None


@contextmanager
def places(number: int) -> Iterator[Sequence[Place]]:
    """Have this many places while the scope is open, and this thread at their centre.

    Threads and programs that are started meanwhile are at the centre too. The machine's own network stays as it is.

    :raises OSError: if this thread may not change its network.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _checked(libc.unshare(_NEW_NETWORK))
        try:
            _ip("link", "set", "lo", "up")
            _ip("link", "add", _BRIDGE, "type", "bridge")
            _ip("address", "add", f"{CENTRE}/24", "dev", _BRIDGE)
            _ip("link", "set", _BRIDGE, "up")
            with ExitStack() as stack:
                yield [stack.enter_context(_place(index)) for index in range(number)]
        finally:
            _checked(libc.setns(before, _NEW_NETWORK))
    finally:
        os.close(before)


@contextmanager
def _place(index: int) -> Iterator[Place]:
    """Have a namespace with a cable to the bridge."""
    address, cable = f"10.77.0.{index + 2}", f"cable{index}"
    # The namespace lasts as long as a process is in it. This one ends when its input is closed.
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as keeper:
        try:
            assert keeper.stdout is not None
            keeper.stdout.readline()  # it is in its namespace
            pid = str(keeper.pid)
            entry = ("nsenter", f"--net=/proc/{pid}/ns/net")
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", pid)
            _ip("link", "set", cable, "master", _BRIDGE, "up")
            _run(*entry, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            for interface in ("eth0", "lo"):
                _run(*entry, "ip", "link", "set", interface, "up")
            yield Place(address, entry, cable)
        finally:
            assert keeper.stdin is not None
            keeper.stdin.close()


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _checked(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
