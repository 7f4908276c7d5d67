"""What agents remember, over HTTP. All of it needs the agent's active window."""

from typing import TypeVar

from pydantic import BaseModel

from gateway.handlers.agents import AgentHandler
from gateway.handlers.base import Operation
from gateway.models.access import Need
from gateway.models.base import now
from gateway.models.memories import (
    Answered,
    Ask,
    EditMemory,
    MemoriesQuery,
    MemoryDeleted,
    MemoryList,
    MemoryView,
    Recall,
    Recalled,
    Remember,
)  # fmt: skip

Model = TypeVar("Model", bound=BaseModel)

_NO_WINDOW = {401: "No active window: `window_required`, `window_invalid`, `window_expired`"}


class MemoryHandler(AgentHandler):
    """What all that is about memories does alike."""

    def query(self, model: type[Model]) -> Model:
        """The request's query, in which `tags` may stand several times."""
        if len(tags := self.request.query_arguments.get("tags", [])) > 1:
            self.request.query_arguments["tags"] = [b",".join(tags)]
        return super().query(model)


class RememberHandler(MemoryHandler):
    """/api/agents/{agent_id}/remember"""

    operations = {
        "POST": Operation("Note something down", MemoryView, 201, Remember, query=Remember, body_required=False,
                          also=_NO_WINDOW, needs=Need.AGENT)
    }  # fmt: skip

    async def post(self, agent_id: str) -> None:
        window, request = await self.window(agent_id), self.given(Remember)
        self.send(MemoryView.of(await self.services.memories.remember(window, request)), 201)


class RecallHandler(MemoryHandler):
    """/api/agents/{agent_id}/recall"""

    operations = {
        "GET": Operation("Find memories by what they say, the best first", Recalled, query=Recall, also=_NO_WINDOW,
                         needs=Need.AGENT_READ),
        "POST": Operation("Find memories by what they say, the best first", Recalled, body=Recall, query=Recall,
                          body_required=False, also=_NO_WINDOW, needs=Need.AGENT),
    }  # fmt: skip

    async def get(self, agent_id: str) -> None:
        await self._recall(agent_id, self.query(Recall))

    async def post(self, agent_id: str) -> None:
        await self._recall(agent_id, self.given(Recall))

    async def _recall(self, agent_id: str, asked: Recall) -> None:
        window = await self.window(agent_id)
        found, complete = await self.services.recaller.recall(
            asked.filter(window.agent_uid, now()), asked.query, asked.limit, asked.min_score
        )
        views = [MemoryView.of(one.memory, one.said, one.score) for one in found]
        self.send(Recalled(
            memories=views, count=len(views), query=asked.query, as_of=asked.as_of, complete=complete
        ))  # fmt: skip


class AnswerHandler(MemoryHandler):
    """/api/agents/{agent_id}/answer"""

    operations = {
        "POST": Operation("Answer a question from memories, which the answer cites", Answered, body=Ask, query=Ask,
                          body_required=False, also=_NO_WINDOW, needs=Need.AGENT)
    }  # fmt: skip

    async def post(self, agent_id: str) -> None:
        window, asked = await self.window(agent_id), self.given(Ask)
        self.send(await self.services.answers.answer(
            asked.filter(window.agent_uid, now()), asked.question, asked.limit
        ))  # fmt: skip


class MemoriesHandler(MemoryHandler):
    """/api/agents/{agent_id}/memories"""

    operations = {
        "GET": Operation(
            "List memories, newest first", MemoryList, query=MemoriesQuery, also=_NO_WINDOW, needs=Need.AGENT_READ
        )
    }

    async def get(self, agent_id: str) -> None:
        window, query = await self.window(agent_id), self.query(MemoriesQuery)
        found = await self.services.memories.list(query.filter(window.agent_uid, now()), query.page_request)
        views = [MemoryView.of(memory) for memory in found.items]
        self.send(MemoryList(
            memories=views, count=len(views), total_count=found.total_count, next_token=found.next_token
        ))  # fmt: skip


class OneMemoryHandler(MemoryHandler):
    """/api/agents/{agent_id}/memories/{memory_id}"""

    operations = {
        "GET": Operation("A memory", MemoryView, also=_NO_WINDOW, needs=Need.AGENT_READ),
        "PATCH": Operation("Change a memory; what it said before stays known to `as_of`", MemoryView, body=EditMemory,
                           also=_NO_WINDOW, needs=Need.AGENT),
        "DELETE": Operation("Forget a memory; only `as_of` an earlier time still finds it", MemoryDeleted,
                            also=_NO_WINDOW, needs=Need.AGENT),
    }  # fmt: skip

    async def get(self, agent_id: str, memory_id: str) -> None:
        window = await self.window(agent_id)
        self.send(MemoryView.of(await self.services.memories.get(window.agent_uid, memory_id)))

    async def patch(self, agent_id: str, memory_id: str) -> None:
        window, request = await self.window(agent_id), self.body(EditMemory)
        self.send(MemoryView.of(await self.services.memories.edit(window.agent_uid, memory_id, request)))

    async def delete(self, agent_id: str, memory_id: str) -> None:
        window = await self.window(agent_id)
        self.send(await self.services.memories.forget(window.agent_uid, memory_id))
