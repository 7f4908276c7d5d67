"""Calls on their way to the gateway: sent, sent again while that makes sense, and their answers read."""

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import copy
from importlib.metadata import version
from typing import TypeVar

import httpx2
from pydantic import BaseModel

from gateway.client.asynchronous.waiting import Http, HttpTransport, sleep
from gateway.client.calls import Call, address, is_on_this_machine, secret
from gateway.client.documents import read
from gateway.client.errors import GatewayError, NotFound, Unreadable, refusal
from gateway.client.patience import Attempts, Patience, unreachable

Model = TypeVar("Model", bound=BaseModel)

# A machine that vanishes in mid-run says nothing: the system asks after it, and the call fails within a minute.
_ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4))
    if hasattr(socket, name)
]


class AsyncTransport:
    """One gateway, over connections that are kept; safe to share."""

    def __init__(
        self, url: str | None = None, key: str | None = None, *, timeout_s: float = 60.0,
        patience: Patience | None = None, verify: ssl.SSLContext | bool = True,
    ) -> None:  # fmt: skip
        self.url = address(url)
        self.patience = patience or Patience()
        self._headers: dict[str, str] = {}
        trust_env = not is_on_this_machine(self.url)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=32)
        headers = {"User-Agent": f"session-gateway-python/{version('session-gateway')}", "Accept-Encoding": "identity"}
        if (token := secret(key)) is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._timeout = httpx2.Timeout(timeout_s, connect=min(timeout_s, 10.0))
        self._endless = httpx2.Timeout(timeout_s, connect=min(timeout_s, 10.0), read=None)
        self.http = Http(
            base_url=self.url,
            headers=headers,
            timeout=self._timeout,
            trust_env=trust_env,
            verify=verify,
            limits=limits,
            transport=HttpTransport(verify=verify, trust_env=trust_env, limits=limits, socket_options=_ALIVE),
        )

    def acting(self, window_token: str) -> "AsyncTransport":
        """The same connections, inside an agent's window."""
        other = copy(self)
        other._headers = self._headers | {"X-Session-Token": window_token}
        return other

    def with_patience(self, patience: Patience) -> "AsyncTransport":
        other = copy(self)
        other.patience = patience
        return other

    async def close(self) -> None:
        await self.http.aclose()

    async def ask(self, kind: type[Model], call: Call, gone: Callable[[], Model] | None = None) -> Model:
        """The document that is answered.

        `gone` is answered in its place when a deletion finds nothing because an earlier attempt has done it.
        Raises `GatewayError`, `Unreachable`, `Unreadable`.
        """
        body = await self.send(call, b"" if gone is not None else None)
        if gone is not None and not body:
            return gone()
        try:
            return read(kind, body)
        except ValueError as error:
            raise Unreadable(f"{self.url}{call.path} did not answer as a gateway does: {error}") from None

    async def send(self, call: Call, gone: bytes | None = None) -> bytes:
        """The body of the answer."""
        attempts = Attempts(self.patience, call.repeatable)
        while True:
            attempts.begin()
            failure: Exception
            try:
                answer = await self.http.send(self.request(call))
                if answer.is_success:
                    return answer.content
                failure = refusal(answer.status_code, answer.content, answer.headers.get("Retry-After"))
                if gone is not None and attempts.lost and isinstance(failure, NotFound):
                    return gone
            except httpx2.TransportError as error:
                failure = error
            await self.wait_after(attempts, failure)

    async def wait_after(self, attempts: Attempts, failure: Exception) -> None:
        """Until it is time for the next attempt. Raises what the failure is to callers if there is to be none."""
        wait_s = attempts.wait_after(failure)
        if wait_s is None:
            if isinstance(failure, GatewayError):
                raise failure
            raise unreachable(self.url, failure, attempts) from failure
        await sleep(wait_s)

    def request(
        self, call: Call, content: AsyncIterator[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> httpx2.Request:
        return self.http.build_request(
            call.method, call.path, params=call.query or None, content=call.body if content is None else content,
            headers={**self._headers, **call.headers, **(headers or {})},
            timeout=self._endless if call.waits else self._timeout,
        )  # fmt: skip

    async def connect(self, request: httpx2.Request) -> httpx2.Response:
        """An answer whose body is still to be read; whoever asks closes it. Raises `GatewayError`."""
        answer = await self.http.send(request, stream=True)
        if answer.is_success:
            return answer
        try:
            raise refusal(answer.status_code, await answer.aread(), answer.headers.get("Retry-After"))
        finally:
            await answer.aclose()

    @asynccontextmanager
    async def connected(self, request: httpx2.Request) -> AsyncIterator[httpx2.Response]:
        answer = await self.connect(request)
        try:
            yield answer
        finally:
            await answer.aclose()
