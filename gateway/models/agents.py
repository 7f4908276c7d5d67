"""An agent, and its window: the one span of time in which it may act."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from gateway.models.base import Answer, JsonMap, Request, Text, Utc
from gateway.models.sessions import Name

AgentId = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:\-]{0,127}\z"),
    WithJsonSchema({"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.:\-]{0,127}$"}),  # where `\z` is not known
]
Hours = Annotated[float, Field(gt=0, le=87_600)]
EndReason = Literal["expired", "deactivated", "superseded", "deleted"]


class Window(BaseModel):
    """The stored window. It is over once `ended_at` is set, and no later than `expires_at`."""

    model_config = ConfigDict(extra="ignore")

    id: str
    agent_id: str
    agent_uid: str
    opened_by: str
    started_at: Utc
    expires_at: Utc
    ended_at: Utc | None = None
    end_reason: EndReason | None = None

    def is_active(self, at: datetime) -> bool:
        return self.ended_at is None and at < self.expires_at

    @property
    def over_at(self) -> datetime:
        """When it ends, or has ended."""
        return self.ended_at or self.expires_at


class Agent(BaseModel):
    """The stored agent. `uid` never changes and is never reused; `id` is free again after a delete.

    `window` is its last one, open or over: being a part of the agent, there is never more than one.
    """

    model_config = ConfigDict(extra="ignore")

    uid: str
    id: str
    name: str
    model: str | None = None
    config: dict[str, Any] = {}
    created_by: str
    created_at: Utc
    updated_at: Utc
    deleted_at: Utc | None = None
    window: Window | None = None


_Model = Annotated[Text, StringConstraints(min_length=1, max_length=256)]


class CreateAgent(Request):
    id: AgentId | None = Field(default=None, validation_alias=AliasChoices("id", "agent_id"))
    name: Name
    model: _Model | None = None
    config: JsonMap = {}


class UpdateAgent(Request):
    """What is not named stays; `config` is replaced as a whole."""

    name: Name | None = None
    model: _Model | None = None
    config: JsonMap | None = None


class Activate(Request):
    duration_hours: Hours | None = None


class Extend(Request):
    extend_hours: Hours | None = Field(default=None, validation_alias=AliasChoices("extend_hours", "additional_hours"))


class OpenWindow(Answer):
    """The window of an agent that is active, as lists show it."""

    session_id: str
    started_at: Utc
    expires_at: Utc


class AgentView(Answer):
    id: str
    agent_id: str
    name: str
    model: str | None
    config: dict[str, Any]
    status: Literal["active", "inactive"]
    window: OpenWindow | None
    created_by: str
    created_at: Utc
    updated_at: Utc
    deleted_at: Utc | None

    @classmethod
    def of(cls, agent: Agent, at: datetime) -> Self:
        window = agent.window if agent.window is not None and agent.window.is_active(at) else None
        shown = None
        if window is not None:
            shown = OpenWindow(session_id=window.id, started_at=window.started_at, expires_at=window.expires_at)
        return cls(
            **agent.model_dump(exclude={"window"}), agent_id=agent.id, window=shown,
            status="active" if window else "inactive",
        )  # fmt: skip


class AgentList(Answer):
    agents: list[AgentView]
    count: int
    total_count: int
    next_token: str | None


class AgentDeleted(Answer):
    success: bool = True
    id: str
    deleted_at: Utc


class CurrentWindow(Answer):
    """A window as its agent sees it. `session_id` is the window's id: the references call a window a session."""

    session_id: str
    agent_id: str
    created_at: Utc
    started_at: Utc
    expires_at: Utc
    status: Literal["active"] = "active"
    duration_seconds: float
    time_remaining_minutes: float
    time_remaining_seconds: float

    @classmethod
    def of(cls, window: Window, at: datetime, **more: Any) -> Self:
        left_s = max(0.0, (window.expires_at - at).total_seconds())
        return cls(
            session_id=window.id, agent_id=window.agent_id, created_at=window.started_at,
            started_at=window.started_at, expires_at=window.expires_at,
            duration_seconds=round(max(0.0, (at - window.started_at).total_seconds()), 3),
            time_remaining_minutes=round(left_s / 60, 2), time_remaining_seconds=round(left_s, 3), **more,
        )  # fmt: skip


class Activated(CurrentWindow):
    """With the token that is sent as `X-Session-Token`; it is shown here alone."""

    session_token: str


class Deactivated(Answer):
    """`session_id` is the window that was ended, if there was one."""

    success: bool = True
    agent_id: str
    status: Literal["inactive"] = "inactive"
    session_id: str | None
    ended_at: Utc | None
