"""The page's files: how they are served, how large they are, and where the libraries come from."""

import gzip
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
import vendor
from serving import ADMIN, Serving, serving

from agentd.settings import FlagError, load
from agentd.web.files import STATIC, page_files
from agentd.web.routes import HEADERS, headers_of

pytestmark = pytest.mark.anyio

FIRST_LOAD = 100_000
"""Maximum compressed bytes of the first visit."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path) as running:
        yield running


FIRST = ("app/begin.js", "app/main.js")
"""What the index begins with: what reads, then what draws."""

SOON = ("app/session.js",)
"""What most visits show next, so that it is loaded with the rest, but nothing waits for it."""

AT_ONCE = r"(?:\bfrom\s*|^import\s*)"
LATER = r"\bimport\("


def imported_by(name: str, how: str) -> set[str]:
    """Return the files that a module imports, by their paths."""
    text = re.sub(r"@import .*", "", page_files()[name].content.decode())  # of types
    found = re.findall(rf"""(?:{how})["'](\.{{1,2}}/[^"']+)["']""", text, re.MULTILINE)
    return {urljoin(f"http://page/{name}", one).removeprefix("http://page/") for one in found}


def reached(how: str, *first: str) -> set[str]:
    """Return the modules that are imported in this way, from the first ones on."""
    found, pending = set(), set(first or FIRST)
    while pending:
        name = pending.pop()
        found.add(name)
        pending |= imported_by(name, how) - found
    return found


def test_modules_import_files_that_there_are_and_all_are_imported() -> None:
    modules = {name for name in page_files() if name.endswith((".js", ".mjs")) and name != "sw.js"}
    # types.js has the types of the API and no code.
    assert reached(f"{AT_ONCE}|{LATER}") | {"app/types.js"} == modules


def test_index_names_the_modules_of_a_first_visit_so_that_none_is_found_late() -> None:
    text = (STATIC / "index.html").read_text()
    named = set(re.findall(r'<link rel="modulepreload" href="web/([^"]+)"', text))
    assert named == reached(AT_ONCE, *FIRST, *SOON) - set(FIRST)
    # What the first needs comes before the second.
    before = text.partition("app/main.js")[0]
    assert all(f'"web/{name}"' in before for name in reached(AT_ONCE, FIRST[0]))
    for name in SOON:
        assert name in reached(f"{AT_ONCE}|{LATER}") - reached(AT_ONCE)


def test_first_visit_is_small() -> None:
    names = [
        "index.html",
        "app.css",
        "icon.svg",
        *reached(AT_ONCE, *FIRST, *SOON),
    ]
    size = sum(len(page_files()[name].compressed) for name in names)
    assert size < FIRST_LOAD, f"{size:,} bytes"


def test_index_has_no_code_and_no_style_of_its_own() -> None:
    text = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    assert "://" not in text


def test_page_names_no_other_server() -> None:
    for path in (*(STATIC / "app").glob("*.js"), STATIC / "app.css", STATIC / "sw.js"):
        found = re.findall(r"(?<![\w])https?://[\w.-]+", path.read_text())
        assert not found, (path.name, found)


def test_libraries_are_those_of_the_index() -> None:
    index = json.loads(vendor.INDEX.read_text())
    files = {path.name for path in vendor.VENDOR.glob("*.mjs") if not path.name.endswith(".d.mts")}
    assert files == set(index)
    for name, entry in index.items():
        assert vendor.digest((vendor.VENDOR / name).read_text()) == entry["sha256"], name


def test_libraries_are_those_of_the_packages() -> None:
    if not vendor.PACKAGES.exists():
        pytest.skip("the packages are not there: run `bin/setup web`")
    made = vendor.made()
    assert {path.name for path in vendor.VENDOR.iterdir()} == set(made)
    for name, content in made.items():
        assert (vendor.VENDOR / name).read_text() == content, (
            f"{name}: tests/web/vendor.py writes it"
        )


async def test_page_needs_no_token_and_holds_no_data(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, tokens=(ADMIN,)) as server,
        httpx.AsyncClient(base_url=server.url) as stranger,
    ):
        page = await stranger.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        for name in page_files():
            path = "/" if name == "index.html" else f"/{name}" if name in ROOT else f"/web/{name}"
            answer = await stranger.get(path)
            assert answer.status_code == 200, path
            assert answer.content == page_files()[name].content
            for header, value in headers_of(name).items():
                assert answer.headers[header] == value, (path, header)
        assert (await stranger.get("/sessions")).status_code == 401


def test_whatever_can_be_a_document_or_a_worker_has_the_policy() -> None:
    for name in page_files():
        is_part = name.endswith((".js", ".mjs", ".css")) and name != "sw.js"
        assert (headers_of(name) == HEADERS) == (not is_part), name
        assert headers_of(name)["X-Content-Type-Options"] == "nosniff"


ROOT = ("sw.js", "manifest.webmanifest")
"""The files that have to be beside the page."""


async def test_unchanged_file_is_not_sent_again(server: Serving) -> None:
    answer = await server.client.get("/web/app/main.js", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) == len(page_files()["app/main.js"].compressed)
    etag = answer.headers["etag"]
    again = await server.client.get("/web/app/main.js", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == etag
    plain = await server.client.get("/web/app/main.js", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == gzip.decompress(page_files()["app/main.js"].compressed)
    head = await server.client.head("/")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/web/",
        "/web/app",
        "/web/../app.py",
        "/web/%2e%2e/files.py",
        "/web//etc/passwd",
        "/web/index.html/",
        "/r/",
        "/r/a%0d%0ab",
        "/r/a.b",
        "/index",
    ],
)
async def test_other_paths_are_unknown(server: Serving, path: str) -> None:
    request = server.client.build_request("GET", server.url)
    request.url = request.url.copy_with(raw_path=path.encode())
    answer = await server.client.send(request)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


async def test_deep_link_leads_to_the_request(server: Serving) -> None:
    answer = await server.client.get("/r/req_1")
    assert answer.status_code == 302
    assert (
        urljoin(f"{server.url}/below/r/req_1", answer.headers["location"])
        == f"{server.url}/below/#/r/req_1"
    )


async def test_worker_has_the_version_and_all_files(server: Serving) -> None:
    text = (await server.client.get("/sw.js")).text
    version, files = text.split("\n", 2)[:2]
    assert re.fullmatch(r'const VERSION = "[0-9a-f]{20}";', version)
    named = json.loads(files.removeprefix("const FILES = ").rstrip(";"))
    assert set(named) == set(page_files()) - {"sw.js", "vendor/LICENCES.txt"}


async def test_base_path_is_optional_for_the_proxy(tmp_path: Path) -> None:
    async with serving(tmp_path, base_path="/my/agents") as server:
        for base in ("", "/my/agents"):
            assert (await server.client.get(f"{base}/")).text.startswith("<!doctype html>")
            assert (await server.client.get(f"{base}/health")).status_code == 200
            assert (await server.client.get(f"{base}/web/app.css")).status_code == 200
            created = await server.client.post(f"{base}/sessions", json={})
            assert created.status_code == 201
        without = await server.client.get("/my/agents")
        assert without.status_code == 308
        assert (
            urljoin(f"{server.url}/my/agents", without.headers["location"])
            == f"{server.url}/my/agents/"
        )
        for path in (
            "/my/agentsx/health",
            "/my/health",
            "/my/agents//health",
            "/my/agents/my/agents/health",
        ):
            assert (await server.client.get(path)).status_code == 404, path


@pytest.mark.parametrize("value", ["agents", "/agents/", "/", "/a b", "//a", "/a/../b", "/a?b"])
def test_base_path_that_cannot_work_is_refused(value: str) -> None:
    with pytest.raises(FlagError, match="--base-path"):
        load({"base_path": value}, {})
