"""Agents, the windows in which they act, and what they remember."""

# Made of asynchronous/agents.py by deploy/sync_client.py: change that.

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gateway.client.calls import delete, get, given, part, patch, post, put
from gateway.client.documents import Page, read
from gateway.client.synchronous.pages import Pages
from gateway.client.synchronous.transport import Transport
from gateway.models.agents import (
    Activated,
    AgentDeleted,
    AgentList,
    AgentView,
    CurrentWindow,
    Deactivated,
)  # fmt: skip
from gateway.models.base import now
from gateway.models.memories import Answered, MemoryDeleted, MemoryList, MemoryView, Recalled

if TYPE_CHECKING:
    from gateway.client.synchronous.gateway import Gateway


class Memories:
    """What an agent remembers, as long as its window is open."""

    def __init__(self, transport: Transport, agent_id: str) -> None:
        self._transport = transport
        self._path = f"/api/agents/{part(agent_id)}"

    def remember(
        self, content: str, *, type: str | None = None, title: str | None = None, confidence: float | None = None,  # noqa: A002
        tags: Sequence[str] | None = None, source_session_id: str | None = None, expires_at: datetime | None = None,
    ) -> MemoryView:  # fmt: skip
        """Note something down."""
        body = given(
            content=content, type=type, title=title, confidence=confidence, tags=tags,
            source_session_id=source_session_id, expires_at=expires_at,
        )  # fmt: skip
        return self._transport.ask(MemoryView, post(f"{self._path}/remember", body))

    def recall(
        self, query: str, *, limit: int = 10, min_score: float | None = None, type: str | None = None,  # noqa: A002
        tags: Sequence[str] | None = None, since: datetime | None = None, until: datetime | None = None,
        as_of: datetime | None = None, min_confidence: float | None = None,
    ) -> Recalled:  # fmt: skip
        """Memories that speak of it, the best first; with `as_of`, what was known at that time."""
        body = given(
            query=query, limit=limit, min_score=min_score, type=type, tags=tags, since=since, until=until,
            as_of=as_of, min_confidence=min_confidence,
        )  # fmt: skip
        return self._transport.ask(Recalled, post(f"{self._path}/recall", body))

    def answer(
        self, question: str, *, limit: int | None = None, type: str | None = None,  # noqa: A002
        tags: Sequence[str] | None = None, as_of: datetime | None = None,
    ) -> Answered:  # fmt: skip
        """Answer a question from memories, which the answer cites."""
        body = given(question=question, limit=limit, type=type, tags=tags, as_of=as_of)
        return self._transport.ask(Answered, post(f"{self._path}/answer", body))

    def list(
        self, *, type: str | None = None, tags: Sequence[str] | None = None, since: datetime | None = None,  # noqa: A002
        until: datetime | None = None, min_confidence: float | None = None, limit: int = 100,
    ) -> Pages[MemoryView]:  # fmt: skip
        """Newest first; `limit` is how many are fetched at once."""
        query = given(
            type=type, tags=None if tags is None else list(tags), since=since, until=until,
            min_confidence=min_confidence, limit=limit,
        )  # fmt: skip

        def parse(body: bytes) -> Page[MemoryView]:
            found = read(MemoryList, body)
            return Page(found.memories, found.total_count, found.next_token)

        return Pages(self._transport, f"{self._path}/memories", query, parse)

    def get(self, memory_id: str) -> MemoryView:
        return self._transport.ask(MemoryView, get(f"{self._path}/memories/{part(memory_id)}"))

    def edit(
        self, memory_id: str, *, content: str | None = None, type: str | None = None, title: str | None = None,  # noqa: A002
        confidence: float | None = None, tags: Sequence[str] | None = None, expires_at: datetime | None = None,
    ) -> MemoryView:  # fmt: skip
        """Change what is given; what it said before stays known to `as_of`."""
        body = given(
            content=content, type=type, title=title, confidence=confidence, tags=tags, expires_at=expires_at
        )  # fmt: skip
        return self._transport.ask(MemoryView, patch(f"{self._path}/memories/{part(memory_id)}", body))

    def forget(self, memory_id: str) -> MemoryDeleted:
        call = delete(f"{self._path}/memories/{part(memory_id)}")
        return self._transport.ask(MemoryDeleted, call, lambda: MemoryDeleted(id=memory_id, deleted_at=now()))


class Window(Memories):
    """An open window of an agent, and what it remembers. `token` shows it to the gateway.

    `gateway` acts as the agent: it sees and makes the agent's own sessions, for as long as the window is open.
    """

    def __init__(self, transport: Transport, token: str, document: CurrentWindow) -> None:
        super().__init__(transport.acting(token), document.agent_id)
        self.agent_id = document.agent_id
        self.token = token
        self.document = document

    def __repr__(self) -> str:
        return f"<Window of agent {self.agent_id!r} until {self.document.expires_at:%Y-%m-%d %H:%M} UTC>"

    @property
    def gateway(self) -> "Gateway":
        from gateway.client.synchronous.gateway import Gateway

        return Gateway.over(self._transport)

    def info(self) -> CurrentWindow:
        """The window as it is now. Raises `WindowExpired`."""
        self.document = self._transport.ask(CurrentWindow, get("/api/session/current"))
        return self.document

    def extend(self, hours: float | None = None) -> CurrentWindow:
        """Have it end so much later than it would."""
        extended = self._transport.ask(Activated, post("/api/session/extend", given(extend_hours=hours)))
        self.document = extended
        return extended

    def deactivate(self) -> Deactivated:
        """End it; sessions that name the agent go to sleep."""
        return self._transport.ask(Deactivated, post(f"{self._path}/deactivate"))


class Agent:
    """One agent. Making this object asks nothing of the gateway: activating an agent brings it into being."""

    def __init__(self, transport: Transport, agent_id: str, document: AgentView | None = None) -> None:
        self._transport = transport
        self._path = f"/api/agents/{part(agent_id)}"
        self.id = agent_id
        self.document = document

    def __repr__(self) -> str:
        return f"<Agent {self.id!r} at {self._transport.url}>"

    def info(self) -> AgentView:
        self.document = self._transport.ask(AgentView, get(self._path))
        return self.document

    def update(
        self, *, name: str | None = None, model: str | None = None, config: Mapping[str, Any] | None = None
    ) -> AgentView:
        """Change what is given; `config` is replaced as a whole."""
        self.document = self._transport.ask(AgentView, put(self._path, given(name=name, model=model, config=config)))
        return self.document

    def delete(self, *, purge: bool = False) -> AgentDeleted:
        """End its window, and delete it with its memories."""
        call = delete(self._path, purge=purge or None)
        return self._transport.ask(AgentDeleted, call, lambda: AgentDeleted(id=self.id, deleted_at=now()))

    def undelete(self) -> AgentView:
        """Bring it back with its memories; for admins."""
        return self._transport.ask(AgentView, post(f"{self._path}/undelete"))

    def activate(self, hours: float | None = None) -> Window:
        """Open its window, in the place of any that it has."""
        opened = self._transport.ask(Activated, post(f"{self._path}/activate", given(duration_hours=hours)))
        return Window(self._transport, opened.session_token, opened)

    @contextmanager
    def window(self, hours: float | None = None) -> Iterator[Window]:
        """A window that ends with the block."""
        window = self.activate(hours)
        try:
            yield window
        finally:
            window.deactivate()


class Agents:
    """The agents of a gateway."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self, name: str, agent_id: str | None = None, *, model: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> Agent:  # fmt: skip
        """Raises `AgentExists`."""
        body = given(name=name, id=agent_id, model=model, config=config)
        made = self._transport.ask(AgentView, post("/api/agents", body))
        return Agent(self._transport, made.id, made)

    def list(self, *, limit: int = 100) -> Pages[Agent]:
        """Newest first; `limit` is how many are fetched at once."""

        def parse(body: bytes) -> Page[Agent]:
            found = read(AgentList, body)
            agents = [Agent(self._transport, one.id, one) for one in found.agents]
            return Page(agents, found.total_count, found.next_token)

        return Pages(self._transport, "/api/agents", {"limit": limit}, parse)
