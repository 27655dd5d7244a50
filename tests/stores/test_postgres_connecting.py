"""What libpq reads besides the URL: service files, password files, certificates."""

import shutil

import anyio
import pytest
import trustme
from loops import ON_ONE_LOOP
from postgres import served

from agent_orchestrator.domain.errors import StoreOpenError
from agent_orchestrator.testing.stores.samples import a_session, put

pytestmark = [pytest.mark.anyio, ON_ONE_LOOP]

PASSWORD = "hunter:22"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server that asks for a password and has TLS, with a database, and the authority of its certificate."""
    with served() as server:
        server.run(f"CREATE ROLE guarded LOGIN PASSWORD '{PASSWORD}'")
        server.run("CREATE DATABASE guarded OWNER guarded ENCODING 'UTF8' TEMPLATE template0")
        data = server.folder / "data"
        owner = data.stat()
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(data / "server.key")
        issued.cert_chain_pems[0].write_to_path(data / "server.crt")
        rules = data / "pg_hba.conf"
        rules.write_text(f"hostssl all guarded 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        for name in ("server.key", "server.crt", "pg_hba.conf"):
            (data / name).chmod(0o600)
            shutil.chown(data / name, owner.st_uid, owner.st_gid)
        root = tmp_path_factory.mktemp("tls") / "root.pem"
        authority.cert_pem.write_to_path(root)
        server.stop()
        server.settings = ("ssl=on",)
        server.start()
        yield server, root


def url_of(server, root, *, password="", user="guarded"):
    secret = f":{password}" if password else ""
    return (
        f"postgresql://{user}{secret}@127.0.0.1:{server.port}/guarded"
        f"?sslmode=verify-full&sslrootcert={root}"
    )


@pytest.fixture
def opened():
    from agent_orchestrator.stores.postgres import PostgresStore

    return PostgresStore


async def test_a_password_file_and_tls_are_used(guarded, opened, tmp_path, monkeypatch):
    server, root = guarded
    file = tmp_path / "pgpass"
    escaped = PASSWORD.replace(":", "\\:")
    file.write_text(f"127.0.0.1:{server.port}:guarded:guarded:{escaped}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    async with opened(url_of(server, root)) as store:
        session = a_session()
        await put(store, session)
        assert await store.read(lambda view: view.session(session.id)) == session
        [[uses_tls]] = server.run(
            "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            " WHERE usename = 'guarded'"
        )
        assert uses_tls is True
        # A notification comes through TLS as well.
        heard = anyio.Event()
        with store.listen(lambda topics: heard.set()):
            await anyio.to_thread.run_sync(
                server.run, "SELECT pg_notify('agent_orchestrator', 'x')", "guarded"
            )
            with anyio.fail_after(45):
                await heard.wait()


async def test_a_service_file_is_used(guarded, opened, tmp_path, monkeypatch):
    server, root = guarded
    file = tmp_path / "pg_service.conf"
    file.write_text(
        f"[agents]\nhost=127.0.0.1\nport={server.port}\ndbname=guarded\nuser=guarded\n"
        f"password={PASSWORD}\nsslmode=verify-full\nsslrootcert={root}\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    async with opened("postgresql://?service=agents") as store:
        assert store.location == "postgresql://?service=agents"
        await put(store, a_session())


@pytest.mark.parametrize(
    ("password", "said"),
    [("", "no password supplied"), ("wrong", "password authentication failed")],
)
async def test_a_wrong_password_is_reported_without_it(guarded, opened, password, said):
    server, root = guarded
    with pytest.raises(StoreOpenError, match=said) as raised:
        async with opened(url_of(server, root, password=password)):
            pass
    assert "wrong" not in str(raised.value)


async def test_an_unknown_certificate_is_refused(guarded, opened, tmp_path):
    server, _ = guarded
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    with pytest.raises(StoreOpenError, match="certificate verify failed"):
        async with opened(url_of(server, other, password="x")):
            pass


async def test_a_role_without_rights_is_told_what_to_run(postgres, opened):
    postgres.run("CREATE ROLE nobody_special LOGIN")
    postgres.run("CREATE DATABASE others ENCODING 'UTF8' TEMPLATE template0")
    url = postgres.url("others").replace("owner@", "nobody_special@")
    said = "CREATE SCHEMA agent_orchestrator AUTHORIZATION nobody_special"
    try:
        with pytest.raises(StoreOpenError, match=said):
            async with opened(url):
                pass
        postgres.run(said, "others")
        async with opened(url) as store:
            await put(store, a_session())
    finally:
        postgres.run("DROP DATABASE others")
        postgres.run("DROP ROLE nobody_special")


async def test_of_several_servers_the_one_that_can_be_written_is_used(postgres, database, opened):
    place = f"127.0.0.1:1,127.0.0.1:{postgres.port}/{database().rpartition('/')[2]}"
    async with opened(f"postgresql://owner@{place}?target_session_attrs=read-write") as store:
        session = a_session()
        await put(store, session)
        assert await store.read(lambda view: view.session(session.id)) == session
        assert store.location == f"postgresql://owner@{place}"


async def test_another_encoding_is_refused(postgres, opened):
    postgres.run("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    try:
        with pytest.raises(StoreOpenError, match="encoding of the database is LATIN1"):
            async with opened(postgres.url("latin")):
                pass
    finally:
        postgres.run("DROP DATABASE latin")


async def test_a_newer_schema_is_refused(postgres, database, opened):
    url = database()
    name = url.rpartition("/")[2]
    async with opened(url):
        pass
    change = "UPDATE agent_orchestrator.schema SET version = {}, min_reader = {}"
    [before] = postgres.run("SELECT version, min_reader FROM agent_orchestrator.schema", name)
    try:
        postgres.run(change.format(99, 1), name)
        async with opened(url) as store:  # it says that this version can use it
            await put(store, a_session())
        postgres.run(change.format(99, 98), name)
        with pytest.raises(StoreOpenError, match="schema version 99"):
            async with opened(url):
                pass
    finally:
        postgres.run(change.format(*before), name)


async def test_the_server_notices_that_a_client_vanished(postgres):
    """By default after hours, and meanwhile it keeps the locks of a transaction whose statements are arriving."""
    from agent_orchestrator.stores.postgres.connection import Connection

    connection = Connection(postgres.url("postgres"))
    try:
        for name, value in (("idle", "10"), ("interval", "3"), ("count", "3")):
            sql = f"SELECT current_setting('tcp_keepalives_{name}')"
            assert connection.first_row(sql) == (value,)
        assert connection.first_row("SELECT current_setting('tcp_user_timeout')") == ("15000",)
    finally:
        connection.close()
