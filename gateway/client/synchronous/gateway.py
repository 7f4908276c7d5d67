"""A gateway, as Python sees it."""

# Made of asynchronous/gateway.py by deploy/sync_client.py: change that.

import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from gateway.client.calls import delete, file_body, get, given, post
from gateway.client.documents import Run
from gateway.client.patience import Patience
from gateway.client.synchronous.agents import Agent, Agents, Window
from gateway.client.synchronous.executions import checked
from gateway.client.synchronous.keys import Keys, audit_pages
from gateway.client.synchronous.pages import Pages
from gateway.client.synchronous.sessions import Session, session_pages
from gateway.client.synchronous.snapshots import ImportedSnapshots
from gateway.client.synchronous.transport import Transport
from gateway.models.agents import CurrentWindow
from gateway.models.audit import AuditView
from gateway.models.queries import Health, KernelsAnswer, Ready
from gateway.models.sessions import Deleted, DeletedMany, Resources, SessionView, Setup
from gateway.states import State


class Gateway:
    """A gateway, and whoever asks it. Used as a context manager, connections are closed at the end.

    `url` is `GATEWAY_URL` or this machine's unless it is given, `key` is `GATEWAY_KEY`. A call that is cut off, or
    refused for now, is sent again as long as `patience` lasts; the gateway does it once. Calls raise `GatewayError`,
    a class for each code, or `Unreachable`.
    """

    def __init__(
        self, url: str | None = None, key: str | None = None, *, timeout_s: float = 60.0,
        patience: Patience | None = None, verify: ssl.SSLContext | bool = True,
    ) -> None:  # fmt: skip
        self._hold(Transport(url, key, timeout_s=timeout_s, patience=patience, verify=verify))

    @classmethod
    def over(cls, transport: Transport) -> "Gateway":
        """The gateway at the other end of connections that are there already."""
        gateway = cls.__new__(cls)
        gateway._hold(transport)
        return gateway

    def _hold(self, transport: Transport) -> None:
        self._transport = transport
        self.agents = Agents(transport)
        self.keys = Keys(transport)
        self.snapshots = ImportedSnapshots(transport)

    def __repr__(self) -> str:
        return f"<Gateway at {self.url}>"

    @property
    def url(self) -> str:
        return self._transport.url

    def __enter__(self) -> "Gateway":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    # Sessions

    def create(
        self, session_id: str | None = None, *, name: str | None = None, language: str | None = None,
        kernel: str | None = None, image_id: str | None = None, persistent: bool | None = None,
        labels: Mapping[str, str] | None = None, data: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None, starting_prompt: str | None = None,
        agent_ids: Sequence[str] | None = None, waiting_timeout_seconds: float | None = None,
        default_timeout: float | None = None, env: Mapping[str, str] | None = None,
        setup: Setup | Mapping[str, Any] | None = None, resources: Resources | Mapping[str, Any] | None = None,
        allow_internet_access: bool | None = None, allow_public_access: bool | None = None,
        template: str | None = None, workspace: str | None = None,
    ) -> Session:  # fmt: skip
        """Create a session. Raises `SessionExists` if the id is taken."""
        body = given(
            session_id=session_id, name=name, language=language, kernel=kernel, image_id=image_id,
            persistent=persistent, labels=labels, data=data, metadata=metadata, starting_prompt=starting_prompt,
            agent_ids=agent_ids, waiting_timeout_seconds=waiting_timeout_seconds, default_timeout=default_timeout,
            env=env, setup=setup, resources=resources, allowInternetAccess=allow_internet_access,
            allowPublicAccess=allow_public_access, template=template, workspace=workspace,
        )  # fmt: skip
        made = self._transport.ask(SessionView, post("/api/sessions", body))
        return Session(self._transport, made.id, made)

    def session(self, session_id: str) -> Session:
        """The session of this id, whether it is there or not: nothing is asked."""
        return Session(self._transport, session_id)

    def get(self, session_id: str) -> Session:
        """The session of this id, with its document. Raises `SessionNotFound`."""
        session = self.session(session_id)
        session.info()
        return session

    @contextmanager
    def temporary(self, session_id: str | None = None, **fields: Any) -> Iterator[Session]:
        """A session, made as `create` does, that is gone for good at the end of the block."""
        session = self.create(session_id, **fields)
        try:
            yield session
        finally:
            session.delete(purge=True)

    def list(
        self, *, label_selector: str | None = None, labels: Mapping[str, str] | None = None,
        state: State | str | None = None, language: str | None = None, created_by: str | None = None,
        parent_id: str | None = None, name: str | None = None, include_deleted: bool = False, limit: int = 100,
    ) -> Pages[Session]:  # fmt: skip
        """Sessions that match all that is given, newest first; `limit` is how many are fetched at once."""
        query = given(
            label_selector=label_selector, labels=None if labels is None else dict(labels), state=state,
            language=language, created_by=created_by, parent_id=parent_id, name=name,
            include_deleted=include_deleted or None, limit=limit,
        )  # fmt: skip
        return session_pages(self._transport, "/api/sessions", query)

    def delete(self, session: Session | str, *, purge: bool = False) -> Deleted:
        """Delete a session; `purge` removes its files for good."""
        return (self.session(session) if isinstance(session, str) else session).delete(purge=purge)

    def delete_all(self, *, label_selector: str | None = None, labels: Mapping[str, str] | None = None) -> DeletedMany:
        """Delete all of the caller's own sessions that match; all of them if nothing is given."""
        query = given(label_selector=label_selector, labels=None if labels is None else dict(labels))
        return self._transport.ask(DeletedMany, delete("/api/sessions", **query))

    def undelete(self, session_id: str) -> Session:
        session = self.session(session_id)
        session.undelete()
        return session

    def execute(
        self, code: str, *, language: str | None = None, kernel: str | None = None, timeout: float | None = None,
        stdin: str | None = None, files: Mapping[str, str | bytes] | None = None,
        env: Mapping[str, str] | None = None, check: bool = False,
    ) -> Run:  # fmt: skip
        """Run code once, in a session of its own that is gone afterwards."""
        body = given(
            code=code, language=language, kernel=kernel, timeout=timeout, stdin=stdin, env=env,
            files=None if files is None else {path: file_body(content) for path, content in files.items()},
        )  # fmt: skip
        run = self._transport.ask(Run, post("/api/execute", body))
        return checked(run) if check else run

    # Agents

    def agent(self, agent_id: str) -> Agent:
        """The agent of this id, whether it is there or not: nothing is asked."""
        return Agent(self._transport, agent_id)

    def window(self, token: str) -> Window:
        """A window that was opened earlier, by its token. Raises `WindowExpired`."""
        current = self._transport.acting(token).ask(CurrentWindow, get("/api/session/current"))
        return Window(self._transport, token, current)

    # The gateway itself

    def audit(
        self, *, actor: str | None = None, action: str | None = None, session_id: str | None = None,
        outcome: str | None = None, request_id: str | None = None, since: datetime | None = None,
        until: datetime | None = None, limit: int = 100,
    ) -> Pages[AuditView]:  # fmt: skip
        """Who did what, newest first; for admins."""
        query = given(
            actor=actor, action=action, session_id=session_id, outcome=outcome, request_id=request_id, to=until,
            limit=limit,
        )  # fmt: skip
        return audit_pages(self._transport, query | given(**{"from": since}))

    def kernels(self) -> KernelsAnswer:
        """What can run here."""
        return self._transport.ask(KernelsAnswer, get("/api/kernels"))

    def health(self) -> Health:
        return self._transport.ask(Health, get("/api/health"))

    def ready(self) -> Ready:
        """Whether store and kernels are usable. Raises `Unavailable` if they stay away."""
        return self._transport.ask(Ready, get("/api/ready"))
