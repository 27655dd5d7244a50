"""The doctor: findings about providers, the store, named tokens, notices and the host."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

import anyio.to_thread

from agent_orchestrator.configuration import EngineOptions
from agent_orchestrator.domain.access import Principal
from agent_orchestrator.domain.exposure import possible_without_sandbox
from agent_orchestrator.domain.notices import Notice
from agent_orchestrator.domain.tokens import AccessToken
from agent_orchestrator.engine.access import require_admin
from agent_orchestrator.engine.config import EngineConfig
from agent_orchestrator.engine.core import Core
from agent_orchestrator.engine.daemons import clock_problems
from agent_orchestrator.engine.diagnosis import provider_statuses
from agent_orchestrator.host import use_host
from agent_orchestrator.operations.daemon import (
    Doctor,
    DoctorReport,
    Finding,
    Problem,
    ProviderStatus,
)
from agent_orchestrator.ports.queries import Growth, View
from agent_orchestrator.ports.runner import SelfChecking, capabilities_of

OLD_TOKEN_AGE: Final = timedelta(days=90)
"""The age from which the doctor warns of a token that never expires."""

RECENT_FAILURE_AGE: Final = timedelta(days=1)
"""The age up to which the doctor warns of a notice that was not sent."""

GROWTH_PERIOD: Final = timedelta(days=7)
SHORTEST_PERIOD: Final = timedelta(days=1)
"""The time whose events tell the present pace, and the shortest one that a year is reckoned from."""

YEAR: Final = timedelta(days=365)

MAX_SAMPLE: Final = 10_000
"""Maximum number of events that tell the present pace."""

EVENT_OVERHEAD: Final = 160
"""Bytes of an event in a database besides its data: its other columns, and its places in the indexes."""

MUCH: Final = 5e9
"""Bytes of a year's events from which the doctor proposes limits."""

MAX_FAILED: Final = 50
"""Maximum number of failed notices that the doctor looks at."""

_PAGE_SIZE: Final = 500

logger = logging.getLogger("agent_orchestrator.providers")


async def run_doctor(core: Core, caller: Principal, command: Doctor) -> DoctorReport:
    """Return all findings for an administrator."""
    tokens = await core.store.read(lambda view: _tokens(view, caller))
    findings = await provider_findings(core.config)
    findings += _store(core, await core.store.problems())
    since = core.now() - GROWTH_PERIOD
    growth = await core.store.read(lambda view: view.newest_events(since=since, limit=MAX_SAMPLE))
    findings += growth_findings(growth, core.config, core.now())
    daemons = await core.store.read(lambda view: view.daemons())
    findings += [
        Finding("warning", "clock", problem.message, "synchronize the clocks of the machines: NTP")
        for problem in clock_problems(daemons)
    ]
    findings += token_findings(tokens, core.now())
    failed = await core.store.read(
        lambda view: view.notices(state="failed", order="newest", limit=MAX_FAILED)
    )
    findings += notice_findings(failed, core.now())
    for query in (core.config.host.findings, core.config.findings):
        findings += await anyio.to_thread.run_sync(query)
    return doctor_report(findings)


def growth_findings(growth: Growth, options: EngineOptions, now: datetime) -> Iterator[Finding]:
    """Yield a finding about what the events of a year will weigh, if the newest ones are typical."""
    if not growth.count:
        return
    # Few events may have come at once in a log that has just begun.
    is_new = growth.count < MAX_SAMPLE / 2
    period = max(now - growth.since, SHORTEST_PERIOD if is_new else timedelta(seconds=1))
    size = (growth.size + growth.count * EVENT_OVERHEAD) * (YEAR / period)
    message = f"at the present pace, a year of events weighs {_size_text(size)}"
    if any((options.retain_days, options.retain_events, options.retain_bytes)):
        yield Finding("ok", "database", f"{message}; the limits of retention delete older ones")
    elif size < MUCH:
        yield Finding("ok", "database", message)
    else:
        hint = "set retain_days, or prune sessions; see docs/operations.md"
        yield Finding("note", "database", f"{message}, and all are kept", hint)


def _size_text(size: float) -> str:
    if size < 1e8:
        return "less than 100 MB"
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:,.0f} GB"


def notice_findings(failed: Iterable[Notice], now: datetime) -> Iterator[Finding]:
    """Yield a finding for the first notice that failed a short time ago and was no test."""
    for notice in failed:
        if notice.kind != "test" and now - notice.updated_at <= RECENT_FAILURE_AGE:
            yield Finding(
                "warning",
                "notices",
                f"a notice was not sent to {notice.target}: {notice.error}",
                "agentctl notify list --failed",
            )
            return


def doctor_report(findings: Iterable[Finding]) -> DoctorReport:
    """Return the report of some findings."""
    all_findings = tuple(findings)
    return DoctorReport(all(finding.level != "error" for finding in all_findings), all_findings)


async def provider_findings(config: EngineConfig) -> list[Finding]:
    """Return findings about the availability of each provider, and those of its runner."""
    findings = [_provider(provider) for provider in await provider_statuses(config)]
    return findings + await anyio.to_thread.run_sync(runner_findings, config)


def runner_findings(config: EngineConfig) -> list[Finding]:
    """Return the findings of the runners, and one for each whose agents have no sandbox. Blocks."""
    findings: list[Finding] = []
    for name, provider in config.providers.items():
        about, runner = f"provider {name}", provider.runner
        capabilities = capabilities_of(runner)
        if not (capabilities.confine or capabilities.protect):
            findings.append(
                Finding(
                    "note",
                    about,
                    f"its agents have no sandbox: they can {possible_without_sandbox()}",
                    "run agentd as a dedicated user or in a container",
                    security=True,
                )
            )
        if isinstance(runner, SelfChecking):
            try:
                with use_host(config.host):
                    findings.extend(runner.findings(about, config.agent_env(provider)))
            except Exception as error:
                logger.exception("checking runner %s failed", runner.name)
                findings.append(Finding("warning", about, f"checking it failed: {error}"))
    return findings


def _provider(provider: ProviderStatus) -> Finding:
    about = f"provider {provider.name}"
    version = f" {provider.version}" if provider.version else ""
    if provider.available:
        message = f"ready: {provider.runner}{version}"
        if provider.reason:
            return Finding("warning", about, f"{message}, but {provider.reason}")
        return Finding("ok", about, message)
    return Finding(
        "error" if provider.default else "warning",
        about,
        provider.reason or "not available",
        "fix it: it is the default provider"
        if provider.default
        else "fix it, or remove it from the configuration",
    )


def _store(core: Core, problems: Sequence[Problem]) -> list[Finding]:
    store = core.store
    where = f" {store.location}" if store.location else ""
    findings = [
        Finding(
            "error", "database", f"{problem.code}: {problem.message}", "see docs/reliability.md"
        )
        for problem in problems
    ]
    return findings or [
        Finding("ok", "database", f"{store.backend}{where}, schema {store.schema_version}, open")
    ]


def _tokens(view: View, caller: Principal) -> list[AccessToken]:
    require_admin(view, caller)
    tokens: list[AccessToken] = []
    while page := view.tokens(after=tokens[-1].id if tokens else None, limit=_PAGE_SIZE):
        tokens += page
    return tokens


def token_findings(tokens: Sequence[AccessToken], now: datetime) -> list[Finding]:
    """Return the findings about valid named tokens."""
    valid = [
        token
        for token in tokens
        if token.revoked_at is None and (token.expires_at is None or token.expires_at > now)
    ]
    findings = list(_old_token_findings(valid, now))
    if valid and not findings:
        number = "1 named token is" if len(valid) == 1 else f"{len(valid)} named tokens are"
        findings.append(Finding("ok", "tokens", f"{number} valid", security=True))
    return findings


def _old_token_findings(tokens: Sequence[AccessToken], now: datetime) -> Iterator[Finding]:
    for token in tokens:
        age = now - token.created_at
        if token.expires_at is None and ("admin" in token.scopes or age >= OLD_TOKEN_AGE):
            kind = "is an administrator's and " if "admin" in token.scopes else ""
            yield Finding(
                "warning" if age >= OLD_TOKEN_AGE else "note",
                f"token {token.id}",
                f"{token.name!r} {kind}never expires; it is {max(0, age.days)} days old",
                f"agentctl token revoke {token.id}, and create one with --expires-in-s",
                security=True,
            )
