"""Host, Origin and token: checked on every call, before anything else."""

import contextlib
import hashlib
import hmac
import time
from itertools import count
from pathlib import Path

import anyio.to_thread
import httpx
import pytest
import shortcuts
from serving import Serving, exchange, serving
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.errors import ConfigError, Unauthorized
from agent_orchestrator.ports.transport import Transport
from agentd.auth import Guard, is_loopback
from agentd.lockout import Peer

pytestmark = pytest.mark.anyio

TOKEN = "correct-horse-battery-staple"
OTHER = "another-token"

HOSTS = [
    ("127.0.0.1", 200),
    ("127.0.0.1:1", 200),
    ("localhost", 200),
    ("LOCALHOST:8765", 200),
    ("[::1]:8765", 200),
    ("[0:0:0:0:0:0:0:1]", 200),
    ("[0000::0001]:8765", 200),
    ("[::ffff:127.0.0.1]", 200),
    ("[::2]", 421),
    ("[::ffff:192.168.1.2]", 421),
    ("[1:2:3]", 421),
    ("agents.example:443", 200),
    ("", 421),
    ("evil.example", 421),
    ("127.0.0.1.evil.example", 421),
    ("localhost.evil.example:8765", 421),
    ("localhost:x", 421),
    ("user@localhost", 421),
    ("192.168.1.2", 421),
    ("0.0.0.0", 421),
    ("[::]", 421),
]

ORIGINS = [
    ("https://console.example", 200),
    ("null", 403),
    ("", 403),
    ("http://evil.example", 403),
    ("http://localhost:3000", 403),
    ("http://console.example", 403),
    ("https://console.example.evil.example", 403),
    ("https://console.example/", 403),
    ("file://", 403),
    ("http://x@localhost", 403),
    ("https://localhost:8765", 403),
    ("http://localhost:8765/", 403),
    ("HTTP://LocalHost:8765", 200),
    ("https://CONSOLE.example", 200),
]

PATHS = [
    ("GET", "/health"),
    ("GET", "/sessions"),
    ("POST", "/sessions"),
    ("DELETE", "/sessions"),
    ("OPTIONS", "/sessions"),
    ("GET", "/stream"),
    ("GET", "/openapi.json"),
    ("GET", "/not/there"),
]


def guarded(directory: Path, tokens: tuple[str, ...] = ()):
    return serving(
        directory,
        tokens=tokens,
        allowed_hosts=("agents.example",),
        allowed_origins=("https://console.example",),
    )


async def status_of(server: Serving, method: str, path: str, headers: dict[str, str]) -> int:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"{method} {path} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n"
    status, _ = await anyio.to_thread.run_sync(exchange, server.address, request.encode())
    return status


def upgrade(host: str, **headers: str) -> dict[str, str]:
    return {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        **headers,
    }


async def test_host_header_is_checked_on_every_call(tmp_path: Path) -> None:
    async with guarded(tmp_path) as server:
        for host, expected in HOSTS:
            assert await status_of(server, "GET", "/health", {"Host": host}) == expected, host
            if expected != 200:
                for method, path in PATHS:
                    assert await status_of(server, method, path, {"Host": host}) == expected
                assert await status_of(server, "GET", "/stream", upgrade(host)) == expected


async def test_origin_header_is_checked_on_every_call(tmp_path: Path) -> None:
    async with guarded(tmp_path) as server:
        own = "http://localhost:8765"
        for origin, expected in [*ORIGINS, (own, 200)]:
            headers = {"Host": "localhost:8765", "Origin": origin}
            assert await status_of(server, "GET", "/health", headers) == expected, origin
            if expected != 200:
                for method, path in PATHS:
                    assert await status_of(server, method, path, headers) == expected
                socket = upgrade("localhost:8765", Origin=origin)
                assert await status_of(server, "GET", "/stream", socket) == expected


PAGE = "https://console.example"


def cors_of(answer: httpx.Response) -> dict[str, str]:
    return {
        name: value for name, value in answer.headers.items() if name.startswith("access-control")
    }


async def test_pages_of_allowed_origins_get_cors_headers(tmp_path: Path) -> None:
    """CORS: a browser asks first, without a token, and then lets the page read the answers."""
    async with guarded(tmp_path, (TOKEN,)) as server:
        asking = {
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
            "Authorization": "",
        }
        for path in ("/sessions", "/stream", "/not/there"):
            asked = await server.client.options(path, headers=asking)
            assert (asked.status_code, asked.content) == (204, b"")
            assert asked.headers["Access-Control-Allow-Origin"] == PAGE
            assert "Origin" in asked.headers["Vary"]
            assert "POST" in asked.headers["Access-Control-Allow-Methods"]
            allowed = asked.headers["Access-Control-Allow-Headers"].lower()
            assert all(name in allowed for name in ("authorization", "content-type", "idempotency"))
            assert "Access-Control-Allow-Credentials" not in asked.headers
        session = await server.session()
        for method, path, status in (
            ("GET", "/sessions", 200), ("POST", "/sessions", 201), ("GET", "/not/there", 404),
            ("DELETE", "/sessions", 405), ("GET", "/stream?sessionId=ses_0", 404),
            ("GET", "/stream?cursor=x&sessionId=x", 400), ("OPTIONS", "/sessions", 204),
        ):  # fmt: skip
            answer = await server.client.request(method, path, headers={"Origin": PAGE})
            assert answer.status_code == status, (method, path)
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE, (method, path)
        refused = await server.client.get(
            "/sessions", headers={"Origin": PAGE, "Authorization": "Bearer wrong"}
        )
        assert (refused.status_code, cors_of(refused)["access-control-allow-origin"]) == (401, PAGE)
        path = f"/stream?sessionId={session}"
        async with server.client.stream("GET", path, headers={"Origin": PAGE}) as stream:
            assert stream.headers["Access-Control-Allow-Origin"] == PAGE
            assert stream.headers["Content-Type"].startswith("text/event-stream")


async def test_pages_of_other_origins_get_no_cors_headers(tmp_path: Path) -> None:
    asking = {"Access-Control-Request-Method": "GET"}
    async with guarded(tmp_path, (TOKEN,)) as server:
        for origin in ("https://evil.example", "null", f"{PAGE}.evil.example"):
            for method in ("OPTIONS", "GET", "POST"):
                headers = {"Origin": origin, **asking}
                answer = await server.client.request(method, "/sessions", headers=headers)
                assert (answer.status_code, cors_of(answer)) == (403, {})
        # Two origins, even if both are allowed; and a page of the daemon itself, which needs no CORS.
        for origins in ([PAGE, PAGE], [server.url]):
            answer = await server.client.get(
                "/sessions", headers=[("Origin", one) for one in origins]
            )
            assert (answer.status_code, cors_of(answer)) == (200, {})
        preflight = await server.client.options(
            "/sessions", headers={**asking, "Authorization": ""}
        )
        assert preflight.status_code == 401  # without an origin it is not a preflight
    (tmp_path / "b").mkdir()
    async with serving(tmp_path / "b", tokens=(TOKEN,)) as server:
        headers = {"Origin": server.url, **asking}
        for method in ("OPTIONS", "GET"):
            answer = await server.client.request(method, "/sessions", headers=headers)
            assert cors_of(answer) == {}


async def test_call_of_a_page_with_a_forbidden_origin_changes_nothing(tmp_path: Path) -> None:
    async with guarded(tmp_path) as server:
        answer = await server.client.post(
            "/sessions", json={}, headers={"Origin": "http://evil.example"}
        )
        assert answer.status_code == 403
        assert await server.event_count() == 0


async def test_bearer_token_is_required_on_every_call(tmp_path: Path) -> None:
    async with (
        guarded(tmp_path, (TOKEN, OTHER)) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        places = count(1)
        for header in (
            None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN,
            f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN} {TOKEN}",
        ):  # fmt: skip
            headers = {} if header is None else {"Authorization": header}
            for method, path in PATHS:
                # Each from a new address: too many from one would be refused.
                place = httpx.AsyncHTTPTransport(local_address=f"127.0.1.{next(places)}")
                async with httpx.AsyncClient(base_url=server.url, transport=place) as stranger:
                    answer = await stranger.request(method, path, headers=headers)
                if path == "/health":
                    assert answer.status_code == 200
                    continue
                assert answer.status_code == 401, (header, method, path)
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "unauthorized"
        for token in (TOKEN, OTHER):
            for scheme in ("Bearer", "bearer"):
                headers = {"Authorization": f"{scheme} {token}"}
                assert (await client.get("/sessions", headers=headers)).status_code == 200
                assert (await client.get("/not/there", headers=headers)).status_code == 404
        twice = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")]
        assert (await client.get("/sessions", headers=twice)).status_code == 401


async def test_a_token_in_the_url_is_refused(tmp_path: Path) -> None:
    async with guarded(tmp_path, (TOKEN,)) as server:
        for name in ("token", "access_token"):
            for path in ("/sessions", "/stream", "/health", "/not/there"):
                answer = await server.client.get(f"{path}?{name}={TOKEN}")
                assert answer.status_code == 400
                assert list(answer.json()["error"]["details"]["fields"]) == [name]
                assert TOKEN not in answer.text


async def test_session_owner_is_derived_from_the_token(tmp_path: Path) -> None:
    async with guarded(tmp_path, (TOKEN,)) as server:
        made = await server.client.post("/sessions", json={})
        owner = made.json()["session"]["owner"]
        assert owner.startswith("token-")
        assert TOKEN not in made.text


def test_token_name_is_a_slow_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reader of a session sees its owner's name, and could test guesses against it."""
    monkeypatch.setattr(hashlib, "scrypt", shortcuts.SCRYPT)
    for token in ("s3cret", TOKEN):
        [(_, who)] = Guard((token,))._tokens
        assert [(_, who)] == Guard((token, OTHER))._tokens[:1]
        for name in hashlib.algorithms_guaranteed - {"shake_128", "shake_256"}:
            assert who.id != f"token-{hashlib.new(name, token.encode()).hexdigest()[:8]}"
        began = time.process_time()
        Guard((token,))
        assert time.process_time() - began > 0.005  # ten thousand times the cost of a plain hash


async def test_websockets_without_a_valid_token_are_refused(tmp_path: Path) -> None:
    async with guarded(tmp_path, (TOKEN,)) as server:
        url = server.url.replace("http", "ws") + "/stream"
        for options in (
            {"additional_headers": {"Authorization": "Bearer wrong"}},
            {"subprotocols": ["bearer.wrong"]},
        ):
            with pytest.raises(InvalidStatus) as refused:
                await connect(url, **options)
            assert refused.value.response.status_code == 401
        with pytest.raises(InvalidStatus) as refused:
            await connect(url.replace("/stream", "/not/there"))
        assert refused.value.response.status_code == 401
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{url}?token={TOKEN}")
        assert refused.value.response.status_code == 400


def test_wildcard_bind_accepts_addresses_and_not_names_as_host() -> None:
    guard = Guard((TOKEN,), host="0.0.0.0")
    for host in ("192.168.1.2:8765", "[fe80::1]", "localhost"):
        guard.check_host_and_origin([host], [])
    with pytest.raises(Exception, match="Host header is not allowed"):
        guard.check_host_and_origin(["rebound.example"], [])


def test_loopback_addresses_are_recognized() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [
        True
    ] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [
        False
    ] * 4


def test_invalid_tokens_and_origins_are_configuration_errors() -> None:
    for token in ("", "two words", "ümlaut", "line\nbreak"):
        with pytest.raises(ConfigError):
            Guard((token,))
    for origin in ("example.org", "ftp://example.org", "https://example.org/path", "null"):
        with pytest.raises(ConfigError):
            Guard(allowed_origins=(origin,))


class NoTokens:
    """A gateway that has made no token."""

    def acting_as(self, principal: Principal) -> Transport:
        raise AssertionError

    async def holder(self, token_hash: str) -> Principal | None:
        return None

    def has_tokens(self) -> bool:
        return False


async def test_token_of_any_characters_is_just_unauthorized() -> None:
    guard = Guard((TOKEN,))
    for token in ("\ud800", "\0", "x" * 100_000, "ü", "art_", "art_\ud800"):
        with pytest.raises(Unauthorized):
            await guard.holder(token, NoTokens(), Peer("127.0.0.1"))


async def test_token_is_compared_with_every_configured_token_by_hash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time of a check must not reveal how much of a token matched, nor which one."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    guard = Guard(("first-token", "second-token", "third-token"))
    presented = ("first-token", "third-token", "first-toke", "first-tokeX", "", "x" * 100_000)
    for number, token in enumerate(presented):
        compared.clear()
        try:
            await guard.holder(token, NoTokens(), Peer(f"127.0.2.{number}"))
        except Unauthorized:
            assert number > 1
        assert len(compared) == 3, token
        # Hashes of equal length, of which a guess cannot match a part.
        assert {len(value) for pair in compared for value in pair} == {32}


async def test_time_of_a_token_check_does_not_depend_on_the_matching_part() -> None:
    token = "correct-horse-battery-staple-and-more-of-it"
    guard, peer = Guard((token,)), Peer("127.0.0.1")
    peer.is_authenticated = True
    wrong = {"first": "X" + token[1:], "last": token[:-1] + "X"}
    least = dict.fromkeys(wrong, float("inf"))

    for number in range(20_000):
        peer.address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        for kind, presented in wrong.items():
            # The quickest of many: other work on the machine only adds to it.
            began = time.perf_counter()
            with contextlib.suppress(Unauthorized):
                await guard.holder(presented, NoTokens(), peer)
            least[kind] = min(least[kind], time.perf_counter() - began)
    assert least["first"] == pytest.approx(least["last"], rel=0.25)
