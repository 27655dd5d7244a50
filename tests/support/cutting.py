"""A TCP proxy that loses, holds or delays connections when it is told to."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import define, field


@define
class Proxy:
    """Forwards connections to a port, and cuts the next one that sends some bytes.

    :param port: where it listens.
    """

    port: int
    target: int
    address: str = "127.0.0.1"
    """Where both listen: the proxy and its target."""
    sought: bytes | None = None
    """What to wait for. It is forgotten when it was seen."""
    forwards: bool = True
    """Whether the target gets what was sought before the connection is cut; never its answer."""
    cuts: int = 0
    delay_s: float = 0.0
    """Seconds by which each piece is delayed, in both directions."""
    _passing: threading.Event = field(factory=threading.Event)
    """Not set while nothing is forwarded."""
    _sockets: set[socket.socket] = field(factory=set)
    _stranded: set[socket.socket] = field(factory=set)
    _lock: threading.Lock = field(factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        self._passing.set()

    def hold(self) -> None:
        """Forward nothing until :meth:`release`. Both ends see only that nothing comes."""
        self._passing.clear()

    def release(self) -> None:
        """Forward what was held, and everything from now on."""
        self._passing.set()

    def cut_at(self, sought: bytes, *, forwards: bool) -> None:
        """Cut the next connection whose client sends these bytes in one piece."""
        self.forwards = forwards
        self.sought = sought

    def cut_all(self) -> None:
        """Cut all connections now."""
        with self._lock:
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def strand(self) -> None:
        """Forward nothing more of the present connections, which stay open. Later ones work."""
        with self._lock:
            self._stranded |= self._sockets

    def serve(self, client: socket.socket) -> None:
        self._passing.wait()
        try:
            server = socket.create_connection((self.address, self.target))
        except OSError:
            client.close()
            return
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets |= {client, server}
        back = threading.Thread(target=self._copy, args=(server, client, lambda _: True))
        back.start()
        self._copy(client, server, self._passes)
        back.join()
        with self._lock:
            self._sockets -= {client, server}
        client.close()
        server.close()

    def _passes(self, data: bytes) -> bool:
        with self._lock:
            if self.sought is None or self.sought not in data:
                return True
            self.sought = None
            self.cuts += 1
            return False

    def _copy(
        self, source: socket.socket, target: socket.socket, passes: Callable[[bytes], bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source in self._stranded:
                    continue
                if not passes(data):
                    # The answer is lost: the client's end is closed before the target has it.
                    source.shutdown(socket.SHUT_RDWR)
                    if self.forwards:
                        target.sendall(data)
                    break
                if self.delay_s:
                    time.sleep(self.delay_s)
                self._passing.wait()
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                # Half of a connection: what was sent to the target is still read there.
                one.shutdown(socket.SHUT_WR if one is target else socket.SHUT_RD)


@contextmanager
def proxied(target: int, address: str = "127.0.0.1") -> Iterator[Proxy]:
    """Run a proxy in threads while the scope is open."""
    with socket.create_server((address, 0)) as listener:
        proxy = Proxy(listener.getsockname()[1], target, address)
        threads: list[threading.Thread] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threads.append(threading.Thread(target=proxy.serve, args=(client,)))
                    threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield proxy
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            proxy.release()
            proxy.cut_all()
            for thread in threads:
                thread.join()
