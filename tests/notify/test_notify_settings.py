"""The table ``[notify]``: what it accepts, and where its secrets do not appear."""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from loops import ON_ONE_LOOP

from agent_orchestrator import open_embedded
from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.notice_settings import NotifyOptions, NotifySettings, read_notify
from agent_orchestrator.notifiers.registry import build_targets
from agentd.logs import Redactor
from agentd.own_files import protection
from agentd.print_config import render_config
from agentd.settings import load

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
HOOK = {"channel": "webhook", "url": "https://hooks.example/t0ken", "secret": SECRET}
TOPIC = {"channel": "ntfy", "url": "https://ntfy.example/t0pic", "token": "tk_secret"}
COMMAND = {"channel": "command", "argv": ["notify", "me"]}


def read(table: Any) -> NotifySettings:
    return read_notify(table, location="notify")


def test_all_channels_are_read() -> None:
    settings = read(
        {
            "dwell_s": 1,
            "link_base": "https://desk.example",
            "targets": {
                "hook": {**HOOK, "events": ["request", "failed"]},
                "phone": {**TOPIC, "quiet": False},
                "desk": COMMAND,
            },
        }
    )
    assert settings.options.dwell_s == 1.0
    targets = build_targets(settings, {})
    assert {name: target.kind for name, target in targets.items()} == {
        "hook": "webhook",
        "phone": "ntfy",
        "desk": "command",
    }
    assert targets["hook"].events == {"request", "failed"}
    assert (targets["hook"].quiet, targets["phone"].quiet) == (True, False)
    assert targets["desk"].events == {"request"}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ([], "notify: must be a table"),
        ({"targets": []}, "notify.targets: must be a table"),
        ({"dwel_s": 1}, "notify.dwel_s: is not a setting; did you mean 'dwell_s'?"),
        ({"dwell_s": "1"}, "notify.dwell_s: must be a number"),
        ({"dwell_s": -1}, "notify.dwell_s: must be between 0 and 3,600, is -1"),
        ({"include_text": 1}, "notify.include_text: must be true or false"),
        ({"link_base": "desk.example"}, "notify.link_base: must match"),
        ({"quiet_hours": "22-7"}, "notify.quiet_hours: must match"),
        ({"time_zone": "Middle/Earth"}, "notify.time_zone: is not a time zone"),
        ({"time_zone": "../etc/passwd"}, "notify.time_zone: is not a time zone"),
        ({"targets": {"a b": COMMAND}}, "notify.targets.a b: a target's name may have only"),
        ({"targets": {"a": 1}}, "notify.targets.a: must be a table"),
        ({"targets": {"a": {}}}, "notify.targets.a.channel: must be one of webhook, ntfy, command"),
        ({"targets": {"a": {"channel": ["ntfy"]}}}, "notify.targets.a.channel: must be one of"),
        ({"targets": {"a": {"channel": "ntfy"}}}, "notify.targets.a.url: is required"),
        (
            {"targets": {"a": {**TOPIC, "url": "https://ntfy.example/"}}},
            "notify.targets.a.url: must name a topic",
        ),
        (
            {"targets": {"a": {**COMMAND, "argv": []}}},
            "notify.targets.a.argv: must name a program",
        ),
        (
            {"targets": {"a": {**COMMAND, "argv": ["a\0b"]}}},
            "notify.targets.a.argv: must not contain a NUL character",
        ),
        (
            {"targets": {"a": {**COMMAND, "argv": "show"}}},
            "notify.targets.a.argv: must be a list of strings",
        ),
        (
            {"targets": {"a": {**COMMAND, "argv": ["\ud800"]}}},
            "notify.targets.a.argv: is not valid Unicode",
        ),
        (
            {"targets": {"a": {**COMMAND, "events": ["request", "lunch"]}}},
            "notify.targets.a.events: must be some of request, finished, failed",
        ),
        (
            {"targets": {"a": {**HOOK, "token": "x"}}},
            "notify.targets.a.token: is not a setting; there are",
        ),
        (
            {"targets": {f"t{n}": COMMAND for n in range(33)}},
            "notify.targets: must be at most 32",
        ),
        (
            {"targets": {"a": {"channel": "ntfy"}, "b": {"channel": "command"}}},
            "notify.targets.a.url: is required\nnotify.targets.b.argv: is required",
        ),
    ],
)
def test_invalid_settings_are_named(table: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(table)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://hooks.example/x",
        "https://",
        "https://user:pa55@hooks.example/x",
        "https://hooks.example:99999/x",
        "https://hooks.example/a b",
        "https://hooks.example/\n",
        "http://[::1/x",
        "hooks",
        7,
    ],
)
def test_invalid_url_is_refused_without_repeating_it(url: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read({"targets": {"a": {**HOOK, "url": url}}})
    assert str(caught.value).startswith("notify.targets.a.url: must be")
    assert str(url) not in str(caught.value)


@pytest.mark.parametrize(
    "secret", ["plain", "whsec_", "whsec_short", "whsec_!!!!", "whsec_" + "A" * 92, SECRET[6:]]
)
def test_invalid_secret_is_refused_without_repeating_it(secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read({"targets": {"a": {**HOOK, "secret": secret}}})
    assert str(caught.value) == (
        "notify.targets.a.secret: must be whsec_ and 24 to 64 bytes in base64"
    )


def write_config(directory: Path) -> Path:
    file = directory / "agentd.toml"
    file.write_text(
        f"""
        [notify]
        quiet_hours = "22:00-07:00"
        [notify.targets.hook]
        channel = "webhook"
        url = "{HOOK["url"]}"
        secret = "{SECRET}"
        [notify.targets.phone]
        channel = "ntfy"
        url = "{TOPIC["url"]}"
        token = "{TOPIC["token"]}"
        [notify.targets.desk]
        channel = "command"
        argv = ["notify", "me"]
        """
    )
    return file


SECRETS = (str(HOOK["url"]), SECRET, str(TOPIC["url"]), str(TOPIC["token"]))


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    settings = load({}, {}, str(write_config(tmp_path)))
    targets = build_targets(settings.notify, {"HOME": "/home/ann"})
    printed = render_config(settings)
    for text in (repr(settings), repr(targets), printed):
        assert not [secret for secret in SECRETS if secret in text]
    assert 'channel = "webhook"' in printed
    assert 'argv = ["notify", "me"]' in printed
    assert 'quiet_hours = "22:00-07:00"' in printed
    assert set(settings.secrets) == set(SECRETS)
    redacted = Redactor(settings.secrets)(f"posting to {HOOK['url']} with {TOPIC['token']}")
    assert not [secret for secret in SECRETS if secret in redacted]


def test_agents_cannot_read_a_configuration_with_secrets(tmp_path: Path) -> None:
    file = write_config(tmp_path)
    settings = load({}, {}, str(file))
    assert file.absolute() in protection(settings).secret
    file.write_text('[notify.targets.desk]\nchannel = "command"\nargv = ["notify"]\n')
    assert file.absolute() in protection(load({}, {}, str(file))).read_only


def test_file_errors_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "agentd.toml"
    file.write_text(f'[notify.targets.hook]\nchannel = "webhook"\nsecret = {json.dumps(SECRET)}\n')
    with pytest.raises(ConfigError) as caught:
        load({}, {}, str(file))
    assert str(caught.value) == f"{file}: notify.targets.hook.url: is required"


async def test_embedded_engine_takes_the_same_table() -> None:
    with pytest.raises(ConfigError, match=r"notify\.targets\.a\.channel"):
        async with open_embedded(":memory:", notify={"targets": {"a": {}}}):
            pass


@pytest.mark.parametrize(
    ("hours", "zone", "moment", "expected"),
    [
        (None, None, "2026-01-01T23:00", "2026-01-01T23:00"),
        ("22:00-07:00", "UTC", "2026-01-01T21:59", "2026-01-01T21:59"),
        ("22:00-07:00", "UTC", "2026-01-01T22:00", "2026-01-02T07:00"),
        ("22:00-07:00", "UTC", "2026-01-02T06:59", "2026-01-02T07:00"),
        ("22:00-07:00", "UTC", "2026-01-02T07:00", "2026-01-02T07:00"),
        ("12:00-13:30", "UTC", "2026-01-02T12:30", "2026-01-02T13:30"),
        ("12:00-13:30", "UTC", "2026-01-02T13:30", "2026-01-02T13:30"),
        ("12:00-12:00", "UTC", "2026-01-02T12:00", "2026-01-02T12:00"),
        ("22:00-07:00", "Asia/Tokyo", "2026-01-01T13:00", "2026-01-01T22:00"),
        # The clocks in Berlin went from 2:00 to 3:00 that night, and seven is at five in UTC.
        ("22:00-07:00", "Europe/Berlin", "2026-03-28T23:00", "2026-03-29T05:00"),
    ],
)
def test_quiet_hours(hours: str | None, zone: str | None, moment: str, expected: str) -> None:
    options = NotifyOptions(quiet_hours=hours, time_zone=zone)
    at = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    assert options.after_quiet_hours(at) == datetime.fromisoformat(expected).replace(tzinfo=UTC)
