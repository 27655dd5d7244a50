"""The calls of the API: a command class and an answer class for each, and the table of all calls.

Routes, the API description, the HTTP client and the reference pages come from :data:`OPERATIONS`.
A new call needs a command, a row in the table, an engine function and a contract test.
"""

from typing import Any, Final

from agent_orchestrator.operations.access import CREATE_TOKEN, LIST_AUDIT, LIST_TOKENS, REVOKE_TOKEN
from agent_orchestrator.operations.daemon import BACK_UP, CHECK_STORE, DOCTOR, STATUS
from agent_orchestrator.operations.devices import (
    ADD_DEVICE,
    CLAIM_DEVICE,
    LIST_DEVICES,
    REVOKE_DEVICE,
)
from agent_orchestrator.operations.events import LIST_EVENTS
from agent_orchestrator.operations.links import CREATE_LINK, LIST_LINKS, REVOKE_LINK
from agent_orchestrator.operations.messages import (
    LIST_MESSAGES,
    SEND_MESSAGE,
    SEND_TO_SESSION,
    SPAWN_FROM_RUN,
    SPAWN_FROM_SESSION,
)
from agent_orchestrator.operations.notices import (
    GET_NOTICE,
    LIST_NOTICES,
    RETRY_NOTICE,
    TEST_NOTICE,
)
from agent_orchestrator.operations.push import (
    GET_PUSH_KEY,
    LIST_PUSH,
    REPORT_NOTICE,
    SUBSCRIBE_PUSH,
    UNSUBSCRIBE_PUSH,
    UPDATE_PUSH,
)
from agent_orchestrator.operations.requests import (
    EXTEND_REQUEST,
    GET_REQUEST,
    LIST_REQUESTS,
    REPLY_PARENT,
    RESOLVE_REQUEST,
)
from agent_orchestrator.operations.retention import PRUNE_SESSION
from agent_orchestrator.operations.runs import (
    CANCEL_RUN,
    CREATE_RUN,
    DIAGNOSE_RUN,
    GET_RUN,
    LIST_RUNS,
    TRANSITION_RUN,
    WAIT_RUN,
)
from agent_orchestrator.operations.search import SEARCH
from agent_orchestrator.operations.session_files import EXPORT_SESSION, IMPORT_SESSION
from agent_orchestrator.operations.sessions import (
    CLOSE_SESSION,
    CREATE_SESSION,
    GET_ACCESS,
    GET_DIFF,
    GET_SESSION,
    GET_TREE,
    LIST_SESSIONS,
    MARK_SEEN,
    SET_ACCESS,
    UPDATE_SESSION,
)
from agent_orchestrator.operations.table import Operation
from agent_orchestrator.operations.takeovers import ADOPT_SESSION, ATTACH_SESSION

OPERATIONS: Final[tuple[Operation[Any, Any], ...]] = (
    CREATE_SESSION,
    LIST_SESSIONS,
    GET_SESSION,
    GET_DIFF,
    MARK_SEEN,
    UPDATE_SESSION,
    CLOSE_SESSION,
    PRUNE_SESSION,
    EXPORT_SESSION,
    IMPORT_SESSION,
    ATTACH_SESSION,
    ADOPT_SESSION,
    GET_ACCESS,
    SET_ACCESS,
    CREATE_LINK,
    LIST_LINKS,
    REVOKE_LINK,
    SEND_MESSAGE,
    LIST_MESSAGES,
    SPAWN_FROM_SESSION,
    SPAWN_FROM_RUN,
    SEND_TO_SESSION,
    GET_TREE,
    REPLY_PARENT,
    LIST_REQUESTS,
    GET_REQUEST,
    RESOLVE_REQUEST,
    EXTEND_REQUEST,
    LIST_EVENTS,
    SEARCH,
    CREATE_RUN,
    LIST_RUNS,
    GET_RUN,
    TRANSITION_RUN,
    CANCEL_RUN,
    WAIT_RUN,
    DIAGNOSE_RUN,
    STATUS,
    BACK_UP,
    CHECK_STORE,
    DOCTOR,
    CREATE_TOKEN,
    LIST_TOKENS,
    REVOKE_TOKEN,
    ADD_DEVICE,
    CLAIM_DEVICE,
    LIST_DEVICES,
    REVOKE_DEVICE,
    LIST_AUDIT,
    LIST_NOTICES,
    GET_NOTICE,
    TEST_NOTICE,
    RETRY_NOTICE,
    SUBSCRIBE_PUSH,
    LIST_PUSH,
    UPDATE_PUSH,
    UNSUBSCRIBE_PUSH,
    GET_PUSH_KEY,
    REPORT_NOTICE,
)
