"""An HTTP server on a free port, in a thread, that keeps what it gets and answers as a test says."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from attrs import define, field, frozen


@frozen
class Received:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Answer = Callable[[socket.socket, Received], None]


def status(code: int, *headers: str) -> Answer:
    """Answer with a status and further header lines."""
    lines = [f"HTTP/1.1 {code} Status", *headers, "Content-Length: 0", "Connection: close"]
    raw = "\r\n".join([*lines, "", ""]).encode()
    return lambda connection, _: connection.sendall(raw)


@define
class Receiver:
    url: str
    answer: Answer = field(factory=lambda: status(200))
    requests: list[Received] = field(factory=list)
    released: threading.Event = field(factory=threading.Event)
    """Set when the test is over: what hangs goes on."""

    def hang(self, _: socket.socket, __: Received) -> None:
        self.released.wait(60)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver inside the scope."""

    class Handler(BaseHTTPRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                super().handle()

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = Received(self.command, self.path, headers, body)
            receiver.requests.append(received)
            self.close_connection = True
            receiver.answer(self.connection, received)

        do_POST = do_DELETE = _any  # noqa: N815 - the names that its base looks for

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield receiver
        finally:
            receiver.released.set()
            server.shutdown()
            thread.join()
