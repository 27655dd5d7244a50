"""Devices: a code lets a browser in once, and only its two secrets together are a token."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from attrs import frozen
from serving import ADMIN, PATIENCE_S, Serving, serving, sse_reader
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from agent_orchestrator.domain.tokens import code_hash
from agentd.lockout import ATTEMPTS

pytestmark = pytest.mark.anyio


@frozen
class Browser:
    """A browser that was let in: what its page keeps, and its jar of cookies."""

    device_id: str
    secret: str
    cookie: str
    origin: str

    @property
    def header(self) -> dict[str, str]:
        return {"Agentd-Device": f"{self.device_id}.{self.secret}"}

    @property
    def jar(self) -> dict[str, str]:
        return {"Cookie": f"agentd_{self.device_id}={self.cookie}"}

    def headers(self, **more: str) -> dict[str, str]:
        """Return the headers of a request of the page."""
        return {**self.header, **self.jar, "Origin": self.origin, **more}


async def invited(server: Serving, **fields: Any) -> dict[str, Any]:
    answer = await server.client.post("/devices", json=fields)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def claimed(server: Serving, code: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url) as stranger:
        return await stranger.post("/devices/claim", json={"code": code}, headers=headers)


async def browser(server: Serving, **fields: Any) -> Browser:
    """Let a browser in."""
    answer = await claimed(server, (await invited(server, **fields))["code"], Origin=server.url)
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert body["cookie"] is None
    name, _, value = answer.headers["Set-Cookie"].partition(";")[0].partition("=")
    assert name == f"agentd_{body['device']['id']}"
    return Browser(body["device"]["id"], body["secret"], value, server.url)


@asynccontextmanager
async def with_browser(directory: Path, **fields: Any) -> AsyncIterator[tuple[Serving, Browser]]:
    async with serving(directory, tokens=(ADMIN,)) as server:
        yield server, await browser(server, **fields)


async def status(
    server: Serving, headers: dict[str, str], path: str = "/sessions", *, method: str = "GET"
) -> int:
    async with httpx.AsyncClient(base_url=server.url) as client:
        sent: dict[str, Any] = {} if method == "GET" else {"json": {}}
        answer = await client.request(method, path, headers=headers, **sent)
        return answer.status_code


async def test_a_device_acts_for_who_invited_it_within_its_scopes(tmp_path: Path) -> None:
    async with with_browser(tmp_path, scopes=["read", "write"]) as (server, phone):
        own = await server.session()
        async with httpx.AsyncClient(base_url=server.url, headers=phone.headers()) as page:
            listed = (await page.get("/sessions")).json()["sessions"]
            assert [one["id"] for one in listed] == [own]
            assert (await page.post("/sessions", json={})).status_code == 201
            assert (await page.get("/tokens")).status_code == 403
            assert (await page.post("/requests/req_x/resolve", json={"decision": "deny"})).json()[
                "error"
            ]["details"] == {"scope": "approve"}
            [device] = (await page.get("/devices")).json()["devices"]
            assert (device["id"], device["purpose"]) == (phone.device_id, "device")
        entries = (await server.client.get("/daemon/audit")).json()["entries"]
        found = [(one["operation"], one["target"]) for one in entries]
        assert found == [("add_device", phone.device_id), ("claim_device", phone.device_id)]


async def test_a_list_says_when_a_device_was_seen_last(tmp_path: Path) -> None:
    async with with_browser(tmp_path) as (server, phone):
        unused = await browser(server)
        before = await devices(server)
        assert all(one["seen_at"] == one["created_at"] for one in before.values())
        commits = await server.store.read(lambda view: view.epoch())
        with anyio.fail_after(PATIENCE_S):
            while True:  # the first use is written at once, the others within a minute
                assert await status(server, phone.headers()) == 200
                listed = await devices(server)
                if listed[phone.device_id]["seen_at"] > before[phone.device_id]["seen_at"]:
                    break
                await anyio.sleep(0.02)
        assert listed[unused.device_id] == before[unused.device_id]
        assert await server.store.read(lambda view: view.epoch()) == commits


async def devices(server: Serving) -> dict[str, dict[str, Any]]:
    listed = (await server.client.get("/devices")).json()["devices"]
    return {one["id"]: one for one in listed}


async def test_a_decision_names_the_device(tmp_path: Path) -> None:
    async with with_browser(tmp_path, name="Ann's phone") as (server, phone):
        desk = await browser(server, name="desk")
        request = await question(server)
        path = f"/requests/{request}/resolve"
        answers = []
        for device in (phone, desk, phone):
            async with httpx.AsyncClient(base_url=server.url, headers=device.headers()) as page:
                answer = await page.post(path, json={"decision": "approve"})
                assert answer.status_code == 200, answer.text
                answers.append(answer.json())
        # All gave the same answer, but only the first has decided.
        assert [one["decided_now"] for one in answers] == [True, False, False]
        for one in answers:
            decided = one["request"]
            assert (decided["decided_on"], decided["decided_on_id"]) == (
                "Ann's phone",
                phone.device_id,
            )
        events = await server.events(answers[0]["request"]["session_id"])
        [resolved] = [one for one in events if one["event_type"] == "request.resolved"]
        assert resolved["data"]["decided_on"] == "Ann's phone"
        entries = (await server.client.get("/daemon/audit")).json()["entries"]
        [entry, *_] = [one for one in entries if one["operation"] == "resolve_request"]
        assert (entry["detail"]["device"], entry["detail"]["device_id"]) == (
            "Ann's phone",
            phone.device_id,
        )


async def test_a_decision_with_a_token_names_no_device(tmp_path: Path) -> None:
    async with with_browser(tmp_path) as (server, _):
        request = await question(server)
        headers = {"Idempotency-Key": "once"}
        for _ in range(2):
            answer = await server.client.post(
                f"/requests/{request}/resolve", json={"decision": "deny"}, headers=headers
            )
            # A repeated call gets the same answer.
            assert answer.json()["decided_now"] is True
            assert answer.json()["request"]["decided_on_id"] is None


async def question(server: Serving) -> str:
    """Return an open request of a run."""
    session = await server.session("manual")
    run = (await server.client.post("/runs", json={"session_id": session})).json()["run"]["id"]
    await server.client.post(f"/runs/{run}/transition", json={"to_status": "running"})
    answer = await server.client.post(
        f"/runs/{run}/reply-parent", json={"text": "May I?", "request_kind": "approval_request"}
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["request"]["id"])


async def test_the_cookie_is_kept_from_scripts_and_other_sites(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(ADMIN,), allowed_origins=("https://desk.example",)) as one:
        for origin, is_secure in ((one.url, False), ("https://desk.example", True)):
            answer = await claimed(one, (await invited(one))["code"], Origin=origin)
            cookie = answer.headers["Set-Cookie"]
            flags = {flag.strip().lower() for flag in cookie.split(";")[1:]}
            assert {"httponly", "samesite=strict", "path=/", "max-age=34560000"} <= flags
            assert ("secure" in flags) == is_secure
            value = cookie.partition("=")[2].partition(";")[0]
            assert value.startswith("adc_")
            assert value not in answer.text
            assert not any(flag.startswith("domain") for flag in flags)


async def test_one_secret_alone_opens_nothing(tmp_path: Path) -> None:
    async with with_browser(tmp_path) as (server, phone):
        other = await browser(server)
        origin = {"Origin": server.url}
        refused: dict[str, dict[str, str]] = {
            "the stolen cookie": phone.jar,
            "the stolen cookie, by a page": {**phone.jar, **origin},
            "the secret without the cookie": phone.header,
            "another device's cookie": {**phone.header, **other.jar},
            "another device's cookie by its name": {
                **phone.header,
                "Cookie": f"agentd_{phone.device_id}={other.cookie}",
            },
            "another id": {**phone.jar, "Agentd-Device": f"{other.device_id}.{phone.secret}"},
            "an id alone": {**phone.jar, "Agentd-Device": phone.device_id},
            "an empty secret": {**phone.jar, "Agentd-Device": f"{phone.device_id}."},
            "the secret as a token": {"Authorization": f"Bearer {phone.secret}"},
            "the cookie as a token": {"Authorization": f"Bearer {phone.cookie}"},
            "both as a token": {"Authorization": f"Bearer device {phone.cookie} {phone.secret}"},
            "a token before both": {**phone.headers(), "Authorization": "Bearer apt_x"},
        }
        for name, headers in refused.items():
            assert await status(server, headers) == 401, name
            assert await status(server, {**headers, **origin}, method="POST") == 401, name
        assert await status(server, phone.headers()) == 200


async def test_other_sites_cannot_use_a_browsers_secrets(tmp_path: Path) -> None:
    """Even a page that had the secret, with a browser that sends the cookie."""
    elsewhere = "http://127.0.0.1:1"  # the same site for cookies, but another origin
    async with with_browser(tmp_path) as (server, phone):
        for origin in (elsewhere, "https://evil.example", "null"):
            for method in ("GET", "POST"):
                headers = phone.headers(Origin=origin)
                assert await status(server, headers, method=method) == 403, origin
        for site in ("same-site", "cross-site", "none", "?"):
            headers = phone.headers(**{"Sec-Fetch-Site": site})
            assert await status(server, headers) == 403, site
        headers = phone.headers(**{"Sec-Fetch-Site": "same-origin"})
        assert await status(server, headers) == 200
        without = {**phone.header, **phone.jar}
        assert await status(server, without) == 200  # a GET of the page has no Origin
        assert await status(server, without, method="POST") == 403
        rebound = phone.headers(Host="rebound.example", Origin="http://rebound.example")
        assert await status(server, rebound) == 421
        answer = await claimed(server, (await invited(server))["code"], Origin=elsewhere)
        assert (answer.status_code, "Set-Cookie" in answer.headers) == (403, False)
        async with httpx.AsyncClient(base_url=server.url) as page:
            preflight = await page.options(
                "/sessions",
                headers={
                    "Origin": elsewhere,
                    "Access-Control-Request-Method": "GET",
                    "Access-Control-Request-Headers": "agentd-device",
                },
            )
        assert not [name for name in preflight.headers if name.startswith("access-control")]


async def test_pages_of_allowed_origins_may_not_send_a_devices_header(tmp_path: Path) -> None:
    origin = "https://app.example"
    async with serving(tmp_path, tokens=(ADMIN,), allowed_origins=(origin,)) as server:
        asked = {"Origin": origin, "Access-Control-Request-Method": "GET"}
        answer = await server.client.options("/sessions", headers=asked)
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert "agentd-device" not in answer.headers["Access-Control-Allow-Headers"].lower()
        assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_a_socket_needs_both_secrets_and_the_right_origin(tmp_path: Path) -> None:
    async with with_browser(tmp_path) as (server, phone):
        url = server.url.replace("http", "ws") + "/stream?cursor=head"
        subprotocol: Any = f"device.{phone.device_id}.{phone.secret}"

        async def opened(headers: dict[str, str], *protocols: Any) -> str | int:
            options: Any = {"subprotocols": protocols} if protocols else {}
            try:
                async with connect(url, additional_headers=headers, **options) as socket:
                    assert socket.subprotocol == (protocols[0] if protocols else None)
                    return str(await socket.recv())
            except InvalidStatus as refusal:
                return refusal.response.status_code

        page = {**phone.jar, "Origin": server.url}
        assert "caught_up" in str(await opened(page, subprotocol))
        assert "caught_up" in str(await opened({**page, **phone.header}))
        assert await opened({**page, "Origin": "https://evil.example"}, subprotocol) == 403
        rebound = {
            **phone.headers(Host="rebound.example", Origin="http://rebound.example"),
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }
        assert await status(server, rebound, "/stream") == 421
        assert await opened({"Origin": server.url}, subprotocol) == 401
        assert await opened(page, "device.tok_x.y") == 401
        # The cookie alone: the socket waits for a token like any other, and gets nothing else.
        async with connect(url, additional_headers=page) as socket:
            await socket.send('{"type": "auth", "token": "x"}')
            assert "unauthorized" in str(await socket.recv())


async def test_a_revoked_device_loses_its_streams(tmp_path: Path) -> None:
    async with with_browser(tmp_path) as (server, phone):
        url = server.url.replace("http", "ws") + "/stream?cursor=head"
        subprotocol: Any = f"device.{phone.device_id}.{phone.secret}"
        async with (
            httpx.AsyncClient(base_url=server.url, headers=phone.headers()) as page,
            page.stream("GET", "/stream?cursor=head") as stream,
            connect(
                url,
                additional_headers={**phone.jar, "Origin": server.url},
                subprotocols=[subprotocol],
            ) as socket,
        ):
            assert stream.status_code == 200
            assert "caught_up" in str(await socket.recv())
            lines = stream.aiter_lines()
            while "caught up" not in await anext(lines):
                pass
            with anyio.fail_after(60):
                revoked = await page.post(f"/devices/{phone.device_id}/revoke", json={})
                assert revoked.status_code == 200, revoked.text
                async for line in lines:
                    assert not line.startswith("data")
                with suppress(ConnectionClosed):
                    while True:
                        await socket.recv()
            assert socket.close_code == 4401
        assert await status(server, phone.headers()) == 401


async def test_an_administrator_revokes_and_others_do_not_see_a_device(tmp_path: Path) -> None:
    async with with_browser(tmp_path) as (server, phone):
        theirs = await browser(server, principal="ann")
        async with httpx.AsyncClient(base_url=server.url, headers=theirs.headers()) as page:
            [device] = (await page.get("/devices")).json()["devices"]
            assert device["id"] == theirs.device_id
            answer = await page.post(f"/devices/{phone.device_id}/revoke", json={})
            assert answer.status_code == 404
        every = (await server.client.get("/devices")).json()["devices"]
        assert [one["id"] for one in every] == [phone.device_id, theirs.device_id]
        await server.client.post(f"/tokens/{theirs.device_id}/revoke", json={})
        assert await status(server, theirs.headers()) == 401
        assert await status(server, phone.headers()) == 200


async def test_a_code_is_good_once_and_for_five_minutes(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(ADMIN,)) as server:
        first, late, gone = [await invited(server) for _ in range(3)]
        assert re.fullmatch(r"[2-9A-HJKMNP-TV-Z]{8}", first["code"])
        async with anyio.create_task_group() as tasks:
            answers: list[int] = []

            async def claim() -> None:
                answers.append((await claimed(server, first["code"])).status_code)

            for _ in range(5):
                tasks.start_soon(claim)
        assert sorted(answers) == [201, 401, 401, 401, 401]

        def age(tx: Any) -> None:
            stored = tx.token(late["device"]["id"])
            tx.put_token(type(stored)(**{**fields_of(stored), "expires_at": stored.created_at}))

        await server.store.transact(age)
        assert (await claimed(server, late["code"])).status_code == 401
        await server.client.post(f"/tokens/{gone['device']['id']}/revoke", json={})
        assert (await claimed(server, gone["code"])).status_code == 401
        # A new invitation removes expired ones.
        await invited(server)
        assert await server.store.read(lambda view: view.token(late["device"]["id"])) is None


def content_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def fields_of(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in value.__attrs_attrs__}


async def test_a_guesser_is_locked_out(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(ADMIN,)) as server:
        code = (await invited(server))["code"]
        guesses = [await claimed(server, f"AAAAAA{n:02}") for n in range(ATTEMPTS)]
        assert {one.status_code for one in guesses} == {401}
        answer = await claimed(server, code)
        assert answer.status_code == 429
        assert 0 < int(answer.headers["Retry-After"]) <= 60


async def test_an_invitation_is_no_token_and_only_hashes_are_stored(tmp_path: Path) -> None:
    async with with_browser(tmp_path) as (server, phone):
        made = await invited(server)
        for value in (made["code"], code_hash(made["code"])):
            assert await status(server, {"Authorization": f"Bearer {value}"}) == 401
        assert await server.engine.holder(code_hash(made["code"])) is None
        listed = (await server.client.get("/tokens")).text
        stored = content_of(tmp_path)
        for secret in (phone.secret, phone.cookie, made["code"]):
            assert secret not in listed
            assert secret.encode() not in stored


async def test_without_tokens_a_page_of_this_machine_needs_no_device(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert await status(server, {"Origin": server.url}) == 200
        assert await status(server, {"Origin": server.url}, method="POST") == 201
        assert await status(server, {"Origin": "https://evil.example"}) == 403
        phone = await browser(server)
        # From now on the page needs a device, as every caller needs a token.
        assert await status(server, {"Origin": server.url}) == 401
        assert await status(server, phone.headers()) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "desk.example"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-Host": "127.0.0.1"},
        {"X-Forwarded-Proto": "https"},
        {"x-real-ip": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
    ],
)
async def test_who_comes_through_a_proxy_is_not_the_local_user(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    async with serving(tmp_path, allowed_hosts=("desk.example",)) as server:
        assert await status(server, {}) == 200
        for method in ("GET", "POST"):
            assert await status(server, headers, method=method) == 401
        assert await status(server, headers, "/devices", method="POST") == 401
        host, _, port = server.url.partition("://")[2].partition(":")
        rest = dict(headers)
        # A WebSocket's Host is that of its URL.
        name = rest.pop("Host", host)
        url = f"ws://{name}:{port}/stream?cursor=head"
        async with connect(url, additional_headers=rest, host=host, port=int(port)) as socket:
            await socket.send('{"type": "auth", "token": "x"}')
            assert "unauthorized" in str(await socket.recv())
        # The same connection may carry the requests of several callers.
        async with httpx.AsyncClient(base_url=server.url) as client:
            for sent, expected in ((headers, 401), ({}, 200), (headers, 401)):
                assert (await client.get("/sessions", headers=sent)).status_code == expected
        phone = await browser(server)
        # A page that the proxy names otherwise is one of another origin.
        expected = 403 if "Host" in headers else 200
        assert await status(server, {**phone.headers(), **headers}) == expected


async def test_the_cookie_goes_only_below_the_path_of_the_page(tmp_path: Path) -> None:
    async with serving(tmp_path, tokens=(ADMIN,), base_path="/my/agents") as server:
        for base, path in (("/my/agents", "/my/agents/"), ("", "/")):
            code = (await server.client.post("/devices", json={})).json()["code"]
            async with httpx.AsyncClient(base_url=server.url) as stranger:
                answer = await stranger.post(f"{base}/devices/claim", json={"code": code})
            assert answer.status_code == 201, answer.text
            assert f"Path={path};" in answer.headers["Set-Cookie"] + ";"


async def test_reading_a_stream_needs_the_header(tmp_path: Path) -> None:
    """EventSource cannot send headers: a page reads streams with fetch."""
    async with with_browser(tmp_path) as (server, phone):
        await server.session()
        async with (
            httpx.AsyncClient(base_url=server.url) as page,
            page.stream("GET", "/stream", headers=phone.jar) as refused,
        ):
            assert refused.status_code == 401
        async with sse_reader(
            server.client, "/stream", headers={**phone.jar, **phone.header}
        ) as frames:
            assert (await anext(frames)).event == "session.created"
