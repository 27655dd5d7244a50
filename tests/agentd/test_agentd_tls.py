"""TLS: certificates, handshakes, timeouts, and the separate port of agents."""

import asyncio
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest
from certificates import Certificate, make_certificate
from pace import allowed
from serving import agentd, exchange, run_agentd, serving, sse_reader, until
from waiting_agents import Agents
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import InvalidStatus

from agent_orchestrator import connect
from agent_orchestrator.domain.errors import ConfigError, Unreachable
from agentd.server import MAX_UNAUTHENTICATED

pytestmark = pytest.mark.anyio

TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path)


def secured(directory: Path, certificate: Certificate, **more):
    return serving(
        directory, tokens=(TOKEN,), tls=certificate.server(), trust=certificate.trust(), **more
    )


async def test_calls_streams_and_websockets_work_over_tls(
    tmp_path: Path, certificate: Certificate
) -> None:
    async with secured(tmp_path, certificate) as server:
        assert server.url.startswith("https://")
        trusting = connect(server.url, token=TOKEN, ca_file=certificate.authority)
        async with trusting as client:
            session = await client.create_session()
            sent = await client.send_message(session.id, "hello")
            assert sent.run is not None
            assert (await client.wait_run(sent.run.id)).run.status == "completed"
            seen = [event.seq async for event in client.events(session.id)]
            assert seen == list(range(1, len(seen) + 1))
        path = f"/stream?sessionId={session.id}"
        async with sse_reader(server.client, path) as frames:
            assert (await anext(frames)).event == "session.created"
        url = server.url.replace("https", "wss") + path
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with open_socket(url, additional_headers=headers, ssl=certificate.trust()) as reader:
            assert "session.created" in str(await reader.recv())


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_client_that_does_not_trust_the_certificate_is_unreachable(
    tmp_path: Path, certificate: Certificate
) -> None:
    with anyio.fail_after(60):
        async with AgentdOverTls(tmp_path, certificate) as url:
            async with connect(url, ca_file=certificate.cert) as client:
                assert (await client.status()).pid
            other = make_certificate_in(tmp_path / "other")
            for ca_file in (None, other.authority):
                async with connect(url, ca_file=ca_file) as client:
                    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
                        await client.status()
            async with connect(url.replace("https", "http")) as client:
                with pytest.raises(Unreachable):
                    await client.status()


class AgentdOverTls:
    """A real agentd with a certificate, on any event loop of the test."""

    def __init__(self, directory: Path, certificate: Certificate) -> None:
        self._daemon = agentd(directory, *certificate.options)

    async def __aenter__(self) -> str:
        return (await anyio.to_thread.run_sync(self._daemon.__enter__)).url

    async def __aexit__(self, *error) -> None:
        await anyio.to_thread.run_sync(self._daemon.__exit__, *error)


def make_certificate_in(directory: Path) -> Certificate:
    directory.mkdir()
    return make_certificate(directory)


@pytest.mark.parametrize("content", [None, "nothing of the kind"])
async def test_invalid_ca_file_is_a_configuration_error(
    tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        async with connect("https://127.0.0.1:1", ca_file=file):
            pass


async def test_origin_must_have_the_scheme_https_over_tls(
    tmp_path: Path, certificate: Certificate
) -> None:
    async with secured(tmp_path, certificate) as server:
        for scheme, expected in (("https", 200), ("http", 403)):
            origin = f"{scheme}://{server.url.partition('://')[2]}"
            answer = await server.client.get("/sessions", headers={"Origin": origin})
            assert answer.status_code == expected, origin
            headers = {"Authorization": f"Bearer {TOKEN}", "Origin": origin}
            opening = open_socket(
                server.url.replace("https", "wss") + "/stream",
                additional_headers=headers,
                ssl=certificate.trust(),
            )
            if expected == 200:
                async with opening as reader:
                    await reader.recv()
            else:
                with pytest.raises(InvalidStatus):
                    await opening


async def test_agents_have_a_loopback_port_without_tls(
    tmp_path: Path, certificate: Certificate
) -> None:
    """Agents have a port without TLS, on loopback, which accepts only tokens of runs."""
    agents = Agents()
    async with secured(tmp_path, certificate, agents={"agent": agents}) as server:
        agents.server = server
        run_id = await agents.start()
        url = agents.environments[run_id]["AGENTCTL_URL"]
        assert url == server.agents_url
        assert url.startswith("http://127.0.0.1:")
        named = await server.client.post("/tokens", json={"name": "ann"})
        async with httpx.AsyncClient(base_url=url) as client:
            own = await client.get(f"/runs/{run_id}", headers=agents.headers(run_id))
            assert own.status_code == 200, own.text
            for token in (None, TOKEN, named.json()["secret"], "wrong"):
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                refused = await client.get("/sessions", headers=headers)
                assert refused.status_code == 401, token
                with pytest.raises(InvalidStatus):
                    await open_socket(
                        url.replace("http", "ws") + "/stream",
                        additional_headers=headers,
                        subprotocols=None if token else ["bearer.wrong"],
                    )
            rebound = await client.get("/health", headers={"Host": "evil.example"})
            assert rebound.status_code == 421
        async with open_socket(url.replace("http", "ws") + "/stream") as reader:
            await reader.send(f'{{"type": "auth", "token": "{TOKEN}"}}')
            assert "unauthorized" in str(await reader.recv())
        await agents.end(run_id)


async def test_port_of_agents_requires_a_runs_token(
    tmp_path: Path, certificate: Certificate
) -> None:
    async with serving(tmp_path, tls=certificate.server(), trust=certificate.trust()) as server:
        assert (await server.client.get("/sessions")).status_code == 200
        async with httpx.AsyncClient(base_url=str(server.agents_url)) as client:
            for headers in ({}, {"Authorization": "Basic x"}, {"Authorization": "Bearer x"}):
                assert (await client.get("/sessions", headers=headers)).status_code == 401
            url = str(server.agents_url).replace("http", "ws") + "/stream"
            async with open_socket(url) as reader:
                await reader.send('{"type": "auth", "token": "x"}')
                assert "unauthorized" in str(await reader.recv())


async def test_old_tls_versions_are_refused(tmp_path: Path, certificate: Certificate) -> None:
    async with secured(tmp_path, certificate) as server:

        def shake_hands(version: ssl.TLSVersion) -> str | None:
            context = certificate.trust()
            with (
                pytest.warns(DeprecationWarning, match="deprecated")
                if version < 0x303
                else ExitStack()
            ):
                context.minimum_version = context.maximum_version = version
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            with (
                socket.create_connection(server.address, timeout=60) as bare,
                context.wrap_socket(bare, server_hostname="127.0.0.1") as found,
            ):
                return found.version()

        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises(OSError):
                await anyio.to_thread.run_sync(shake_hands, version)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            assert await anyio.to_thread.run_sync(shake_hands, version)


@pytest.mark.parametrize(
    "said", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"]
)
async def test_connection_without_a_tls_handshake_is_closed(
    tmp_path: Path, certificate: Certificate, said: bytes
) -> None:
    async with secured(tmp_path, certificate, first_request_s=2.0) as server:
        async with await anyio.connect_tcp(*server.address) as stream:
            if said:
                await stream.send(said)
            with anyio.fail_after(60), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    assert b"HTTP" not in await stream.receive()
        assert (await server.client.get("/health")).status_code == 200


async def test_idle_tls_connection_is_closed(tmp_path: Path, certificate: Certificate) -> None:
    async with secured(tmp_path, certificate, first_request_s=2.0) as server:

        def idle() -> None:
            context = certificate.trust()
            with (
                socket.create_connection(server.address, timeout=60) as bare,
                # As a client that does not answer the close of TLS.
                context.wrap_socket(
                    bare, server_hostname="127.0.0.1", suppress_ragged_eofs=True
                ) as found,
            ):
                assert socket.socket.recv(found, 1 << 16, socket.MSG_PEEK)
                while True:
                    try:
                        if not found.recv(1):
                            break
                    except ConnectionError:
                        break

        await anyio.to_thread.run_sync(idle)


async def test_connections_without_a_tls_handshake_are_limited(
    tmp_path: Path, certificate: Certificate
) -> None:
    def is_open(one: socket.socket) -> bool:
        try:
            return one.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    async with secured(tmp_path, certificate) as server:
        with ExitStack() as held:
            idle = []
            for number in range(MAX_UNAUTHENTICATED + 200):
                one = held.enter_context(socket.socket())
                one.setblocking(False)  # noqa: FBT003
                one.connect_ex(server.address)
                idle.append(one)
                if number % 50 == 0:
                    assert (await server.client.get("/sessions")).status_code == 200
            await until(
                lambda: sum(is_open(one) for one in idle) <= MAX_UNAUTHENTICATED,
                "the oldest are closed",
            )
            assert (await server.client.get("/sessions")).status_code == 200


@pytest.mark.parametrize("over_tls", [True, False])
async def test_closed_connection_leaves_no_task(
    tmp_path: Path, certificate: Certificate, over_tls: bool
) -> None:
    """A TLS connection takes 0.3 MB, so a closed one must not stay until its timeout."""

    def served() -> int:
        return sum("connected" in str(task.get_coro()) for task in asyncio.all_tasks())

    def come_and_go(address: tuple[str, int]) -> None:
        for _ in range(30):
            with ExitStack() as stack:
                one = stack.enter_context(socket.create_connection(address, timeout=60))
                if over_tls:
                    stack.enter_context(
                        certificate.trust().wrap_socket(one, server_hostname="127.0.0.1")
                    )

    options = {"tls": certificate.server(), "trust": certificate.trust()} if over_tls else {}
    async with serving(tmp_path, **options, first_request_s=60) as server:
        await anyio.to_thread.run_sync(come_and_go, server.address)
        if not over_tls:  # this request was accepted after all of them
            last = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            assert (await anyio.to_thread.run_sync(exchange, server.address, last))[0] == 200
        await until(lambda: served() == 0, "the last of them is over")


# --- certificates that cannot be used --------------------------------------------------------


def test_invalid_certificate_or_key_is_a_one_line_error(tmp_path: Path) -> None:
    one = make_certificate(tmp_path)
    other = make_certificate_in(tmp_path / "other")
    nonsense, locked = tmp_path / "nonsense.pem", tmp_path / "locked.pem"
    nonsense.write_text("nothing of the kind\n")
    subprocess.run(
        ["openssl", "pkey", "-in", one.key, "-aes128", "-passout", "pass:x", "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    cases = [
        (("--tls-cert", one.cert), "--tls-cert needs --tls-key"),
        (("--tls-key", one.key), "--tls-key needs --tls-cert"),
        (("--tls-cert", one.cert, "--tls-key", "/no/such"), "--tls-key /no/such: cannot be read"),
        (("--tls-cert", str(tmp_path), "--tls-key", one.key), "cannot be read: Is a directory"),
        (("--tls-cert", one.cert, "--tls-key", other.key), "is not the key of the certificate"),
        (("--tls-cert", str(nonsense), "--tls-key", one.key), "contains no certificate"),
        (("--tls-cert", one.cert, "--tls-key", str(nonsense)), "contains no private key"),
        (("--tls-cert", one.cert, "--tls-key", str(locked)), "has a passphrase"),
        (("--tls-cert", one.key, "--tls-key", one.cert), "contains no certificate"),
    ]
    for options, problem in cases:
        ended = run_agentd(tmp_path, "--port", "0", *options)
        assert ended.returncode == 1, options
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        assert ended.stderr.startswith("agentd: "), ended.stderr
        assert problem in ended.stderr, ended.stderr


def test_tls_can_be_set_by_file_and_environment(tmp_path: Path) -> None:
    one = make_certificate(tmp_path)
    (tmp_path / "agentd.toml").write_text(f"[daemon]\ntls_cert = {one.cert!r}\n")
    with agentd(tmp_path, env={"AGENTD_TLS_KEY": one.key}) as daemon:
        answer = httpx.get(f"{daemon.url}/health", verify=one.trust())
        assert answer.status_code == 200
        assert daemon.url.startswith("https://127.0.0.1:")


def test_daemon_stops_soon_with_open_tls_connections(tmp_path: Path) -> None:
    import signal

    one = make_certificate(tmp_path)
    with (
        agentd(tmp_path, *one.options) as daemon,
        httpx.Client(base_url=daemon.url, verify=one.trust()) as client,
    ):
        client.get("/health")
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert time.monotonic() - began < allowed(6)
        assert not [line for line in daemon.log() if line["level"] in ("warning", "error")]
