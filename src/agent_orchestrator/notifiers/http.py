"""HTTP requests to the receivers of notices. Their answers are not trusted: only the status counts."""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Final, Self

import httpx
from attrs import define, field

from agent_orchestrator.ports.channel import SendFailed

_FINAL: Final = frozenset({400, 401, 403, 405, 413, 414})
"""Statuses that another attempt does not change."""

MAX_RETRY_AFTER_S: Final = 86_400.0


@define(eq=False)
class HttpChannel:
    """The base class of channels over HTTP. Redirects are not followed, answers are not read, and cookies are not
    kept. A proxy from the environment is used. The engine limits the time.
    """

    _client: httpx.AsyncClient | None = field(default=None, init=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes = b"",
        *,
        accepted: frozenset[int] = frozenset(),
        gone: frozenset[int] = frozenset({410}),
    ) -> None:
        """Send a request.

        :param accepted: statuses that mean success, besides 2xx.
        :param gone: statuses that mean that the receiver no longer exists.
        :raises SendFailed: if the status is another one, or there is no answer.
        """
        if self._client is None:
            # Loading the certificates takes 20 ms: not before there is something to send.
            self._client = httpx.AsyncClient(follow_redirects=False, timeout=None)  # noqa: S113
        try:
            async with self._client.stream(
                method, url, headers={"Accept-Encoding": "identity", **headers}, content=content
            ) as response:
                status, waits = response.status_code, response.headers.get("Retry-After")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # The message of an error may contain the URL, which may be a secret.
            raise SendFailed(f"cannot be reached ({type(error).__name__})") from None
        finally:
            self._client.cookies.clear()
        if 200 <= status < 300 or status in accepted:
            return
        if 300 <= status < 400:
            raise SendFailed(f"answered {status}; redirects are not followed", is_final=True)
        raise SendFailed(
            f"answered {status}",
            is_final=status in _FINAL,
            is_gone=status in gone,
            retry_after_s=_seconds(waits, response.headers.get("Date")),
        )


def _seconds(retry_after: str | None, date: str | None) -> float | None:
    """Return the seconds in a header ``Retry-After``; None without a valid one."""
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        seconds = parsedate_to_datetime(text) - parsedate_to_datetime(date or "")
    except (ValueError, TypeError):
        return None
    return min(max(seconds.total_seconds(), 0.0), MAX_RETRY_AFTER_S)
