"""Agents, over HTTP, and the windows in which they act."""

from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from gateway.errors import Invalid
from gateway.handlers.base import ApiHandler, Operation
from gateway.models.access import Need
from gateway.models.agents import (
    Activate,
    Activated,
    Agent,
    AgentDeleted,
    AgentId,
    AgentList,
    AgentView,
    CreateAgent,
    CurrentWindow,
    Deactivated,
    Extend,
    UpdateAgent,
    Window,
)  # fmt: skip
from gateway.models.base import now
from gateway.models.queries import DeleteQuery, NoQuery, PageQuery

Model = TypeVar("Model", bound=BaseModel)

_AGENT_ID: TypeAdapter[str] = TypeAdapter(AgentId)
_NO_WINDOW = {401: "No active window: `window_required`, `window_invalid`, `window_expired`"}


class AgentHandler(ApiHandler):
    """What all that is about agents does alike. A key says who asks; a window, which agent's memories are meant."""

    acts_in_window = False

    async def _admit(self) -> None:
        await super()._admit()
        operation = self._operation
        if operation is not None and (given := self.path_kwargs.get("agent_id")) is not None:
            await self.services.access.check_agent(self.who, operation.needs, self.agent_id(given))

    async def own_window(self) -> Window:
        """The active window that the token shows, of an agent of the caller's."""
        window = await self.services.windows.opened(self.window_token)
        await self.services.access.check_agent(self.who, Need.AGENT, window.agent_id)
        return window

    def agent_id(self, given: str) -> str:
        """An agent's id from the path. Raises `Invalid`."""
        try:
            return _AGENT_ID.validate_python(given)
        except ValidationError:
            raise Invalid(
                "agent_id: must be 1 to 128 of A-Z a-z 0-9 _ . : -, and start with a letter or digit.",
                agent_id="is not an id",
            ) from None

    def given(self, model: type[Model]) -> Model:
        """What is asked for, as JSON or as query parameters. Raises `Invalid` for both at once."""
        if not self.request.query:
            return self.body(model)
        if self.raw_body.strip():
            raise Invalid("Send what you ask for as JSON or as query parameters, not as both.", body="and a query")
        return self.query(model)

    @property
    def window_token(self) -> str | None:
        return self.request.headers.get("X-Session-Token")

    async def window(self, agent_id: str) -> Window:
        """The agent's active window, which its token shows."""
        return await self.services.windows.opened_for(self.agent_id(agent_id), self.window_token)

    def agent_view(self, agent: Agent) -> AgentView:
        return AgentView.of(agent, now())


class AgentsHandler(AgentHandler):
    """/api/agents"""

    operations = {
        "POST": Operation(
            "Create an agent", AgentView, 201, CreateAgent, also={409: "The id is taken"}, needs=Need.MAKE
        ),
        "GET": Operation("List agents, newest first", AgentList, query=PageQuery, needs=Need.KEY),
    }

    async def post(self) -> None:
        agent = await self.services.agents.create(self.body(CreateAgent), self.caller)
        self.send(self.agent_view(agent), 201)

    async def get(self) -> None:
        found = await self.services.agents.list(self.query(PageQuery).page_request, self.who.sees_only)
        views = [self.agent_view(agent) for agent in found.items]
        self.send(AgentList(
            agents=views, count=len(views), total_count=found.total_count, next_token=found.next_token
        ))  # fmt: skip


class OneAgentHandler(AgentHandler):
    """/api/agents/{agent_id}"""

    operations = {
        "GET": Operation("An agent", AgentView, needs=Need.AGENT_READ),
        "PUT": Operation(
            "Change an agent; `config` is replaced as a whole", AgentView, body=UpdateAgent, needs=Need.AGENT
        ),
        "DELETE": Operation(
            "End an agent's window and delete it with its memories; `purge` removes them for good", AgentDeleted,
            query=DeleteQuery, needs=Need.AGENT,
        ),
    }  # fmt: skip

    async def get(self, agent_id: str) -> None:
        self.send(self.agent_view(await self.services.agents.get(self.agent_id(agent_id))))

    async def put(self, agent_id: str) -> None:
        agent = await self.services.agents.update(self.agent_id(agent_id), self.body(UpdateAgent))
        self.send(self.agent_view(agent))

    async def delete(self, agent_id: str) -> None:
        purge = self.query(DeleteQuery).purge
        self.send(await self.services.agents.delete(self.agent_id(agent_id), purge=purge))


class UndeleteAgentHandler(AgentHandler):
    """/api/agents/{agent_id}/undelete"""

    operations = {
        "POST": Operation(
            "Bring a deleted agent back, with its memories",
            AgentView,
            also={409: "Taken"},
            needs=Need.AGENT_UNDELETE,
        )
    }

    async def post(self, agent_id: str) -> None:
        self.body(NoQuery)
        owner = None if self.who.is_admin else self.who.name
        self.send(self.agent_view(await self.services.agents.undelete(self.agent_id(agent_id), owner)))


class ActivateHandler(AgentHandler):
    """/api/agents/{agent_id}/activate"""

    operations = {
        "POST": Operation(
            "Open a window for an agent, in the place of any that it has; an unknown agent is created", Activated,
            body=Activate, query=Activate, body_required=False, needs=Need.AGENT_OR_MAKE,
        )
    }  # fmt: skip

    async def post(self, agent_id: str) -> None:
        hours = self.given(Activate).duration_hours
        window, token = await self.services.windows.activate(self.agent_id(agent_id), hours, self.caller)
        self.send(Activated.of(window, now(), session_token=token))


class DeactivateHandler(AgentHandler):
    """/api/agents/{agent_id}/deactivate"""

    operations = {
        "POST": Operation("End an agent's window; the sessions that it held go to sleep", Deactivated, needs=Need.AGENT)
    }

    async def post(self, agent_id: str) -> None:
        self.body(NoQuery)
        agent = await self.services.agents.get(self.agent_id(agent_id))
        ended = await self.services.windows.deactivate(agent)
        self.send(Deactivated(
            agent_id=agent.id, session_id=ended.id if ended else None, ended_at=ended.ended_at if ended else None
        ))  # fmt: skip


class CurrentWindowHandler(AgentHandler):
    """/api/session/current: the window of the agent that asks."""

    operations = {
        "GET": Operation("The window that `X-Session-Token` is for", CurrentWindow, also=_NO_WINDOW, needs=Need.KEY)
    }

    async def get(self) -> None:
        self.send(CurrentWindow.of(await self.own_window(), now()))


class ExtendHandler(AgentHandler):
    """/api/session/extend"""

    operations = {
        "POST": Operation(
            "Let the window expire so much later than it would; the token that it has stays good", Activated,
            body=Extend, query=Extend, body_required=False, also=_NO_WINDOW, needs=Need.KEY,
        )
    }  # fmt: skip

    async def post(self) -> None:
        hours = self.given(Extend).extend_hours
        window, token = await self.services.windows.extend(await self.own_window(), hours)
        self.send(Activated.of(window, now(), session_token=token))
