"""URLs of stores are shown without their secrets."""

import pytest

from agent_orchestrator.domain.errors import ConfigError
from agent_orchestrator.stores.urls import check_userinfo, secrets_of, without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql://ann@host:5432/db", "postgresql://ann@host:5432/db"),
        ("postgresql://ann:hunter2@host/db", "postgresql://ann@host/db"),
        ("postgresql://ann:hunter2@a:1,b:2/db", "postgresql://ann@a:1,b:2/db"),
        ("postgresql://ann:hunt%40er2@[::1]:5/db", "postgresql://ann@[::1]:5/db"),
        (
            "postgresql://h/db?password=hunter2&host=%2Frun&sslmode=require&sslpassword=hunter2",
            "postgresql://h/db?host=%2Frun",
        ),
        ("postgresql://?service=main", "postgresql://?service=main"),
        ("postgresql://ann:hunter2@[bad/db", "postgresql://…"),
    ],
)
def test_secrets_are_not_shown(url, shown):
    assert without_secrets(url) == shown
    assert "hunt" not in shown


def test_secrets_are_known_in_all_their_forms():
    assert secrets_of("postgresql://ann:a%20b@h/db") == ("a%20b", "a b")
    assert set(secrets_of("postgresql://h/db?password=p%2Fq")) == {"p/q", "p%2Fq"}
    assert secrets_of("postgresql://ann@h/db?sslmode=require") == ()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:p@ss@host/db",
        "postgresql://ann:p/ss@host/db",
        "postgresql://ann:p?ss@host/db",
        "postgresql://ann:p#ss@host/db",
    ],
)
def test_unescaped_secrets_are_refused_without_showing_them(url):
    with pytest.raises(ConfigError) as raised:
        check_userinfo(url)
    assert "ss" not in str(raised.value).replace("password", "")


def test_escaped_ones_are_accepted():
    for url in (
        "postgresql://host/db",
        "postgresql://ann:p%40s@host/db",
        "postgresql:///db?host=/run",
    ):
        check_userinfo(url)
