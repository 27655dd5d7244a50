"""Guessing tokens: ten wrong ones a minute per address, also from loopback."""

import json
from pathlib import Path

import httpx
import pytest
from serving import Serving, serving
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from agent_orchestrator.domain.errors import RateLimited
from agentd.lockout import ATTEMPTS, MAX_ADDRESSES, WINDOW_S, Lockout

pytestmark = pytest.mark.anyio

SHORT = "s3cret"
LONG = "0123456789abcdef0123456789abcdef"


async def get(server: Serving, token: str) -> httpx.Response:
    """Call on a new connection."""
    async with httpx.AsyncClient(base_url=server.url) as client:
        return await client.get("/sessions", headers={"Authorization": f"Bearer {token}"})


async def lock(server: Serving) -> None:
    for number in range(ATTEMPTS):
        assert (await get(server, f"guess-{number}")).status_code == 401


async def test_wrong_tokens_lock_an_address_out_but_not_good_strong_tokens(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(SHORT, LONG)) as server:
        made = (await server.client.post("/tokens", json={"name": "ann"})).json()["secret"]
        await lock(server)
        for token in ("guess", "x" * 40, SHORT):
            refused = await get(server, token)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "rate_limited"
            assert 0 < int(refused.headers["Retry-After"]) <= WINDOW_S
        # Long tokens, named tokens and authenticated connections are not locked out.
        assert (await get(server, LONG)).status_code == 200
        assert (await get(server, made)).status_code == 200
        assert (await server.client.get("/sessions")).status_code == 200
        assert (await server.client.get("/health")).status_code == 200
        # But an authenticated connection cannot go on guessing: nothing is compared.
        other = {"Authorization": f"Bearer {SHORT}"}
        assert (await server.client.get("/sessions")).status_code == 200
        for headers in (other, {"Authorization": "Bearer wrong"}):
            async with httpx.AsyncClient(base_url=server.url) as client:
                let_in = {"Authorization": f"Bearer {made}"}
                assert (await client.get("/sessions", headers=let_in)).status_code == 200
                assert (await client.get("/sessions", headers=headers)).status_code == 429
                assert (await client.get("/sessions", headers=let_in)).status_code == 200


async def test_good_token_does_not_reset_the_count_of_wrong_ones(tmp_path: Path) -> None:
    """Also not by sending the good token in between on the same connection."""
    async with serving(tmp_path, tokens=(SHORT,)) as server:
        made = (await server.client.post("/tokens", json={"name": "ann"})).json()["secret"]
        async with httpx.AsyncClient(base_url=server.url) as client:

            async def status(token: str) -> int:
                headers = {"Authorization": f"Bearer {token}"}
                return (await client.get("/openapi.json", headers=headers)).status_code

            for number in range(ATTEMPTS):
                assert await status(f"guess-{number}") == 401
                assert await status(made) == 200
            for guess in ("guess", SHORT):
                assert await status(guess) == 429
                assert await status(made) == 200


async def test_wrong_tokens_of_websockets_count_however_they_are_sent(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(SHORT,)) as server:
        url = server.url.replace("http", "ws") + "/stream"

        async def by_header(token: str) -> int:
            with pytest.raises(InvalidStatus) as refused:
                await connect(url, additional_headers={"Authorization": f"Bearer {token}"})
            return refused.value.response.status_code

        async def by_protocol(token: str) -> int:
            with pytest.raises(InvalidStatus) as refused:
                await connect(url, subprotocols=[f"bearer.{token}"])  # type: ignore[list-item]
            return refused.value.response.status_code

        async def by_frame(token: str) -> int:
            async with connect(url) as socket:
                await socket.send(f'{{"type": "auth", "token": "{token}"}}')
                assert "error" in await socket.recv()  # type: ignore[operator]
                with pytest.raises(ConnectionClosed) as closed:
                    await socket.recv()
            assert closed.value.rcvd is not None
            return closed.value.rcvd.code - 4000

        ways = (by_header, by_protocol, by_frame)
        for number in range(ATTEMPTS):
            assert await ways[number % 3](f"guess-{number}") == 401
        for way in ways:
            assert await way(SHORT) == 429


async def test_missing_tokens_and_run_tokens_do_not_count_as_guesses(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(SHORT,)) as server:
        for _ in range(2 * ATTEMPTS):
            assert (await get(server, "art_" + "A" * 43)).status_code == 401
            async with httpx.AsyncClient(base_url=server.url) as client:
                assert (await client.get("/sessions")).status_code == 401
        assert (await get(server, SHORT)).status_code == 200


def test_lockout_lasts_a_minute_per_address() -> None:
    now = 0.0
    lockout = Lockout(lambda: now)
    for _ in range(ATTEMPTS):
        lockout.count_failure("127.0.0.1")
    with pytest.raises(RateLimited):
        lockout.count_failure("127.0.0.1")
    lockout.check("127.0.0.2")
    now += WINDOW_S - 0.5
    with pytest.raises(RateLimited) as refused:
        lockout.check("::ffff:127.0.0.1")
    assert refused.value.details == {"retry_after_s": 1}
    now += 0.5
    lockout.check("127.0.0.1")
    for _ in range(ATTEMPTS + 5):  # slow enough wrong tokens are never locked out
        lockout.count_failure("127.0.0.1")
        now += WINDOW_S / (ATTEMPTS - 1) + 0.1
    for _ in range(ATTEMPTS):
        lockout.count_failure("2001:db8::1")
    with pytest.raises(RateLimited):
        lockout.check("2001:db8::2")
    lockout.check("2001:db8:0:1::1")
    for number in range(MAX_ADDRESSES):
        lockout.count_failure(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    lockout.check("2001:db8::1")
    assert len(lockout._failures) == MAX_ADDRESSES


async def test_refusals_before_authentication_are_logged_once_with_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "agentd")
    async with serving(tmp_path, tokens=(LONG,)) as server:
        unknown = f"apt_{'x' * 43}"
        for _ in range(20):
            assert (await get(server, unknown)).status_code == 401
            answer = await server.client.get("/sessions", headers={"Host": "evil.example"})
            assert answer.status_code == 421
            answer = await server.client.get("/runs", headers={"Origin": "http://evil.example"})
            assert answer.status_code == 403
            async with connect(f"{server.url.replace('http', 'ws')}/stream") as socket:
                await socket.send(json.dumps({"type": "auth", "token": unknown}))
                assert "unauthorized" in await socket.recv()
                await socket.wait_closed()
        assert (await server.client.get("/requests")).status_code == 200
    warnings = [
        one for one in caplog.records if "refused before authentication" in one.getMessage()
    ]
    codes = [one.fields["code"] for one in warnings]  # type: ignore[attr-defined]
    assert sorted(codes) == ["forbidden", "misdirected_request", "unauthorized"]
    assert {one.fields["address"] for one in warnings} == {"127.0.0.1"}  # type: ignore[attr-defined]
    assert unknown not in caplog.text
    accesses = [one for one in caplog.records if one.name == "agentd.access"]
    paths = [one.fields["path"] for one in accesses]  # type: ignore[attr-defined]
    assert paths.count("/requests") == 1
    assert len([path for path in paths if path != "/stream"]) == 1
