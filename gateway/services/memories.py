"""Memories: note down, change, forget, list. They are their agent's, and outlive its windows."""

import asyncio

from gateway.errors import Invalid
from gateway.models.agents import Window
from gateway.models.base import new_id, now
from gateway.models.memories import EditMemory, Indexed, Memory, MemoryDeleted, MemoryFilter, Remember, Wording
from gateway.models.pages import Page, PageRequest
from gateway.stores.base import Store
from gateway.stores.memories import MemoryChanged

_TRIES = 5
_LARGE_CHARACTERS = 10_000


class MemoryService:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def remember(self, window: Window, request: Remember) -> Memory:
        at = now()
        if request.expires_at is not None and request.expires_at <= at:
            raise Invalid("expires_at: must lie ahead.", field="expires_at")
        said = Wording(since=at, **request.model_dump(exclude={"source_session_id"}))
        memory = Memory(
            id=new_id("mem"), agent_uid=window.agent_uid, agent_id=window.agent_id, window_id=window.id,
            source_session_id=request.source_session_id, created_at=at, now=said,
        )  # fmt: skip
        await self._store.put_memory(memory, await _indexed(memory))
        return memory

    async def get(self, agent_uid: str, memory_id: str) -> Memory:
        """Raises `MemoryNotFound`."""
        return await self._store.get_memory(agent_uid, memory_id)

    async def list(self, filter_: MemoryFilter, page: PageRequest) -> Page[Memory]:
        return await self._store.list_memories(filter_, page)

    async def edit(self, agent_uid: str, memory_id: str, request: EditMemory) -> Memory:
        """What it said before is found by who asks for that time. Raises `MemoryNotFound`, `MemoryChanged`."""
        given = {name: getattr(request, name) for name in request.model_fields_set}
        for name, value in given.items():
            if value is None and name not in ("title", "expires_at"):
                raise Invalid(f"{name}: can't be null.", field=name)
        for _ in range(_TRIES):
            memory = await self._store.get_memory(agent_uid, memory_id)
            if all(getattr(memory.now, name) == value for name, value in given.items()):
                return memory
            changed = memory.reworded(given, now())
            try:
                await self._store.change_memory(changed, await _indexed(changed))
            except MemoryChanged:
                continue  # somebody else's change came first: this one is made on top of it
            return changed
        raise MemoryChanged(memory_id)

    async def forget(self, agent_uid: str, memory_id: str) -> MemoryDeleted:
        """Raises `MemoryNotFound`."""
        at = now()
        await self._store.delete_memory(agent_uid, memory_id, at)
        return MemoryDeleted(id=memory_id, deleted_at=at)


async def _indexed(memory: Memory) -> Indexed:
    large = sum(len(said.content) for said in (memory.now, *memory.past)) > _LARGE_CHARACTERS
    return await asyncio.to_thread(Indexed.of, memory) if large else Indexed.of(memory)
