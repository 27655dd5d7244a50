"""The fork server, and the supervisors that it forks.

The fork server is one small process. Each running agent has one supervisor. This file is run as a program,
by its path. It uses only the standard library, so that supervisors are small: they share the memory of the
fork server. :mod:`agent_orchestrator.hosts.linux.supervisor` is the client.

Linux gives an orphan to its nearest living ancestor that is a *subreaper*. Each supervisor is a subreaper.
So every process of its agent becomes its child when that process's parent dies, even after a new session, a
second fork or a change of the environment. The supervisor kills its children until ``waitpid`` reports that
there are none. Then no process of the agent is left. The fork server is a subreaper too, for the children
of a killed supervisor.

A supervisor ends its agent on command, when its socket closes, when the owner dies, and when the agent's time
has passed, even if the owner is stopped. The *owner* is the
process that started the fork server. A pidfd reports that death even if a forked child of the owner keeps
the socket open.
"""

import ctypes
import errno
import gc
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress

PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36

RLIMIT_LOCKS = 10
"""The number of the resource limit ``RLIMIT_LOCKS`` on every architecture. Python does not name it. See
:mod:`agent_orchestrator.hosts.linux.orphans`."""

HEADER = struct.Struct("<QQQ?I")
"""The header of a request: the size of the body, the number of arguments, the tag limit (0 for none),
whether the path of the working directory must not contain a symbolic link, and the number of the time until
which the agent may work (0 for ever). The body has the working
directory, the arguments, and the variables as ``NAME=VALUE``, separated by NUL. The agent's stdin, stdout
and stderr come with the request."""

START = 0xFE
"""The byte before a request. Earlier bytes are signals that came after the agent's end; they are
ignored."""

EXPIRIES_SIZE = 4096
"""Bytes of the memory with the times until which agents may work, by :func:`time.monotonic`, as doubles."""

MAX_REQUEST = 8 * 2**20
"""Maximum bytes after the header of a request. Linux starts a program with at most 6 MiB of arguments and
variables."""

CHUNK = 2**16
"""Maximum number of bytes of a request to receive in one call."""

KILL = 0xFF
"""The byte that makes a supervisor kill all processes of its agent. Any other byte is the number of a
signal for the agent's process group."""

OWNER_DEATH_GRACE_S = 0.5
"""Seconds after the owner's death in which the supervisors end their agents. After that the fork server
kills them."""

MAX_PAUSE_S = 3600.0
"""Maximum seconds between two checks of the time until which an agent may work."""

KILL_PAUSE_S = 0.05
"""Seconds until children are killed again if none has died."""

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)
"""Signals to ignore. One that is sent to the owner's whole process group or cgroup must not stop the
clean-up."""


def main() -> None:
    """Run the fork server.

    The program's arguments are the descriptor of the owner's socket, the owner's pid, the soft limit of
    open files for agents, and the descriptor of the memory with the agents' times.
    """
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # the hard limit was lowered: it holds
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]), maximum))
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    expiries = int(sys.argv[4])
    times = mmap.mmap(expiries, EXPIRIES_SIZE, prot=mmap.PROT_READ)
    os.close(expiries)
    owner = int(sys.argv[2])
    owner_fd = os.pidfd_open(owner)
    if os.getppid() != owner:
        return
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _become_subreaper("agent-forkserv")
    gc.freeze()
    ForkServer(control, owner_fd, times).run()


libc = ctypes.CDLL(None, use_errno=True)


class ForkServer:
    """Forks the supervisors, and kills the children of killed ones."""

    def __init__(self, control: socket.socket, owner_fd: int, times: mmap.mmap) -> None:
        self.control = control
        self.owner_fd = owner_fd
        self.times = times
        self.supervisors: set[int] = set()
        self.has_orphans = False
        self.deadline: float | None = None
        """When the fork server kills all agents itself, by :func:`time.monotonic`; None while the owner is
        alive."""

    def run(self) -> None:
        """Serve until the owner and all processes that were started for it are gone."""
        wake = _child_exit_descriptor()
        poll = _poll(wake, self.control.fileno(), self.owner_fd)
        while self._reap_and_kill() or self.deadline is None:
            is_timed = self.has_orphans or self.deadline is not None
            for fd, _ in poll.poll(KILL_PAUSE_S * 1000 if is_timed else None):
                if fd == wake:
                    os.read(wake, 4096)
                elif fd == self.owner_fd or not self._fork_supervisor():
                    poll.unregister(fd)
                    if self.deadline is None:
                        self.deadline = time.monotonic() + OWNER_DEATH_GRACE_S

    def _reap_and_kill(self) -> bool:
        """Reap children and kill orphans. Return False if there are no children."""
        reaped, has_children = _reap()
        for pid, status in reaped:
            if pid in self.supervisors:
                self.supervisors.remove(pid)
                self.has_orphans |= status != 0
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.supervisors.clear()
            self.has_orphans = True
        if self.has_orphans:
            self.has_orphans = _kill_children(self.supervisors)
        return has_children

    def _fork_supervisor(self) -> bool:
        """Fork the requested supervisor. Return False if there will be no further requests."""
        try:
            request, fds = _receive(self.control, 1, 1)
        except ConnectionError:
            return False
        if not request or not fds:  # the descriptor is missing if this process has too many open
            return bool(request)
        with socket.socket(fileno=fds[0]) as link:
            try:
                pid = os.fork()
            except OSError as error:
                _send(link, f"refused {error.errno}")
                return True
            if pid == 0:
                status = 1
                try:
                    self.control.close()
                    Supervisor(link, self.owner_fd, self.times).run()
                    status = 0
                finally:
                    os._exit(status)
        self.supervisors.add(pid)
        return True


class Supervisor:
    """Starts one agent after the other, reports their exits, and ends all their processes. It sends lines.
    First ``ready``, once. For each agent ``started PID TICKS`` (its start time in clock ticks since boot),
    ``refused ERRNO``, or ``astray ERRNO`` if the directory is the reason. Later ``exit CODE``, as of
    :func:`os.waitstatus_to_exitcode`, and ``gone`` when no process is left.
    """

    def __init__(self, link: socket.socket, owner_fd: int, times: mmap.mmap) -> None:
        self.link = link
        self.owner_fd = owner_fd
        self.times = memoryview(times).cast("d")
        self.expiry = 0
        """The number of the time until which the agent may work; 0 for ever."""
        self.untagged_limit, self.max_files = resource.getrlimit(RLIMIT_LOCKS)
        self.agent: int | None = None
        """The agent's pid; None if no agent is running."""
        self.is_serving = False
        self.is_killing = False
        self.is_finished = False
        """Whether the connection is closed, so that there will be no further agent."""

    def run(self) -> None:
        """Serve until the owner has ended or closed the socket, and no process of an agent is left."""
        _become_subreaper("agent-supervise")
        wake = _child_exit_descriptor()
        poll = _poll(wake, self.link.fileno(), self.owner_fd)
        _send(self.link, "ready")
        while True:
            if self.is_serving and not self._reap_and_kill():
                self.is_serving = self.is_killing = False
                self._set_tag(0)
                _send(self.link, "gone")
            if self.is_finished and not self.is_serving:
                return
            for fd, _ in poll.poll(self._pause_ms()):
                if fd == wake:
                    os.read(wake, 4096)
                elif fd == self.owner_fd or not self._receive_commands():
                    self.is_finished = self.is_killing = True
                    poll.unregister(fd)

    def _pause_ms(self) -> float | None:
        """Return the milliseconds until there is something to do, if nothing is received."""
        if self.is_killing:
            return KILL_PAUSE_S * 1000
        if not self.is_serving or not self.expiry:
            return None
        left = self.times[self.expiry] - time.monotonic()
        return max(0.0, min(left, MAX_PAUSE_S)) * 1000

    def _reap_and_kill(self) -> bool:
        """Reap children, report the agent's exit, and kill if required. Return False if nothing is
        left.
        """
        if self.expiry and self.times[self.expiry] <= time.monotonic():
            self.is_killing = True
        reaped, has_children = _reap()
        for pid, status in reaped:
            if pid == self.agent:
                self.agent = None
                _send(self.link, f"exit {os.waitstatus_to_exitcode(status)}")
        if self.is_killing and has_children:
            _kill_children(set())
        return has_children

    def _receive_commands(self) -> bool:
        """Execute the owner's commands. Return False at the end of the connection."""
        stdio: list[int] = []
        try:
            commands, stdio = _receive(self.link, CHUNK, 3)
            if not self.is_serving and (start := commands.find(START)) >= 0:
                self._start(bytearray(commands[start + 1 :]), stdio)
                return True
        except ConnectionError:
            return False
        finally:
            for fd in stdio:
                os.close(fd)
        if self.is_serving:
            for command in commands:
                if command == KILL:
                    self.is_killing = True
                elif self.agent is not None:
                    with suppress(OSError):
                        os.killpg(self.agent, command)
        return bool(commands)

    def _set_tag(self, tag_limit: int) -> None:
        """Set the tag limit of the processes that are started from now on; 0 for none."""
        with suppress(ValueError, OSError):  # the hard limit is lower: only the tag identifies them
            resource.setrlimit(RLIMIT_LOCKS, (tag_limit or self.untagged_limit, self.max_files))

    def _receive_rest(self, data: bytearray, size: int) -> None:
        """Wait until this many bytes have been received.

        :raises ConnectionError: if the owner is gone before that.
        """
        poll = _poll(self.link.fileno(), self.owner_fd)
        while len(data) < size:
            if any(fd == self.owner_fd for fd, _ in poll.poll()):
                raise ConnectionResetError
            if not (more := self.link.recv(min(size - len(data), CHUNK))):
                raise ConnectionResetError
            data += more

    def _start(self, request: bytearray, stdio: list[int]) -> None:
        """Start an agent.

        :param request: the part of the request that was received so far.
        :raises ConnectionError: if the rest does not arrive, or would be too large.
        """
        self._receive_rest(request, HEADER.size)
        size, count, tag_limit, is_resolved, self.expiry = HEADER.unpack_from(request)
        if size > MAX_REQUEST:
            _send(self.link, f"refused {errno.E2BIG}")
            raise ConnectionResetError  # the beginning of the next request is unknown
        self._receive_rest(request, HEADER.size + size)
        body = bytes(request[HEADER.size :])
        directory, *parts = body.split(b"\0")
        argv, variables = parts[:count], parts[count:]
        env = {name: value for name, _, value in (entry.partition(b"=") for entry in variables)}
        answer = "astray"
        try:
            _change_directory(directory, is_resolved=is_resolved)
            answer = "refused"
            self._set_tag(tag_limit)
            self.agent = _start_program(argv, env, stdio)
        except (OSError, ValueError) as error:  # ValueError: an invalid name of a variable
            self._set_tag(0)
            number = error.errno if isinstance(error, OSError) else errno.EINVAL
            _send(self.link, f"{answer} {number}")
        else:
            self.is_serving = True
            _send(self.link, f"started {self.agent} {_start_time(self.agent)}")
        finally:
            os.chdir("/")


# --- functions of both ----------------------------------------------------------------------


def _become_subreaper(name: str) -> None:
    """Make this process a subreaper, and name it."""
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")
    libc.prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def _child_exit_descriptor() -> int:
    """Return a descriptor that can be read when a child has died."""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    old = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    if old >= 0:  # inherited from the fork server
        os.close(old)
    return wake


def _poll(*fds: int) -> select.poll:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return poll


def _receive(link: socket.socket, size: int, max_fds: int) -> tuple[bytes, list[int]]:
    """Return received data and descriptors. No agent inherits the descriptors."""
    data, fds, _, _ = socket.recv_fds(link, size, max_fds)
    for fd in fds:
        os.set_inheritable(fd, False)  # noqa: FBT003 - takes no keyword
    return data, fds


def _send(link: socket.socket, line: str) -> None:
    with suppress(OSError):  # the other end is closed
        link.sendall(line.encode() + b"\n")


def _reap() -> tuple[list[tuple[int, int]], bool]:
    """Reap the dead children. Return them with their wait statuses, and whether other children are left."""
    reaped = []
    try:
        while (child := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            reaped.append(child)
    except ChildProcessError:
        return reaped, False
    return reaped, True


def _kill_children(spared: set[int]) -> bool:
    """Kill the children and their process groups, except ``spared``. Return whether there were any.

    Only this process reaps its children, so their pids cannot be reused. A process group belongs to one
    session, and the children's sessions began below this process, so no group contains other processes. A
    signal to a group also reaches a process that a member of the group is just forking.
    """
    own_group = os.getpgrp()
    is_found = False
    for pid in _children():
        if pid in spared:
            continue
        is_found = True
        with suppress(OSError):
            group = os.getpgid(pid)
            if group not in (own_group, *spared):
                os.killpg(group, signal.SIGKILL)
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return is_found


def _children() -> list[int]:
    own_pid = os.getpid()
    try:
        with open(f"/proc/self/task/{own_pid}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return [pid for pid in pids if (stat := _stat(pid)) and int(stat[1]) == own_pid]


def _stat(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat after the name; empty if the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def _start_time(pid: int) -> int:
    """Return the start time of a child that is not reaped yet, in clock ticks since boot."""
    return int(_stat(pid)[19])


def _change_directory(directory: bytes, *, is_resolved: bool) -> None:
    """Change to a directory. If ``is_resolved``, check that no symbolic link led to another directory.

    Between a check of a path and its use, any part of it can be replaced by a symbolic link. The
    kernel's path of the current directory has no links, and the agent starts in the current
    directory.

    :raises OSError: ``ESTALE`` if it is another directory.
    """
    os.chdir(directory)
    if is_resolved and os.getcwdb() != directory:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def _start_program(argv: list[bytes], env: dict[bytes, bytes], stdio: list[int]) -> int:
    """Start a program in a new session, with the default handling of all signals.

    The program is looked up on the PATH of ``env``. As in a shell, a file that may not be executed is
    skipped.
    """
    if not argv:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    program = argv[0]
    paths = [program]
    if b"/" not in program:
        path = env.get(b"PATH", os.defpath.encode())
        paths = [os.path.join(folder, program) for folder in path.split(b":")]
    problem: OSError | None = None
    for candidate in paths:
        try:
            return os.posix_spawn(
                candidate,
                argv,
                env,
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(stdio)],
                setsid=True,
                setsigmask=[],
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            problem = problem or error
        except PermissionError as error:
            problem = error
        except OSError as error:
            problem = error
            break
    assert problem is not None
    raise problem


if __name__ == "__main__":
    main()
