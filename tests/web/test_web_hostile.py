"""A hostile agent: what it says is text in the page, in every field that is shown."""

import json
from collections.abc import Iterator

import pytest
from daemons import Daemon
from playwright.sync_api import Page, expect
from visits import Phone, Visit

PAYLOADS = (
    "<script>window.owned = 1</script>",
    "<img src=x onerror='window.owned = 1'>",
    '"><svg onload="window.owned = 1">',
    "<iframe srcdoc='<script>parent.owned = 1</script>'></iframe>",
    "<style>* { display: none }</style><base href='https://evil.example/'>",
    "<a href='javascript:window.owned = 1'>press</a><form action='https://evil.example'><button>press</button></form>",
    "[press](javascript:window.owned%20=%201) [press](  JaVaScRiPt:window.owned=1) <javascript:window.owned=1>",
    "[press](data:text/html,<script>window.opener.owned=1</script>) [x](vbscript:x) [x](file:///etc/passwd)",
    "![pixel](https://evil.example/pixel.png) ![x](//evil.example/p.png 'onload=window.owned=1')",
    "[https://bank.example](https://evil.example/login) [hi][1]\n\n[1]: javascript:window.owned=1 'title'",
    "&lt;img src=x onerror=window.owned=1&gt; &#60;script&#62;window.owned=1&#60;/script&#62;",
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m\x9b31m \x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "rm -rf / #\u202e \u2066ecafrus\u2069 sl\u200b\u00ad harmless \U000e0041",
    "${7*7} {{constructor.constructor('window.owned=1')()}} </textarea></title></pre><script>window.owned=1</script>",
    "`code <b>` ```html\n<script>window.owned=1</script>\n```\n\n    <script>window.owned=1</script>",
    "| <img src=x onerror=window.owned=1> | b |\n|---|---|\n| [a](javascript:1) | <b>b</b> |\n\n> > > > # h\n\n"
    + "> " * 60
    + "deep",
    "*" * 300 + "[" * 300 + "`" * 99 + "_" * 300 + "(" * 300,
    "\U0001f600 Zoë \U0001f468\u200d\U0001f469\u200d\U0001f467 \u0300\u0301\u0302 "
    + "a\u0336" * 40,
    "[press](java\tscript:window.owned=1) [press](java&#9;script:window.owned=1) [press](\x01javascript:window.owned=1)",
    "<https://bank.example@evil.example/a> [mail](mailto:a@evil.example?subject=%0d%0aBcc:x&body=<b>) [x](//evil.example/b)",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=window.owned=1> <!--><script>window.owned=1</script>",
    "constructor __proto__ toString \u2028 \u2029 \x00 ]]> %3Cscript%3E {{{{ <!-- -->",
    "<marquee><details open ontoggle=window.owned=1><video src=x onerror=window.owned=1><object data=x><embed src=x>",
    "a" * 1500,
)

ALL = "\n\n".join(PAYLOADS)

FORBIDDEN = (
    "script",
    "iframe",
    "object",
    "embed",
    "img",
    "base",
    "style",
    "form[action]",
    "[onerror]",
    "[onload]",
    "[srcdoc]",
    "link:not([rel])",
)
"""Elements that nothing of the page itself has in its body."""


def script(daemon: Daemon) -> list[list[object]]:
    started = {
        "tool_id": "t",
        "kind": "function",
        "name": ALL,
        "input": {"path": ALL, ALL[:60]: ALL},
    }
    command = {"tool_id": "c", "kind": "command", "name": "shell", "input": {"command": ALL}}
    changes = [
        {"path": ALL, "kind": "update", "diff": f"@@ -1 +1 @@\n-{ALL}\n+{ALL}\n"},
        {"path": "x", "kind": ALL[:50], "diff": ALL},
    ]
    return [
        ["emit", "agent.reasoning", {"text": ALL}],
        ["emit", "agent.message.delta", {"text": ALL, "item_id": "m"}],
        *(["emit", "agent.message", {"text": payload}] for payload in PAYLOADS),
        ["emit", "subagent.message", {"text": ALL, "parent_tool_id": ALL[:40]}],
        ["emit", "tool.started", started],
        ["emit", "tool.output", {"tool_id": "t", "text": ALL}],
        ["emit", "tool.completed", {**started, "status": "failed", "output": ALL, "error": ALL, "exit_code": 3}],
        ["emit", "tool.started", command],
        ["emit", "tool.completed", {**command, "status": "completed", "output": "", "result": {"a": ALL}}],
        ["emit", "file.changed", {"tool_id": "f", "status": "completed", "changes": changes}],
        ["emit", "plan.updated", {"steps": [{"text": ALL, "status": "pending"}, {"text": ALL, "status": "completed"}]}],
        ["emit", "run.error", {"message": ALL, "code": "rate_limited"}],
        ["emit", "backend.event", {"kind": ALL[:40], "payload": {"a": ALL}}],
        *(["ask", request] for request in requests(daemon)),
        ["fail", "provider_error", ALL],
    ]  # fmt: skip


def requests(daemon: Daemon) -> Iterator[dict[str, object]]:
    options = [
        {"id": "once", "label": ALL[:900], "kind": "allow_once"},
        {"id": "always", "label": ALL[:800], "kind": "allow_always", "reaches": ALL[:900]},
        {"id": "no", "label": ALL[:700], "kind": "deny"},
    ]
    yield {
        "text": ALL,
        "kind": "approval_request",
        "detail": {"type": "command", "command": ALL, "cwd": ALL[:900], "reason": ALL},
        "options": options,
    }
    yield {
        "text": ALL,
        "kind": "permission_request",
        "detail": {
            "type": "permission",
            "permissions": {ALL[:50]: ALL},
            "reason": ALL,
            "agent": {"x": ALL},
            "cut": [ALL[:40]],
        },
    }
    yield {
        "text": ALL,
        "kind": "approval_request",
        "detail": {"type": "tool", "name": ALL, "server": ALL, "input": {"a": ALL}},
    }
    yield {
        "text": ALL,
        "kind": "approval_request",
        "detail": {
            "type": "file_change",
            "changes": [{"path": ALL, "kind": "update", "diff": ALL}, 7, {"path": 7}],
            "reason": 7,
        },
    }
    yield {
        "text": ALL,
        "kind": "input_request",
        "detail": {
            "type": "question",
            "questions": [
                {
                    "id": ALL[:30],
                    "text": ALL,
                    "choices": [{"label": ALL, "description": ALL}],
                    "multiple": True,
                    "free_text": True,
                },
                7,
                {"id": None, "choices": 7},
            ],
        },
    }
    yield {"text": ALL, "kind": "approval_request", "detail": {"type": "plan", "text": ALL}}
    yield {
        "text": ALL,
        "kind": "input_request",
        "options": [ALL[:900], "plain"],
        "detail": {ALL[:40]: ALL, "type": 7},
    }


def expect_harmless(page: Page) -> None:
    for selector in FORBIDDEN:
        assert (
            page.evaluate("(selector) => document.body.querySelectorAll(selector).length", selector)
            == 0
        ), selector
    hrefs = page.evaluate("[...document.querySelectorAll('a')].map((one) => one.protocol)")
    assert set(hrefs) <= {"http:", "https:", "mailto:"}
    assert page.evaluate("window.owned") is None
    text = page.evaluate("document.body.innerText")
    for character in "\x1b\x9b\x07\u202e\u2066":
        assert character not in text
    # The page is still there, and not as wide as a line of the agent.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # On a phone a session has the whole screen.
    if "/s/" not in page.url:
        expect(page.get_by_role("navigation", name="Main")).to_be_visible()


@pytest.fixture(scope="module")
def hostile(shared: Daemon) -> tuple[str, str]:
    """The session of a hostile agent, and one whose title, directory and text are hostile too."""
    session = shared.begin_long(script(shared), title=ALL[:250], text=ALL)
    for _ in requests(shared):
        request = shared.question(session)
        shared.post(f"/sessions/{session}/spawn", task=ALL, title=ALL[:250], provider="claude")
        open_before = request["id"]
        if request["kind"] == "input_request":
            shared.post(f"/requests/{open_before}/resolve", decision="answer", text=ALL)
        else:
            shared.post(f"/requests/{open_before}/resolve", decision="deny", text=ALL)
    shared.wait_idle(session)
    run = shared.get("/runs", session_id=session)["runs"][0]["id"]
    return session, run


def test_story_of_a_hostile_agent_is_text(
    shared: Daemon, visit: Visit, hostile: tuple[str, str]
) -> None:
    session, run = hostile
    fetched: list[str] = []
    page = visit.open("about:blank")
    page.context.on("request", lambda request: fetched.append(request.url))
    page.goto(f"{shared.url}/#/s/{session}")
    expect(page.locator(".story .end")).to_be_visible()
    # Everything that is folded is opened.
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    page.evaluate("document.querySelectorAll('.tool-head').forEach((one) => one.click())")
    expect_harmless(page)
    shown = page.locator(".story").inner_text()
    for literal in (
        "<script>window.owned = 1</script>",
        "<img src=x onerror='window.owned = 1'>",
        "⟦U+202E⟧",
        "⟦U+200B⟧",
    ):
        assert literal in shown, literal
    hosts = page.evaluate(
        "[...document.querySelectorAll('.story a[href*=\"evil.example\"]')].map((one) => one.nextElementSibling?.innerText ?? one.innerText)"
    )
    assert hosts
    assert all("evil.example" in text for text in hosts)
    for path in (
        f"/s/{session}/details",
        f"/run/{run}",
        "/sessions",
        "/audit",
        "/status",
        "/inbox",
    ):
        page.evaluate("path => (location.hash = path)", path)
        page.wait_for_timeout(150)
        expect_harmless(page)
    assert all(url.startswith((shared.url, "about:")) for url in fetched), fetched


def test_requests_of_a_hostile_agent_are_text_and_can_be_denied(
    shared: Daemon, phone: Phone
) -> None:
    page = phone.at("/inbox")
    for index, request in enumerate(requests(shared)):
        session = shared.begin_long([["ask", request], ["end", "ok"]], title=ALL[:250], text=ALL)
        asked = shared.question(session)["id"]
        page.evaluate("path => (location.hash = path)", f"/r/{asked}")
        card = page.locator(f".card[data-request={asked}]")
        expect(card).to_be_visible()
        card.get_by_role("button", name="More options").click()
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        expect_harmless(page)
        refuse = "Don't answer" if request["kind"] == "input_request" else "Deny"
        card.get_by_role("button", name=refuse, exact=True).click()
        expect(card).to_have_count(0)
        assert shared.get(f"/requests/{asked}")["request"]["status"] == "denied", index


NAMES = ("constructor", "__proto__", "toString", "hasOwnProperty", "valueOf")
"""Names that every object of JavaScript has."""


def test_names_that_objects_have_are_names_like_others(shared: Daemon, phone: Phone) -> None:
    page = phone.at("/inbox")
    for name in NAMES:
        started = {"tool_id": name, "kind": name, "name": name, "input": {name: name}}
        questions = [
            {
                "id": other,
                "text": f"about {other}",
                "choices": [{"label": other, "description": other}],
                "multiple": other == "valueOf",
                "free_text": True,
            }
            for other in NAMES
        ]
        steps = [
            ["emit", "tool.started", started],
            ["emit", "tool.completed", {**started, "status": name, "output": name}],
            ["emit", "plan.updated", {"steps": [{"text": name, "status": name}]}],
            ["emit", "file.changed", {"tool_id": "f", "status": name, "changes": [{"path": name, "kind": name, "diff": name}]}],
            ["emit", "agent.message", {"text": f"say `{name}` &{name};", "item_id": name}],
            ["ask", {"text": f"May `{name}`?", "kind": "approval_request", "detail": {"type": name, name: name}}],
            ["ask", {"text": f"Which {name}?", "kind": "input_request", "detail": {"type": "question", "questions": questions}}],
            ["end", name],
        ]  # fmt: skip
        session = shared.begin_long(steps, title=name, text=name)
        first = shared.question(session)["id"]
        page.evaluate("path => (location.hash = path)", f"/s/{session}")
        asked = page.locator(f".story .card[data-request={first}]")
        expect(asked).to_contain_text(f"May `{name}`?")
        expect(page.locator(".story")).to_contain_text(f"say {name}")
        expect(page.get_by_text("This part cannot be shown")).to_have_count(0)
        asked.get_by_role("button", name="Approve once", exact=True).click()
        expect(asked).to_have_count(0)
        second = shared.question(session)["id"]
        page.evaluate("path => (location.hash = path)", f"/r/{second}")
        form = page.locator(f".card[data-request={second}]")
        for other in NAMES[:-1]:
            form.locator("fieldset", has_text=f"about {other}").get_by_label("Other").fill("x")
        form.get_by_label("valueOf").check()
        form.get_by_role("button", name="Send", exact=True).click()
        expect(form).to_have_count(0)
        answer = shared.get(f"/requests/{second}")["request"]["answer"]
        assert json.loads(answer) == {**dict.fromkeys(NAMES, "x"), "valueOf": "valueOf"}
        page.evaluate("path => (location.hash = path)", f"/{name}")
        expect(page.locator("[data-screen=inbox]")).to_be_visible()


def test_names_and_numbers_of_strangers_are_text(daemon: Daemon, visit: Visit) -> None:
    """Names of devices, and numbers that no agent can have used."""
    session = daemon.begin(
        [["usage", {"input_tokens": 2**53 - 1, "output_tokens": 2**53 - 1, "cost_usd": 1e15}], ["end", "x"]],
        title="Dear",
    )  # fmt: skip
    daemon.wait_idle(session)
    page = visit.open(f"{daemon.url}/#/devices")
    page.get_by_role("button", name="Let another device in").click()
    expect(page.locator(".invitation")).to_be_visible()
    names = [payload[:60] for payload in PAYLOADS if payload.isprintable()]
    for name in names:
        code = page.evaluate(
            """async (name) => {
              const { change } = await import("./web/app/api.js");
              return (await change("POST", "devices", { name })).code;
            }""",
            name,
        )
        claimed = daemon.client.post("/devices/claim", json={"code": code, "name": name})
        assert claimed.status_code < 300, claimed.text
    page.reload()
    expect(page.locator(".device")).to_have_count(len(names) + 1)
    expect_harmless(page)
    shown = page.locator("[data-screen=devices]").inner_text()
    assert "<script>window.owned = 1</script>" in shown
    for path in (f"/s/{session}", f"/s/{session}/details", "/sessions", "/audit"):
        page.evaluate("path => (location.hash = path)", path)
        expect(page.locator("[data-screen]").first).to_be_visible()
        page.wait_for_timeout(150)
        expect_harmless(page)


def test_other_sites_get_nothing(shared: Daemon, visit: Visit) -> None:
    """A page of another site cannot frame the page, call the API or read an answer."""
    session = shared.begin([["end", "secret"]], title="secret")
    context = visit.device()
    context.route(
        "https://evil.example/**",
        lambda route: route.fulfill(content_type="text/html", body="<h1>evil</h1>"),
    )
    page = context.new_page()
    page.goto("https://evil.example/")
    results = page.evaluate(
        """async ([url, session]) => {
          const tried = {};
          const attempt = async (name, options) => {
            try { tried[name] = (await fetch(url + name, options)).type } catch { tried[name] = "failed" }
          };
          await attempt("/sessions", {});
          await attempt("/sessions", { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" });
          await attempt(`/sessions/${session}/messages`, { method: "POST", mode: "no-cors", body: JSON.stringify({ text: "evil" }) });
          const frame = document.createElement("iframe");
          frame.src = url + "/";
          document.body.append(frame);
          await new Promise((resolve) => (frame.onload = resolve, setTimeout(resolve, 3000)));
          try { tried.frame = frame.contentDocument === null ? "closed" : "open" } catch { tried.frame = "closed" }
          return tried;
        }""",
        [shared.url, session],
    )
    assert results["/sessions"] == "failed"
    assert results["frame"] == "closed"
    assert [one["text"] for one in shared.get(f"/sessions/{session}/messages")["messages"]] == [
        "Begin"
    ]
    framed = [frame for frame in page.frames if frame.parent_frame]
    assert not any("Inbox" in frame.evaluate("document.body?.innerText ?? ''") for frame in framed)


def test_page_of_another_port_gets_nothing_with_the_devices_cookie(
    daemon: Daemon, visit: Visit
) -> None:
    """All ports of a host are one site: the browser sends the device's cookie with each of these calls."""
    admin = daemon.post("/tokens", name="boss", scopes=["admin"])["secret"]
    daemon.client.headers["Authorization"] = f"Bearer {admin}"
    code = daemon.post("/devices", name="phone")["code"]
    context = visit.device()
    context.route(
        "http://127.0.0.1:9/**",
        lambda route: route.fulfill(content_type="text/html", body="<h1>neighbour</h1>"),
    )
    own = context.new_page()
    visit.pages.append(own)
    own.goto(f"{daemon.url}/#device={code}")
    expect(own.locator("[data-screen=inbox]")).to_contain_text("Nothing waits for you")
    device = own.evaluate("localStorage['agentd.device']").partition(".")[0]
    page = context.new_page()
    page.goto("http://127.0.0.1:9/")
    tried = page.evaluate(
        """async ([url, device]) => {
          const tried = {};
          const attempt = async (name, path, options) => {
            try { tried[name] = (await fetch(url + path, { credentials: "include", ...options })).type } catch { tried[name] = "failed" }
          };
          await attempt("read", "/sessions", {});
          await attempt("stream", "/stream?cursor=head", {});
          await attempt("change", "/sessions", { method: "POST", mode: "no-cors", body: "{}" });
          await attempt("header", "/sessions", { headers: { "Agentd-Device": device + ".x" } });
          const socket = (protocols) => new Promise((resolve) => {
            const one = new WebSocket(url.replace("http", "ws") + "/stream?cursor=head", protocols);
            one.onmessage = () => resolve("read");
            one.onclose = () => resolve("closed");
          });
          tried.socket = await socket([]);
          tried.device = await socket([`device.${device}.x`]);
          tried.events = await new Promise((resolve) => {
            const source = new EventSource(url + "/stream?cursor=head", { withCredentials: true });
            source.onmessage = () => resolve("read");
            source.onerror = () => { source.close(); resolve("closed"); };
          });
          return tried;
        }""",
        [daemon.url, device],
    )
    assert tried == {
        "read": "failed",
        "stream": "failed",
        "change": "failed",
        "header": "failed",
        "socket": "closed",
        "device": "closed",
        "events": "closed",
    }
    page.evaluate(
        """(url) => {
          const form = Object.assign(document.createElement("form"), { method: "POST", action: url + "/sessions" });
          document.body.append(form);
          form.submit();
        }""",
        daemon.url,
    )
    expect(page.locator("body")).to_contain_text("error")
    assert daemon.get("/sessions")["sessions"] == []


def test_rebound_name_gets_nothing(shared: Daemon, visit: Visit) -> None:
    """A name of an attacker that leads to this machine: the browser takes it for the attacker's site."""
    page = visit.device().new_page()
    port = shared.url.rpartition(":")[2]
    for path in ("", "sessions", "openapi.json", "web/app/main.js", "sw.js"):
        answer = page.goto(f"http://rebound.localhost:{port}/{path}")
        assert answer is not None
        assert answer.status == 421, path
    status = page.evaluate("fetch('/sessions').then((answer) => answer.status)")
    assert status == 421


def test_corpus_reaches_the_page_unchanged(shared: Daemon, hostile: tuple[str, str]) -> None:
    """The daemon keeps what the agent said: the page is where it becomes harmless."""
    texts = json.dumps([event["data"] for event in shared.events(hostile[0])], ensure_ascii=False)
    assert "<script>window.owned = 1</script>" in texts
    assert "\u202e" in texts
