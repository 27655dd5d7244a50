"""Decide whether the program at the other end of a connection belongs to an agent.

Linux reports the socket at the other end (sock_diag(7)), and which process has that socket open
(/proc/PID/fd). A process of an agent always stays below this process, because its supervisor adopts
every orphan (:mod:`agent_orchestrator.hosts.linux.forkserver`). So descent decides, not the token.

A program that is not below this process can still belong to an agent: to one of another daemon, or
started by a service (``at`` keeps the environment). Such a program is recognized by the tag that
agents' processes inherit. If an agent removes its tag and lets a service of its user start a
program, that program is not recognized; see docs/security.md.
"""

import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from attrs import frozen

from agent_orchestrator.hosts.linux.orphans import is_tag_limit
from agent_orchestrator.ports.runner import TAG_VARIABLE
from agent_orchestrator.processes import (
    live_process,
    live_processes,
    lock_limit_of,
    pids,
    read_proc,
    with_descendants,
)

Address = tuple[str, int]

Ends = tuple[Address, Address]
"""The addresses of a connection: the remote one, and the local one."""

_SCANS: Final = 3
"""Maximum number of scans of all processes. A process may end or pass its socket on during a scan."""

_AGENT_GENERATION: Final = 3
"""Generation of agents below this process, after the fork server (1) and the supervisors (2)."""


def ends_of(theirs: object, ours: object) -> Ends | None:
    """Return the ends of a connection from a transport's addresses; None if they are unknown."""
    if not (isinstance(theirs, tuple) and isinstance(ours, tuple) and theirs and ours):
        return None
    return (_plain(theirs), _plain(ours))


def may_be_agents(ends: Ends, root: int | None = None) -> bool:
    """Return False only if a connection is certainly not from a process of an agent.

    This takes a few milliseconds: call it in a thread.

    :param root: the pid of the process above all agents; None means this process.
    """
    (answer,) = which_may_be_agents([ends], root)
    return answer


def which_may_be_agents(connections: Sequence[Ends], root: int | None = None) -> list[bool]:
    """Return :func:`may_be_agents` for each of several connections, with one scan of all processes for all of them."""
    root = os.getpid() if root is None else root
    answers: dict[Ends, bool] = {}
    for number in range(_SCANS):
        undecided = [ends for ends in connections if ends not in answers]
        if not undecided:
            break
        # First all sockets, then their owners: a number may be given to another socket later.
        sockets = [(ends, _remote_socket(*ends)) for ends in undecided]
        scan = _Scan(root, is_last=number == _SCANS - 1)
        for ends, remote_socket in sockets:
            if remote_socket is None or not remote_socket.inode:
                # Its owner is unknown: it is closed, or on another machine.
                answers[ends] = _is_of_this_machine(*ends)
            elif (answer := scan.may_be_agents(remote_socket)) is not None:
                answers[ends] = answer
    return [answers.get(ends, True) for ends in connections]


class _Scan:
    """One look at the processes of this machine. Each process is read once, the newest first."""

    def __init__(self, root: int, *, is_last: bool) -> None:
        self._root = root
        self._is_last = is_last
        self._unread = iter(sorted(pids(), reverse=True))
        self._owners: dict[str, int] = {}
        self._unreadable: list[int] = []
        self._answers: dict[int, bool | None] = {}

    def may_be_agents(self, socket: "_Socket") -> bool | None:
        """Return whether a socket may be of an agent's process; None if another scan is needed."""
        owner = self._owner(socket)
        if owner is not None:
            if owner not in self._answers:
                self._answers[owner] = self._is_agent(owner)
            return self._answers[owner]
        if not _has_agents(self._root):
            return False
        if not self._is_last:
            return None
        return not _cannot_be_agents(socket, self._root, self._unreadable)

    def _owner(self, socket: "_Socket") -> int | None:
        """Return the newest process that has a socket open."""
        name = _socket_name(socket)
        while name not in self._owners:
            pid = next(self._unread, None)
            if pid is None:
                return None
            try:
                for target in _descriptor_targets(f"/proc/{pid}/fd"):
                    if target.startswith("socket:"):
                        self._owners.setdefault(target, pid)
            except PermissionError:
                self._unreadable.append(pid)
            except OSError:
                continue
        return self._owners[name]

    def _is_agent(self, pid: int) -> bool | None:
        descends = _descends_from(pid, self._root)
        if descends is None:
            return None
        return descends or (pid != self._root and _is_tagged(pid, self._root))


def _plain(address: tuple[object, ...]) -> Address:
    """Return an address without its IPv6 scope; an IPv4-mapped address as IPv4."""
    host = str(address[0]).partition("%")[0]
    with suppress(ValueError):
        mapped = getattr(ipaddress.ip_address(host), "ipv4_mapped", None)
        host = str(mapped or host)
    return host, int(str(address[1]))


def _is_of_this_machine(theirs: Address, ours: Address) -> bool:
    try:
        return theirs[0] == ours[0] or ipaddress.ip_address(theirs[0]).is_loopback
    except ValueError:
        return False


# --- the socket at the other end ------------------------------------------------------------


@frozen
class _Socket:
    """The socket at the other end.

    :param inode: its number in /proc/PID/fd; 0 if no process has it open.
    :param uid: the user who created it.
    """

    inode: int
    uid: int


_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_ERROR: Final = 2
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBxxI")
_ANSWER: Final = struct.Struct("=II")
_ANSWER_AT: Final = _HEADER.size + 4 + 48 + 12
"""Where ``idiag_uid`` and ``idiag_inode`` are in struct inet_diag_msg."""


def _remote_socket(theirs: Address, ours: Address) -> _Socket | None:
    """Return the socket at the other end of a connection; None if it is not on this machine."""
    try:
        return _from_netlink(theirs, ours)
    except OSError:  # no netlink: a seccomp filter, or a kernel without it
        return _from_proc_net(theirs, ours)


def _from_netlink(theirs: Address, ours: Address) -> _Socket | None:
    if sys.platform != "linux":
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    family = socket.AF_INET6 if ":" in theirs[0] else socket.AF_INET
    addresses = b"".join(
        socket.inet_pton(family, host).ljust(16, b"\0") for host, _ in (theirs, ours)
    )
    any_interface_and_cookie = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
    body = (
        _REQUEST.pack(family, socket.IPPROTO_TCP, 0xFFFFFFFF)
        + struct.pack("!HH", theirs[1], ours[1])
        + addresses
        + any_interface_and_cookie
    )
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, 1, 1, 0)
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as link:
        link.settimeout(1)
        link.send(header + body)
        answer = link.recv(8192)
    if _HEADER.unpack_from(answer)[1] == _ERROR:
        number = -int(struct.unpack_from("=i", answer, _HEADER.size)[0])
        if number in (0, 2):  # ENOENT
            return None
        raise OSError(number, os.strerror(number))
    uid, inode = _ANSWER.unpack_from(answer, _ANSWER_AT)
    return _Socket(inode, uid)


def _from_proc_net(theirs: Address, ours: Address) -> _Socket | None:
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        text = read_proc(f"/proc/net/{name}") or b""
        ends = _proc_net_address(theirs, family), _proc_net_address(ours, family)
        for line in text.splitlines()[1:]:
            fields = line.split()
            if (fields[1], fields[2]) == ends:
                return _Socket(int(fields[9]), int(fields[7]))
    return None


def _proc_net_address(address: Address, family: int) -> bytes:
    """Return an address in the format of proc_pid_net(5): words in the machine's byte order."""
    host, port = address
    if family == socket.AF_INET6 and ":" not in host:
        host = f"::ffff:{host}"
    try:
        packed = socket.inet_pton(family, host)
    except OSError:
        return b""
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return ("".join(f"{word:08X}" for word in words) + f":{port:04X}").encode()


# --- which process has it open --------------------------------------------------------------


def _socket_name(socket: _Socket) -> str:
    return f"socket:[{socket.inode}]"


def _descriptor_targets(directory: str) -> Iterator[str]:
    """Yield the targets of the descriptors in a directory such as /proc/PID/fd.

    :raises OSError: if we may not read it, or if there is no such process.
    """
    for name in os.listdir(directory):  # noqa: PTH208 - faster, and only names are needed
        with suppress(FileNotFoundError):
            yield os.readlink(f"{directory}/{name}")  # noqa: PTH115 - faster, for thousands


def _descends_from(pid: int, root: int) -> bool | None:
    """Return whether a process descends from another; None if that is unknown."""
    while pid not in (root, 0):
        process = live_process(pid)
        if process is None:  # it has ended, or is hidden from us (proc(5), hidepid)
            return None
        pid = process.parent
        if pid == root:
            return True
    return False


def _has_agents(root: int) -> bool:
    """Return whether a process has agents: descendants of the third generation."""
    processes = live_processes()
    generation = {root}
    for _ in range(_AGENT_GENERATION):
        generation = {process.pid for process in processes if process.parent in generation}
    return bool(generation)


def _cannot_be_agents(socket: _Socket, root: int, unreadable: list[int]) -> bool:
    """Return whether a socket without a visible owner belongs to a process that is not an agent's.

    A process that changed its user hides its descriptors, such as sshd for a tunnel. A process of an
    agent cannot change its user.
    """
    tree = with_descendants({root}, live_processes())
    if tree.intersection(unreadable) or _is_open_in_thread(socket, tree):
        return False
    if socket.uid != os.geteuid():
        return True
    return any(_changed_user(pid, socket.uid) for pid in unreadable)


def _is_open_in_thread(socket: _Socket, tree: set[int]) -> bool:
    """Return whether a thread with separate descriptors (CLONE_FILES unshared) has a socket open."""
    name = _socket_name(socket)
    for pid in tree:
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - only names are needed
                if name in _descriptor_targets(f"/proc/{pid}/task/{thread}/fd"):
                    return True
    return False


def _changed_user(pid: int, uid: int) -> bool:
    """Return whether a process changed to this user: its parent is another user's."""
    process = live_process(pid)
    if process is None or _owner(pid) != uid:
        return False
    return _owner(process.parent) not in (None, uid)


def _owner(pid: int) -> int | None:
    """Return the user of a process. The owner of /proc/PID is root if the process hides its descriptors."""
    status = read_proc(f"/proc/{pid}/status") or b""
    for line in status.splitlines():
        if line.startswith(b"Uid:"):
            return int(line.split()[2])
    return None


def _is_tagged(pid: int, root: int) -> bool:
    """Return whether a process has an agent's tag, other than the tag of this daemon.

    The daemon has a tag itself if an agent started it.
    """
    limit = lock_limit_of(pid)
    if limit != lock_limit_of(root) and is_tag_limit(limit):
        return True
    tag = _tag_of(pid)
    return tag is not None and tag != _tag_of(root)


def _tag_of(pid: int) -> bytes | None:
    environ = read_proc(f"/proc/{pid}/environ") or b""
    prefix = f"{TAG_VARIABLE}=".encode()
    return next((entry for entry in environ.split(b"\0") if entry.startswith(prefix)), None)
