"""Reading and setting the grants of a session."""

import re
from typing import Final

from agent_orchestrator.domain.access import Action, Principal
from agent_orchestrator.domain.errors import InvalidRequest
from agent_orchestrator.engine.access import session_for
from agent_orchestrator.engine.core import Change, Core
from agent_orchestrator.fields import specs
from agent_orchestrator.operations.access import CreateToken
from agent_orchestrator.operations.sessions import AccessReply, GetAccess, SetAccess
from agent_orchestrator.ports.changes import Transaction
from agent_orchestrator.ports.queries import View

_NAME: Final = specs(CreateToken)["principal"].limits


async def get(core: Core, caller: Principal, command: GetAccess) -> AccessReply:
    def query(view: View) -> AccessReply:
        session_for(view, caller, Action.SHARE, command.session_id)
        return AccessReply(tuple(view.grants(command.session_id)))

    return await core.store.read(query)


async def set_(core: Core, caller: Principal, command: SetAccess) -> Change[AccessReply]:
    del core
    names: set[str] = set()
    for index, name in enumerate(grant.principal for grant in command.grants):
        if problem := _problem(name, names):
            raise InvalidRequest.of({f"grants[{index}].principal": problem})
        names.add(name)

    def change(tx: Transaction) -> AccessReply:
        session = session_for(tx, caller, Action.SHARE, command.session_id)
        for index, grant in enumerate(command.grants):
            if grant.principal == session.owner and grant.role != "owner":
                problem = f"{session.owner} owns the session"
                raise InvalidRequest.of({f"grants[{index}].principal": problem})
        tx.put_grants(session.id, command.grants)
        return AccessReply(tuple(tx.grants(session.id)))

    return change


def _problem(name: str, others: set[str]) -> str | None:
    if len(name) > (_NAME.max_length or 0) or not re.fullmatch(str(_NAME.pattern), name):
        return f"must match {_NAME.pattern} and be at most {_NAME.max_length} characters"
    if name.startswith("run_"):
        return "is the name of a run: the access of agents follows from their place in the tree"
    return "is granted more than one role" if name in others else None
