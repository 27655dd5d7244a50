"""The page behind a real nginx with TLS: below a path, with buffering, and as `tailscale serve` would; and TLS of agentd."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from attrs import frozen
from certificates import Certificate, make_certificate
from chromium import ARGUMENTS, page_browser
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from daemons import Daemon, daemon_at
from nginx import program, proxy
from playwright.sync_api import Browser, Page, expect, sync_playwright
from ports import free_port
from visits import Visit, settled

NAME: Final = "desk.localhost"
"""The proxy's name, which is not one of the daemon's own. Browsers resolve it to loopback."""


@frozen
class Place:
    """How a proxy passes the page on.

    :param path: the path at which people open the page.
    :param arguments: of the daemon.
    :param location: of nginx; ``PORT`` is the daemon's.
    """

    path: str
    arguments: tuple[str, ...]
    location: str


PLACES: Final = {
    "path removed": Place(
        "/agents/", (), "location /agents/ { proxy_pass http://127.0.0.1:PORT/; }"
    ),
    "path kept": Place(
        "/my/agents/",
        ("--base-path", "/my/agents"),
        "location /my/agents/ { proxy_pass http://127.0.0.1:PORT; }",
    ),
    # The headers of `tailscale serve` and its `httputil.ReverseProxy`: Host stays that of the browser.
    "tailscale serve": Place(
        "/",
        (),
        """location / {
            proxy_pass http://127.0.0.1:PORT;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Proto https;
            proxy_set_header Tailscale-User-Login ann@example.com;
            proxy_set_header Tailscale-User-Name Ann;
            proxy_set_header Tailscale-Headers-Info https://tailscale.com/s/serve-headers;
        }""",
    ),
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"), NAME, "127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def browser(certificate: Certificate) -> Iterator[Browser]:
    """A browser that trusts the certificate. It runs no service worker from a server that it does not trust."""
    running = page_browser()
    key = x509.load_pem_x509_certificate(Path(certificate.cert).read_bytes()).public_key()
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    trusted = base64.b64encode(hashlib.sha256(encoded).digest()).decode()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=running,
            args=[*ARGUMENTS, f"--ignore-certificate-errors-spki-list={trusted}"],
        )
        yield launched
        launched.close()


def asking(daemon: Daemon, title: str) -> dict[str, Any]:
    script = [["ask", {"text": f"{title}?", "kind": "approval_request"}], ["end", f"{title} done"]]
    return daemon.question(daemon.begin(script, title=title))


def let_in(daemon: Daemon, visit: Visit, page_url: str) -> Page:
    """Let a phone in by the address that its QR code would have."""
    admin = daemon.post("/tokens", name="boss", scopes=["admin"])["secret"]
    daemon.client.headers["Authorization"] = f"Bearer {admin}"
    code = daemon.post("/devices", name="phone")["code"]
    page = visit.open(f"{page_url}#device={code}")
    expect(page.locator("[data-screen=inbox]")).to_contain_text("Nothing waits for you")
    return settled(page)


SOCKET: Final = """(path) => new Promise((resolve) => {
  const socket = new WebSocket(new URL(path, document.baseURI).href.replace(/^http/, "ws"),
    [`device.${localStorage["agentd.device"]}`]);
  socket.onmessage = ({ data }) => { resolve(data); socket.close(); };
  socket.onclose = ({ code }) => resolve(`closed ${code}`);
})"""


def check_page(daemon: Daemon, page: Page, url: str) -> None:
    """Check what a proxy could break: the cookie, both kinds of stream, changes, and the worker."""
    [cookie] = page.context.cookies()
    assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Strict")
    # A request appears at once: nothing holds the stream back.
    request = asking(daemon, "Through the proxy")
    card = page.locator(f"article[data-request={request['id']}]")
    expect(card).to_contain_text("Through the proxy?")
    card.get_by_role("button", name="Approve once", exact=True).click()
    expect(page.get_by_text("Approved by boss, here")).to_be_visible()
    assert "caught_up" in page.evaluate(SOCKET, "stream?cursor=head")
    page.goto(f"{url}#/s/{request['session_id']}")
    expect(page.locator(".story")).to_contain_text("Through the proxy done")
    # A link of a notice.
    page.goto(f"{url}r/{request['id']}")
    expect(page).to_have_url(f"{url}#/r/{request['id']}")
    expect(page.locator(".closed-request")).to_contain_text("Approved by boss, here")
    # The page opens without the network.
    assert page.evaluate("navigator.serviceWorker.ready.then((one) => one.scope)") == url
    page.context.set_offline(True)
    page.goto(f"{url}#/inbox")
    page.reload()
    expect(page.locator("[data-screen=inbox]")).to_be_visible()
    page.context.set_offline(False)
    again = asking(daemon, "Again")
    expect(page.locator(f"article[data-request={again['id']}]")).to_be_visible()


@pytest.mark.parametrize("name", PLACES)
def test_page_works_behind_nginx(
    name: str, tmp_path: Path, certificate: Certificate, visit: Visit
) -> None:
    program()
    place, port = PLACES[name], free_port()
    origin = f"https://{NAME}:{port}"
    allowed = ("--allowed-host", NAME, "--allowed-origin", origin)
    with daemon_at(tmp_path, *place.arguments, *allowed) as daemon:
        location = place.location.replace("PORT", daemon.url.rpartition(":")[2])
        with proxy(tmp_path / "nginx", certificate, location, port):
            url = f"{origin}{place.path}"
            with httpx.Client(
                base_url=f"https://127.0.0.1:{port}{place.path}",
                verify=False,
                headers={"Host": f"{NAME}:{port}"},
            ) as stranger:
                # No token exists yet. Who comes through a proxy is not the local user, whatever it looks like.
                assert stranger.get("sessions").status_code == 401
                assert stranger.post("devices", json={}).status_code == 401
                assert stranger.get("health").status_code == 200
                wrong = stranger.get("health", headers={"Host": "other.example"})
                assert wrong.status_code == 421
            page = let_in(daemon, visit, url)
            [cookie] = page.context.cookies()
            assert cookie["path"] == ("/my/agents/" if name == "path kept" else "/")
            check_page(daemon, page, url)
            # Another site's page may neither read nor change anything, though the proxy adds its headers.
            forged = {
                "Cookie": f"{cookie['name']}={cookie['value']}",
                "Agentd-Device": page.evaluate("localStorage['agentd.device']"),
                "Host": f"{NAME}:{port}",
                "Origin": "https://evil.example",
            }
            with httpx.Client(
                base_url=f"https://127.0.0.1:{port}{place.path}", verify=False
            ) as site:
                assert site.get("sessions", headers=forged).status_code == 403
                del forged["Origin"]
                assert site.get("sessions", headers=forged).status_code == 200
                assert site.post("sessions", json={}, headers=forged).status_code == 403


def test_page_of_an_origin_that_is_not_allowed_is_refused(
    tmp_path: Path, certificate: Certificate, visit: Visit
) -> None:
    """Who forgets ``--allowed-origin`` is told what to add."""
    program()
    port = free_port()
    with daemon_at(tmp_path, "--allowed-host", NAME) as daemon:
        location = PLACES["tailscale serve"].location
        location = location.replace("PORT", daemon.url.rpartition(":")[2])
        with proxy(tmp_path / "nginx", certificate, location, port):
            code = daemon.post("/devices", name="phone")["code"]
            page = visit.open(f"https://{NAME}:{port}/#device={code}")
            expect(page.get_by_role("alert")).to_contain_text("origin")


def test_page_works_with_tls_of_the_daemon(
    tmp_path: Path, certificate: Certificate, visit: Visit
) -> None:
    with daemon_at(tmp_path, *certificate.options, verify=certificate.authority) as daemon:
        assert daemon.url.startswith("https://127.0.0.1:")
        url = f"{daemon.url}/"
        check_page(daemon, let_in(daemon, visit, url), url)


def test_page_survives_the_daemon_behind_its_proxy(
    tmp_path: Path, certificate: Certificate, visit: Visit
) -> None:
    """The proxy answers 502 while the daemon is away. The page shows that it is, and goes on afterwards."""
    program()
    port, inner = free_port(), free_port()
    origin = f"https://{NAME}:{port}"
    arguments = ("--port", str(inner), "--allowed-host", NAME, "--allowed-origin", origin)
    location = PLACES["path removed"].location.replace("PORT", str(inner))
    with proxy(tmp_path / "nginx", certificate, location, port):
        with daemon_at(tmp_path, *arguments) as daemon:
            page = let_in(daemon, visit, f"{origin}/agents/")
            token = daemon.client.headers["Authorization"]
        expect(page.locator(".offline")).to_be_visible()
        with daemon_at(tmp_path, *arguments) as daemon:
            daemon.client.headers["Authorization"] = token
            request = asking(daemon, "After")
            expect(page.locator(f"article[data-request={request['id']}]")).to_be_visible()
            expect(page.locator(".offline")).to_have_count(0)
