"""A gateway, as Python sees it."""

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from gateway.client.asynchronous.agents import AsyncAgent, AsyncAgents, AsyncWindow
from gateway.client.asynchronous.executions import checked
from gateway.client.asynchronous.keys import AsyncKeys, audit_pages
from gateway.client.asynchronous.pages import AsyncPages
from gateway.client.asynchronous.sessions import AsyncSession, session_pages
from gateway.client.asynchronous.snapshots import AsyncImportedSnapshots
from gateway.client.asynchronous.transport import AsyncTransport
from gateway.client.calls import delete, file_body, get, given, post
from gateway.client.documents import Run
from gateway.client.patience import Patience
from gateway.models.agents import CurrentWindow
from gateway.models.audit import AuditView
from gateway.models.queries import Health, KernelsAnswer, Ready
from gateway.models.sessions import Deleted, DeletedMany, Resources, SessionView, Setup
from gateway.states import State


class AsyncGateway:
    """A gateway, and whoever asks it. Used as a context manager, connections are closed at the end.

    `url` is `GATEWAY_URL` or this machine's unless it is given, `key` is `GATEWAY_KEY`. A call that is cut off, or
    refused for now, is sent again as long as `patience` lasts; the gateway does it once. Calls raise `GatewayError`,
    a class for each code, or `Unreachable`.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, timeout_s: float = 60.0,
        patience: Patience | None = None, verify: ssl.SSLContext | bool = True,
    ) -> None:  # fmt: skip
        self._hold(AsyncTransport(url, key, timeout_s=timeout_s, patience=patience, verify=verify))

    @classmethod
    def over(cls, transport: AsyncTransport) -> "AsyncGateway":
        """The gateway at the other end of connections that are there already."""
        gateway = cls.__new__(cls)
        gateway._hold(transport)
        return gateway

    def _hold(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self.agents = AsyncAgents(transport)
        self.keys = AsyncKeys(transport)
        self.snapshots = AsyncImportedSnapshots(transport)

    def __repr__(self) -> str:
        return f"<Gateway at {self.url}>"

    @property
    def url(self) -> str:
        return self._transport.url

    async def __aenter__(self) -> "AsyncGateway":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()

    # Sessions

    async def create(
        self, session_id: str | None = None, *, name: str | None = None, language: str | None = None,
        kernel: str | None = None, image_id: str | None = None, persistent: bool | None = None,
        labels: Mapping[str, str] | None = None, data: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None, starting_prompt: str | None = None,
        agent_ids: Sequence[str] | None = None, waiting_timeout_seconds: float | None = None,
        default_timeout: float | None = None, env: Mapping[str, str] | None = None,
        setup: Setup | Mapping[str, Any] | None = None, resources: Resources | Mapping[str, Any] | None = None,
        allow_internet_access: bool | None = None, allow_public_access: bool | None = None,
        template: str | None = None, workspace: str | None = None,
    ) -> AsyncSession:  # fmt: skip
        """Create a session. Raises `SessionExists` if the id is taken."""
        body = given(
            session_id=session_id, name=name, language=language, kernel=kernel, image_id=image_id,
            persistent=persistent, labels=labels, data=data, metadata=metadata, starting_prompt=starting_prompt,
            agent_ids=agent_ids, waiting_timeout_seconds=waiting_timeout_seconds, default_timeout=default_timeout,
            env=env, setup=setup, resources=resources, allowInternetAccess=allow_internet_access,
            allowPublicAccess=allow_public_access, template=template, workspace=workspace,
        )  # fmt: skip
        made = await self._transport.ask(SessionView, post("/api/sessions", body))
        return AsyncSession(self._transport, made.id, made)

    def session(self, session_id: str) -> AsyncSession:
        """The session of this id, whether it is there or not: nothing is asked."""
        return AsyncSession(self._transport, session_id)

    async def get(self, session_id: str) -> AsyncSession:
        """The session of this id, with its document. Raises `SessionNotFound`."""
        session = self.session(session_id)
        await session.info()
        return session

    @asynccontextmanager
    async def temporary(self, session_id: str | None = None, **fields: Any) -> AsyncIterator[AsyncSession]:
        """A session, made as `create` does, that is gone for good at the end of the block."""
        session = await self.create(session_id, **fields)
        try:
            yield session
        finally:
            await session.delete(purge=True)

    def list(
        self, *, label_selector: str | None = None, labels: Mapping[str, str] | None = None,
        state: State | str | None = None, language: str | None = None, created_by: str | None = None,
        parent_id: str | None = None, name: str | None = None, include_deleted: bool = False, limit: int = 100,
    ) -> AsyncPages[AsyncSession]:  # fmt: skip
        """Sessions that match all that is given, newest first; `limit` is how many are fetched at once."""
        query = given(
            label_selector=label_selector, labels=None if labels is None else dict(labels), state=state,
            language=language, created_by=created_by, parent_id=parent_id, name=name,
            include_deleted=include_deleted or None, limit=limit,
        )  # fmt: skip
        return session_pages(self._transport, "/api/sessions", query)

    async def delete(self, session: AsyncSession | str, *, purge: bool = False) -> Deleted:
        """Delete a session; `purge` removes its files for good."""
        return await (self.session(session) if isinstance(session, str) else session).delete(purge=purge)

    async def delete_all(
        self, *, label_selector: str | None = None, labels: Mapping[str, str] | None = None
    ) -> DeletedMany:
        """Delete all of the caller's own sessions that match; all of them if nothing is given."""
        query = given(label_selector=label_selector, labels=None if labels is None else dict(labels))
        return await self._transport.ask(DeletedMany, delete("/api/sessions", **query))

    async def undelete(self, session_id: str) -> AsyncSession:
        session = self.session(session_id)
        await session.undelete()
        return session

    async def execute(
        self, code: str, *, language: str | None = None, kernel: str | None = None, timeout: float | None = None,  # noqa: ASYNC109
        stdin: str | None = None, files: Mapping[str, str | bytes] | None = None,
        env: Mapping[str, str] | None = None, check: bool = False,
    ) -> Run:  # fmt: skip
        """Run code once, in a session of its own that is gone afterwards."""
        body = given(
            code=code, language=language, kernel=kernel, timeout=timeout, stdin=stdin, env=env,
            files=None if files is None else {path: file_body(content) for path, content in files.items()},
        )  # fmt: skip
        run = await self._transport.ask(Run, post("/api/execute", body))
        return checked(run) if check else run

    # Agents

    def agent(self, agent_id: str) -> AsyncAgent:
        """The agent of this id, whether it is there or not: nothing is asked."""
        return AsyncAgent(self._transport, agent_id)

    async def window(self, token: str) -> AsyncWindow:
        """A window that was opened earlier, by its token. Raises `WindowExpired`."""
        current = await self._transport.acting(token).ask(CurrentWindow, get("/api/session/current"))
        return AsyncWindow(self._transport, token, current)

    # The gateway itself

    def audit(
        self, *, actor: str | None = None, action: str | None = None, session_id: str | None = None,
        outcome: str | None = None, request_id: str | None = None, since: datetime | None = None,
        until: datetime | None = None, limit: int = 100,
    ) -> AsyncPages[AuditView]:  # fmt: skip
        """Who did what, newest first; for admins."""
        query = given(
            actor=actor, action=action, session_id=session_id, outcome=outcome, request_id=request_id, to=until,
            limit=limit,
        )  # fmt: skip
        return audit_pages(self._transport, query | given(**{"from": since}))

    async def kernels(self) -> KernelsAnswer:
        """What can run here."""
        return await self._transport.ask(KernelsAnswer, get("/api/kernels"))

    async def health(self) -> Health:
        return await self._transport.ask(Health, get("/api/health"))

    async def ready(self) -> Ready:
        """Whether store and kernels are usable. Raises `Unavailable` if they stay away."""
        return await self._transport.ask(Ready, get("/api/ready"))
