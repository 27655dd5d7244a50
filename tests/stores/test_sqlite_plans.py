"""Every statement of the SQLite store finds its rows by an index.

The statements are those that SQLite itself reports while each method of a view and of a transaction is
called with each combination of its filters. New methods are included automatically. A parameter without a value here fails the test.
"""

import inspect
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from agent_orchestrator.domain.access import EVERYTHING, Grant, Visibility
from agent_orchestrator.domain.audit import AuditEntry
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import Attempt, Thread
from agent_orchestrator.domain.search import Search, phrases_of
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.ports.changes import PastEvent, Transaction
from agent_orchestrator.ports.queries import View
from agent_orchestrator.stores.encoding import feed_cursor
from agent_orchestrator.stores.sqlite import SqliteStore
from agent_orchestrator.testing.stores.samples import (
    NOW,
    a_message,
    a_notice,
    a_record,
    a_request,
    a_run,
    a_session,
    a_subscription,
    drafts,
)

pytestmark = pytest.mark.anyio

SMALL = {"tree", "walk", "lineage", "place", "json_each", "found", "queued", "oldest", "children"}
"""Parts of a query that may be scanned, because they hold only what the query found."""

READ_WHOLE = {
    ("SCAN r USING INDEX runs_for_workers", "LIMIT ?"): "the queue, which has a limit",
    ("SCAN events USING COVERING INDEX events_of_session", "min(position)"): "a check reads all",
    ("SCAN commits", "commits"): "one row",
    ("SCAN run_counts", "run_counts"): "three rows a provider",
    ("SCAN idempotency", "ORDER BY number LIMIT ?"): "the oldest, up to a limit",
    ("SCAN idempotency", "ORDER BY number LIMIT 1"): "the oldest one",
    ("SCAN search_index VIRTUAL TABLE INDEX 0:", "LIMIT 1"): "one row, before a check",
    ("SCAN p USING INDEX pruned_logs_unaudited", "LIMIT ?"): "the few that a kill left",
    ("SCAN pruned_logs", "sum(count)"): "a check reads all",
    ("SCAN callers", "min(caller)"): "one row a caller, each found by the index",
}
"""Steps that scan a table: the step, a part of the statement, and why it is allowed."""

SESSION = a_session(owner="ann")
RUN = a_run(SESSION.id, worker_id="dmn_1/1", status=RunStatus.RUNNING)
OTHER = a_session(owner="ann")
QUEUED = a_run(OTHER.id)
REQUEST = a_request(RUN)
MESSAGE = a_message(SESSION.id)
ATTEMPT = Attempt(RUN.id, 1, "dmn_1/1", "codex", NOW, token_hash="hash")
TOKEN = AccessToken("tok_1", "phone", "bob", ("read",), "local", NOW, None)
NOTICE = a_notice("req_1")
SUBSCRIPTION = a_subscription("bob")
PAST = [
    PastEvent(seq, draft, NOW)
    for seq, draft in zip((2, 4), drafts("x", "y", run_id=QUEUED.id), strict=True)
]
"""The first events of a log whose numbers 1 and 3 are missing."""
REACHES = (
    EVERYTHING,
    Visibility("ann"),
    Visibility(tree=SESSION.id),
    Visibility("ann", SESSION.id),
)

DAY = timedelta(days=1)

VALUES: dict[str, tuple[Any, ...]] = {
    "after": (None, "x"),
    "at": (NOW,),
    "before": (NOW + DAY,),
    "attempt": (None, 1),
    "call": ("call",),
    "caller": ("local",),
    "claimant": ("dmn_1",),
    "cut": (10,),
    "data": (b"x",),
    "digest": ("0" * 64,),
    "drafts": (drafts("x", run_id=RUN.id),),
    "entry": (AuditEntry(1, NOW, "local", "none", "call", None, "done", {}, "hash"),),
    "epoch": ("epc_1",),
    "events": (PAST,),
    "grants": ((Grant("bob", "reader"),),),
    "host": (None, "local"),
    "instance": ("dmn_2",),
    "key": ("key",),
    "limit": (2,),
    "message": (MESSAGE,),
    "message_id": (MESSAGE.id,),
    "max_count": (9,),
    "max_size": (9,),
    "now": (NOW + DAY,),
    "oldest_cursor": (1,),
    "order": ("oldest", "newest"),
    "parent_run_id": (None, RUN.id),
    "parent_session_id": (None, SESSION.id),
    "principal": ("bob",),
    "daemon_id": (None, "dmn_1"),
    "provider": ("codex",),
    "providers": (None, ("codex",)),
    "reader": ("tok_1",),
    "record": (a_record(),),
    "request": (REQUEST,),
    "request_id": (REQUEST.id,),
    "resolvable": (False, True),
    "root_session_id": (None, SESSION.id),
    "run": (QUEUED,),
    "run_id": (None, RUN.id),
    "search": (
        Search(phrases_of("x")),
        Search(phrases_of("x"), "title"),
        Search(phrases_of("x"), session_id=SESSION.id),
    ),
    "seq": (1,),
    "since": (NOW,),
    "seqs": ((), (2,)),
    "session": (SESSION,),
    "session_id": (None, SESSION.id),
    "sessions": ((), (SESSION.id,)),
    "size": (None, 9),
    "status": (None, "pending"),
    "statuses": (("approved",),),
    "name": ("retention",),
    "notice": (NOTICE,),
    "notice_id": (NOTICE.id,),
    "subscription": (SUBSCRIPTION,),
    "subscription_id": (SUBSCRIPTION.id,),
    "endpoint": (SUBSCRIPTION.endpoint,),
    "subject": (NOTICE.subject,),
    "cursor": (None, "1"),
    "state": (None, "queued"),
    "types": (("run.failed",),),
    "through": (0, 1),
    "thread": (Thread("thread", {}),),
    "thread_id": ("thread",),
    "excluding": ((),),
    "token": (TOKEN,),
    "token_hash": ("hash",),
    "token_id": (TOKEN.id,),
    "topic": ("topic",),
    "until": (None,),
    "within": REACHES,
}
OWN: dict[tuple[str, str], tuple[Any, ...]] = {
    ("add_past", "session_id"): (OTHER.id,),
    ("add_run", "run"): (RUN, QUEUED),
    ("add_session", "session"): (SESSION, OTHER),
    ("audit", "after"): (0,),
    ("claim_notice", "until"): (NOW + DAY,),
    ("claim_job", "until"): (NOW + DAY,),
    ("events", "after"): (0,),
    ("feed", "after"): (None, feed_cursor(1, None)),
    ("feed_of_types", "after"): (None, feed_cursor(1, None)),
    ("notices", "principal"): (None, "bob"),
    ("push_subscriptions", "principal"): (None, "bob"),
    ("put_attempt", "attempt"): (ATTEMPT,),
    ("requests", "order"): ("oldest", "newest", "deadline"),
    ("runs", "status"): (None, *RunStatus),
    ("search", "after"): (None, "9"),
}
"""Values of a parameter for one method, instead of those in ``VALUES``."""

IN_ORDER = (
    "add_session",
    "add_run",
    "add_message",
    "add_request",
    "add_token",
    "add_image",
    "add_notice",
    "add_push_subscription",
)
"""The methods to call first, in this order."""


@contextmanager
def reported() -> Iterator[set[str]]:
    """Yield the statements that all connections to databases are given from now on."""
    found: set[str] = set()

    def note(_cursor: object, sql: str, _values: object) -> bool:
        found.add(sql)
        return True

    def opened(connection: apsw.Connection) -> None:
        connection.set_exec_trace(note)

    apsw.connection_hooks.append(opened)
    try:
        yield found
    finally:
        apsw.connection_hooks.remove(opened)


async def test_statements_find_their_rows_by_an_index(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    async with SqliteStore(path):
        pass  # migrations scan tables, once
    with reported() as statements:
        await ask_everything(path)
    found = dict(explained(path, statements))
    assert len(found) > 100, "the statements were not reported"
    for table in (
        "sessions",
        "messages",
        "runs",
        "requests",
        "events",
        "attempts",
        "audit",
        "images",
    ):
        assert any(f"FROM {table}" in sql for sql in found), table
    scans = [
        (step, " ".join(sql.split()))
        for sql, steps in found.items()
        for step in steps
        if step.startswith("SCAN ") and not _is_small(step)
    ]
    wrong = [
        scan
        for scan in scans
        if not any(scan[0] == s and part in scan[1] for s, part in READ_WHOLE)
    ]
    assert not wrong, "\n".join(map(": ".join, wrong))
    for step, part in READ_WHOLE:
        assert any(step == one and part in sql for one, sql in scans), f"{step} is no more"


async def ask_everything(path: Path) -> None:
    async with SqliteStore(path) as store:
        own = [name for name in methods(Transaction) if name not in methods(View)]
        for name in sorted(own, key=lambda one: (one not in IN_ORDER, _place(one), one)):
            for keywords in calls(Transaction, name):
                await store.transact(partial(call, name, keywords))
        await store.transact(lambda tx: tx.add_record(a_record(key="2"), max_count=1, max_size=1))
        for name in methods(View):
            for keywords in calls(View, name):
                await store.read(partial(call, name, keywords))
        await store.transact(lambda tx: tx.append(SESSION.id, drafts(*"x" * 99), NOW))
        for sessions in ((), (SESSION.id,)):
            # A reader so far behind that the logs of the sessions are merged.
            await store.read(
                lambda view, s=sessions: view.feed(
                    after=None, sessions=s, within=Visibility("ann"), limit=9
                )
            )
        await store.check()
        assert await store.problems() == ()


def methods(protocol: type) -> list[str]:
    return [name for name, _ in inspect.getmembers(protocol, inspect.isfunction) if name[0] != "_"]


def _place(name: str) -> int:
    return IN_ORDER.index(name) if name in IN_ORDER else len(IN_ORDER)


def calls(protocol: type, name: str) -> Iterator[dict[str, Any]]:
    """Yield the arguments of each call of a method that is to be tried."""
    parameters = list(inspect.signature(getattr(protocol, name)).parameters.values())[1:]
    choices = []
    for parameter in parameters:
        values = OWN.get((name, parameter.name), VALUES[parameter.name])
        if parameter.default is parameter.empty and len(values) > 1:
            is_optional = "None" in str(parameter.annotation)
            values = values if is_optional else tuple(one for one in values if one is not None)
        choices.append([(parameter.name, value) for value in values])
    for given in map(dict, itertools.product(*choices)):
        if not (name == "delete_events" and given["through"] and given["seqs"]):  # two calls
            yield given


def call(name: str, keywords: dict[str, Any], view: View) -> None:
    getattr(view, name)(**keywords)


def explained(path: Path, statements: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each statement that searches rows, with the steps of SQLite's query plan."""
    connection = apsw.Connection(str(path))
    try:
        for sql in statements:
            if sql.split()[0].upper() in {
                "SELECT",
                "WITH",
                "UPDATE",
                "DELETE",
                "INSERT",
                "REPLACE",
            }:
                steps = connection.execute(f"EXPLAIN QUERY PLAN {sql}", _nothing(sql))
                yield sql, [row[3] for row in steps]
    finally:
        connection.close()


def _nothing(sql: str) -> tuple[None, ...]:
    """Return null values for a statement that is only explained."""
    numbers = [int(number) for number in re.findall(r"\?(\d+)", sql)]
    return (None,) * (max(numbers) if numbers else sql.count("?"))


def _is_small(step: str) -> bool:
    what = step.removeprefix("SCAN ").split()[0]
    return (
        what in SMALL
        or what == "CONSTANT"
        or what == "pragma_module_list"
        or re.search("VIRTUAL TABLE INDEX [0-9]+:M", step)
        is not None  # MATCH: by the index of words
        or step.endswith("VALUES CLAUSE")
        or what.startswith("(subquery")
    )
