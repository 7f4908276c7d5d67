"""What every store promises of agents and their windows."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from gateway.errors import Conflict, NotFound
from gateway.models.agents import Agent, EndReason, Window
from gateway.models.pages import Page, PageRequest


class WindowNotFound(NotFound):
    code = "window_not_found"

    def __init__(self) -> None:
        super().__init__("There is no such window, or another has taken its place.")


class ExpiryMoved(Conflict):
    code = "expiry_moved"

    def __init__(self) -> None:
        super().__init__("The window was extended or ended meanwhile.")


class AgentStore(Protocol):
    """Agents by `uid`, each with its last window; an agent and its window change together."""

    async def create_agent(self, agent: Agent) -> None:
        """Raises `AgentExists` if a live one has its id."""
        ...

    async def get_agent(self, agent_id: str) -> Agent:
        """The live agent with this id. Raises `AgentNotFound`."""
        ...

    async def list_agents(self, page: PageRequest, created_by: str | None = None) -> Page[Agent]:
        """The live ones (that `created_by` made), newest first (`created_at`, then `uid`). Raises `BadPageToken`."""
        ...

    async def update_agent(self, uid: str, fields: dict[str, Any], at: datetime) -> Agent:
        """Set `name`, `model` or `config`. Raises `AgentNotFound` if not live."""
        ...

    async def delete_agent(self, uid: str, at: datetime) -> Agent:
        """Soft-delete, end its window, free the id. Raises `AgentNotFound` if not live."""
        ...

    async def undelete_agent(self, agent_id: str, at: datetime, owner: str | None = None) -> Agent:
        """Bring back the last one deleted under this id; given an `owner`, the last of those that they made.

        Raises `AgentExists` if it is taken, `AgentNotFound`; an owner who made no agent of this id, live or deleted,
        learns nothing of those of others.
        """
        ...

    async def purge_agent(self, uid: str) -> None:
        """Remove it and its memories for good, whether it is live or not."""
        ...

    async def open_window(self, window: Window) -> None:
        """The one window of its agent from now on, whatever was before. Raises `AgentNotFound` if that is not live."""
        ...

    async def get_window(self, window_id: str) -> Window:
        """The last window of an agent, open or over. Raises `WindowNotFound` once another has taken its place."""
        ...

    async def move_expiry(self, window_id: str, before: datetime, after: datetime) -> Window:
        """Let it expire at `after` instead of `before`. Raises `ExpiryMoved` if that is not so, or it is over."""
        ...

    async def end_window(self, window_id: str, at: datetime, reason: EndReason) -> Window:
        """End it, unless it is over; one that expired meanwhile has `expired`. Raises `WindowNotFound`."""
        ...

    async def end_expired(self, at: datetime) -> None:
        """End every window whose expiry has come, so that no clock that is set back opens it again."""
        ...

    async def list_windows(self, agent_ids: Sequence[str]) -> list[Window]:
        """The last windows of all agents, live or deleted, that go by these ids."""
        ...
