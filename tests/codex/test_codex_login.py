"""As whom codex works, told from outside."""

import json

import anyio
import pytest
from model_server import codex_env

from agent_orchestrator.domain.errors import AgentFailed
from agent_orchestrator.runners.codex import CodexExecRunner
from agent_orchestrator.runners.codex.appserver import CodexAppServerRunner
from agent_orchestrator.runners.codex.auto import EXEC, CodexRunner
from agent_orchestrator.runners.codex.login import identity
from agent_orchestrator.testing.runners import RecordingContext

pytestmark = [pytest.mark.anyio, pytest.mark.codex]


def log_in(home, key):
    (home / "auth.json").write_text(json.dumps({"OPENAI_API_KEY": key}))


@pytest.fixture
def account(home):
    """A home whose model wants codex's own login."""
    config = home / "config.toml"
    config.write_text(
        config.read_text().replace('env_key = "FAKE_KEY"', "requires_openai_auth = true")
    )
    assert "requires_openai_auth" in config.read_text()
    log_in(home, "first")
    return home


@pytest.fixture
def record(account, workspace):
    def make(prompt, **more):
        return RecordingContext(prompt, cwd=workspace, env=codex_env(account), **more)

    return make


async def run(runner, context):
    with anyio.fail_after(120):
        return await runner.run(context)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_next_message_uses_the_current_login(codex, account, record, models):
    async with CodexAppServerRunner(command=codex, home=str(account)) as runner:
        first, other = record("say one"), record("say other")
        await run(runner, first)
        await run(runner, other)
        assert models.requests[-1].authorization == "Bearer first"
        log_in(account, "second")
        again = record("say two", thread=first.thread)
        await run(runner, again)
        assert models.requests[-1].authorization == "Bearer second"
        assert again.thread.id == first.thread.id
        assert again.pid != first.pid
        await run(runner, new := record("say new"))
        assert (models.requests[-1].authorization, new.pid) == ("Bearer second", again.pid)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_login_change_does_not_disturb_a_running_run(codex, account, record, models):
    async with CodexAppServerRunner(command=codex, home=str(account)) as runner:
        first = record("say one")
        await run(runner, first)
        busy = record("hang")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.run, busy)
            await busy.until(lambda one: "delivered" in one.calls)
            log_in(account, "second")
            await run(runner, new := record("say new"))
            assert models.requests[-1].authorization == "Bearer second"
            assert new.pid != first.pid == busy.pid
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_process_whose_login_failed_is_not_used_again(codex, account, record):
    async with CodexAppServerRunner(command=codex, home=str(account)) as runner:
        first = record("http 401")
        with pytest.raises(AgentFailed) as caught:
            await run(runner, first)
        assert caught.value.code == "auth_failed"
        second = record("say two", thread=first.thread)
        await run(runner, second)
    assert second.pid != first.pid


def test_another_account_changes_the_login_identity_but_a_renewed_token_does_not(tmp_path):
    seen = [identity(tmp_path, "p")]

    def changes(name, text):
        (tmp_path / name).write_text(text)
        seen.append(identity(tmp_path, "p"))
        return seen[-1] not in seen[:-1]

    def tokens(**more):
        return json.dumps(
            {"tokens": {"account_id": "a", "refresh_token": "r", **more}, "last_refresh": "x"}
        )

    assert changes("auth.json", tokens())
    assert not changes("auth.json", tokens(refresh_token="renewed"))
    assert changes("auth.json", tokens(account_id="b"))
    assert changes("auth.json", "not json")
    assert changes(".env", "KEY=1")
    assert not changes("config.toml", '[projects."/x"]\ntrust_level = "untrusted"')
    assert changes("config.toml", 'model_provider = "x"')
    assert changes("config.toml", "model_provider = ")
    assert changes("p.config.toml", 'model_provider = "x"')
    assert not changes("q.config.toml", 'model_provider = "z"')


PROVIDER = (
    'model_provider = "p"\n[model_providers.p]\nname = "p"\nbase_url = "http://127.0.0.1:9/v1"\n'
)


@pytest.mark.parametrize(
    ("files", "env", "extra_args"),
    [
        ({"config.toml": PROVIDER + 'env_key = "SOME_KEY"', ".env": "SOME_KEY=x"}, {}, ()),
        (
            {
                "config.toml": PROVIDER + 'env_key = "SOME_KEY"',
                ".env": "\ufeffexport SOME_KEY = 'x'",
            },
            {},
            (),
        ),
        (
            {"config.toml": PROVIDER + 'env_key = "SOME_KEY"\nrequires_openai_auth = true'},
            {"SOME_KEY": "x"},
            (),
        ),
        ({"managed_config.toml": PROVIDER}, {}, ()),
        ({"config.toml": "\ufeff" + PROVIDER}, {}, ()),
        (
            {
                "config.toml": (PROVIDER + 'env_key = "SOME_KEY"').replace("\n", "\r\n"),
                ".env": '# none\r\n\r\nexport SOME_KEY="x"\r\n',
            },
            {},
            (),
        ),
        *[
            ({}, {}, given)
            for given in (
                ("-c", "model_provider=ollama"),
                ("-cmodel_provider=ollama",),
                ("-c=model_provider='ollama'",),
                ("--config", "model_provider=ollama"),
                ("--config=model_provider=ollama",),
                ("--config=model_provider=openai", "-cmodel_provider=ollama"),
                ("-c", " model_provider = 'ollama' "),
            )
        ],
    ],
)
@pytest.mark.parametrize("kind", [CodexExecRunner, CodexAppServerRunner])
async def test_each_login_that_codex_finds_is_available(
    codex, tmp_path, files, env, extra_args, kind
):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    runner = kind(command=codex, home=str(tmp_path), extra_args=extra_args)
    found = await runner.probe({**codex_env(tmp_path), **env})
    assert (found.available, found.reason) == (True, None)


async def test_a_key_that_only_exec_accepts_makes_the_app_server_unavailable(codex, tmp_path):
    env = {**codex_env(tmp_path), "CODEX_API_KEY": "x"}
    options = {"command": codex, "home": str(tmp_path)}
    assert (await CodexExecRunner(**options).probe(env)).available
    found = await CodexAppServerRunner(**options).probe(env)
    assert not found.available
    assert "CODEX_API_KEY" in found.reason
    found = await CodexRunner(**options).probe(env)
    assert (found.available, found.mode) == (True, EXEC)
    assert "codex login" in found.reason
