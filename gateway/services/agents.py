"""Agents: create, look up, change, delete, bring back."""

import contextlib
from collections.abc import Sequence
from uuid import uuid4

from gateway.errors import AgentExists, AgentNotFound, Invalid
from gateway.models.agents import Agent, AgentDeleted, CreateAgent, UpdateAgent
from gateway.models.base import new_id, now
from gateway.models.pages import Page, PageRequest
from gateway.models.sessions import SessionAgent
from gateway.stores.base import Store


class AgentService:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, request: CreateAgent, caller: str) -> Agent:
        """Raises `AgentExists`."""
        at = now()
        agent = Agent(
            uid=uuid4().hex, id=request.id or new_id("agent"), name=request.name, model=request.model,
            config=request.config, created_by=caller, created_at=at, updated_at=at,
        )  # fmt: skip
        await self._store.create_agent(agent)
        return agent

    async def get(self, agent_id: str) -> Agent:
        """Raises `AgentNotFound`."""
        return await self._store.get_agent(agent_id)

    async def get_or_create(self, agent_id: str, caller: str) -> Agent:
        with contextlib.suppress(AgentNotFound):
            return await self._store.get_agent(agent_id)
        with contextlib.suppress(AgentExists):  # somebody else was faster
            return await self.create(CreateAgent(id=agent_id, name=agent_id), caller)
        return await self._store.get_agent(agent_id)

    async def list(self, page: PageRequest, created_by: str | None = None) -> Page[Agent]:
        return await self._store.list_agents(page, created_by)

    async def update(self, agent_id: str, request: UpdateAgent) -> Agent:
        given = request.model_dump(include=request.model_fields_set)
        for name, value in given.items():
            if value is None and name != "model":
                raise Invalid(f"{name}: can't be null.", field=name)
        return await self._store.update_agent((await self.get(agent_id)).uid, given, now())

    async def delete(self, agent_id: str, *, purge: bool = False) -> AgentDeleted:
        """End its window and soft-delete it, its memories with it; `purge` removes both for good."""
        deleted = await self._store.delete_agent((await self.get(agent_id)).uid, now())
        assert deleted.deleted_at is not None
        if purge:
            await self._store.purge_agent(deleted.uid)
        return AgentDeleted(id=agent_id, deleted_at=deleted.deleted_at)

    async def undelete(self, agent_id: str, owner: str | None = None) -> Agent:
        """The last one deleted under this id (of those that `owner` made), with its memories.

        Raises `AgentExists`, `AgentNotFound`.
        """
        return await self._store.undelete_agent(agent_id, now(), owner)


async def named(store: Store, agent_ids: Sequence[str]) -> list[SessionAgent]:
    """The agents of a session as its document shows them; of one that is not known, its id alone."""
    found = []
    for agent_id in dict.fromkeys(agent_ids):
        try:
            agent = await store.get_agent(agent_id)
        except AgentNotFound:
            found.append(SessionAgent(id=agent_id))
        else:
            found.append(SessionAgent(id=agent_id, name=agent.name, model=agent.model))
    return found
