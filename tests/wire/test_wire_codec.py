"""Objects to JSON and back; commands to requests and back."""

from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from later import LATER, sample, without_one

from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.domain.lifecycle import RunStatus
from agent_orchestrator.domain.model import (
    Event,
    Message,
    Option,
    Request,
    Run,
    RunError,
    Session,
    Source,
    Usage,
)
from agent_orchestrator.fields import check, specs
from agent_orchestrator.operations import OPERATIONS
from agent_orchestrator.operations import events as event_calls
from agent_orchestrator.operations import messages as message_calls
from agent_orchestrator.operations import runs as run_calls
from agent_orchestrator.operations import sessions as session_calls
from agent_orchestrator.wire import codec, strict_json

NOW = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)

RUN = Run(
    id="run_1", session_id="ses_1", message_id="msg_1", parent_run_id=None, provider="codex",
    model=None, status=RunStatus.FAILED, waiting_on=None, attempt=2, worker_id="w", thread_id="t",
    result=None, error=RunError("timeout", "too late"), usage=Usage(1, 2, 3, 0.5), exit_code=-9,
    cancel_requested_at=None, cancel_reason=None, created_at=NOW, started_at=NOW, finished_at=NOW,
)  # fmt: skip
SESSION = Session(
    id="ses_1", title="T", owner="local", provider=None, model=None, cwd="/", status="open",
    parent_session_id=None, parent_run_id=None, root_session_id="ses_1", depth=0,
    metadata={"a": [1, {"b": None}]}, threads={"codex": "t"}, last_seq=3, created_at=NOW,
    updated_at=NOW,
)  # fmt: skip
MESSAGE = Message("msg_1", "ses_1", "user", Source(principal="local"), "hi", None, "queued", NOW)
EVENT = Event(1, "ses_1", "run_1", 1, "of.the.future", {"x": [1, "ü", None]}, NOW)

ANSWERS: list[Any] = [
    session_calls.SessionReply(SESSION),
    session_calls.SessionPage([SESSION, SESSION], "ses_1"),
    message_calls.MessageReply(MESSAGE, RUN),
    message_calls.MessageReply(MESSAGE, None),
    event_calls.EventPage([EVENT], 1, has_more=False),
    run_calls.RunPage([RUN], None),
    run_calls.CancelReply(RUN, ["run_1"]),
    run_calls.WaitReply(RUN, timed_out=True),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_answers_are_decoded_as_they_were_encoded(answer: Any) -> None:
    plain = strict_json.loads(codec.to_json(answer).encode())
    again = codec.from_plain(type(answer), plain)
    assert codec.to_plain(again) == codec.to_plain(answer)
    assert again.__class__ is answer.__class__


def test_unknown_fields_of_a_newer_daemon_are_ignored() -> None:
    plain = {**codec.to_plain(run_calls.RunReply(RUN)), "new": 1}
    plain["run"]["newer"] = {}
    assert codec.from_plain(run_calls.RunReply, plain) == run_calls.RunReply(RUN)


@pytest.mark.parametrize("plain", [None, 1, [], {}, {"run": None}, {"run": {"x": 1}}, {"x": 1}])
def test_malformed_answer_is_a_value_error(plain: Any) -> None:
    with pytest.raises(ValueError, match=r"RunReply|not"):
        codec.from_plain(run_calls.RunReply, plain)


def test_both_encoders_of_an_event_give_the_same_json() -> None:
    assert b"".join(codec.event_to_json(EVENT)).decode() == codec.to_json(EVENT)


@given(st.datetimes(datetime(1000, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_times_are_decoded_as_they_were_encoded_and_sort_as_text(moment: datetime) -> None:
    encoded = codec.format_time(moment)
    assert codec.parse_time(encoded) == moment
    assert (encoded < codec.format_time(NOW)) == (moment < NOW)


# --- commands -------------------------------------------------------------------------------

name = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
identifier = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "limit": st.integers(1, 1000),
    "wait_s": st.floats(0, 3600),
    "timeout_s": st.floats(0, 86_400),
    "interval_ms": st.none() | st.integers(1, 3_600_000),
    "cascade": st.booleans(),
    "metadata": st.dictionaries(name, name, max_size=3),
    "result": st.none() | st.just({"text": "x"}),
    "error": st.none() | st.just({"code": "x", "message": "y"}),
    "cwd": st.none() | st.just("/a b"),
    "to_status": st.sampled_from(["running", "completed"]),
    "order": st.sampled_from(["oldest", "newest"]),
    "role": st.sampled_from(["user", "system"]),
    "ignore": st.sampled_from([(), ("req_1",), ("req_1", "req 2&x=")]),
    "when_busy": st.sampled_from(["queue", "steer"]),
}


def commands(operation: Any) -> st.SearchStrategy[Any]:
    fields = {}
    for attribute in attrs.fields(operation.request):
        strategy = VALUES.get(attribute.name)
        if attribute.name == "status":
            options = ["open", "closed"] if "session" in operation.path else ["queued", "failed"]
            strategy = st.none() | st.sampled_from(options)
        elif attribute.name == "cursor" and int in specs(operation.request)["cursor"].kinds:
            strategy = st.none() | st.integers(0, 2**63 - 1)
        elif bool in specs(operation.request)[attribute.name].kinds:
            strategy = st.booleans() if attribute.default is not None else st.none() | st.booleans()
        elif attribute.name == "until":
            strategy = st.just("terminal")
        elif attribute.name.endswith("_id"):
            strategy = identifier if attribute.default is attrs.NOTHING else st.none() | identifier
        elif strategy is None:
            strategy = name if attribute.default is attrs.NOTHING else st.none() | name
        fields[attribute.name] = strategy
    return st.fixed_dictionaries(fields).map(lambda values: operation.request(**values))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@settings(
    max_examples=20
)  # for each of about thirty operations, which have fields of the same types
@given(data=st.data())
def test_command_is_decoded_from_its_request_as_it_was_encoded(
    operation: Any, data: st.DataObject
) -> None:
    from urllib.parse import parse_qsl, unquote, urlencode

    asked = data.draw(commands(operation))
    path, query, body = codec.request_parts(operation, asked)
    pattern = operation.path.split("/")
    parts = path.split("/")
    assert len(parts) == len(pattern)
    values = {
        field[1:-1]: unquote(part)
        for field, part in zip(pattern, parts, strict=True)
        if field.startswith("{")
    }
    if not operation.has_query:
        assert not query
        values |= strict_json.loads(strict_json.dumps(body).encode())
    else:
        assert body is None
        pairs = parse_qsl(urlencode(query), keep_blank_values=True)
        values |= codec.query_values(operation.request, pairs)
    assert codec.command(operation.request, values) == asked


def test_invalid_command_names_all_bad_fields() -> None:
    with pytest.raises(InvalidRequest) as raised:
        codec.command(message_calls.SendMessage, {"text": 1, "role": "x", "extra": None})
    assert set(raised.value.details["fields"]) == {"text", "role", "extra", "session_id"}


@pytest.mark.parametrize(
    ("pairs", "bad"),
    [
        ([("limit", "1.0")], "limit"),
        ([("limit", "true")], "limit"),
        ([("limit", " 1")], "limit"),
        ([("limit", "+1")], "limit"),
        ([("limit", "1_0")], "limit"),
        ([("limit", "٣")], "limit"),
        ([("status", "OPEN")], "status"),
        ([("other", "1")], "other"),
    ],
)
def test_query_parameters_are_parsed_strictly(pairs: list[tuple[str, str]], bad: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check(
            session_calls.ListSessions,
            codec.command(
                session_calls.ListSessions, codec.query_values(session_calls.ListSessions, pairs)
            ),
        )
    assert list(raised.value.details["fields"]) == [bad]


KINDS = sorted({one.answer for one in OPERATIONS} | {Event}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_answers_of_newer_and_older_daemons_are_decoded(kind: type) -> None:
    plain = sample(kind)
    read = codec.from_plain(kind, plain)
    assert codec.to_plain(read) == plain
    newer = sample(kind, word=LATER)
    encoded = strict_json.dumps(codec.to_plain(codec.from_plain(kind, newer)))
    # Unknown values are kept, and unknown fields are dropped.
    assert encoded.count(LATER) == strict_json.dumps(newer).count(LATER)
    assert 'came_later":' not in encoded
    for where, older in without_one(plain):
        found = codec.from_plain(kind, older)
        assert isinstance(found, kind), where
        codec.to_json(found)


def test_options_of_an_older_daemon_are_read_from_texts() -> None:
    plain = {"id": "req_1", "kind": "approval_request", "options": ["yes", "no"]}
    request = codec.from_plain(Request, plain)
    assert request.options == (Option.named("yes"), Option.named("no"))
    assert (request.option, request.chosen) == (None, None)
    newer = {"id": "y", "label": "Yes", "kind": "of_the_future", "more": 1}
    [option] = codec.from_plain(Request, {**plain, "options": [newer]}).options or ()
    assert option == Option("y", "Yes", "of_the_future")  # type: ignore[arg-type]
