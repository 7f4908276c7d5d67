"""Windows: when an agent may act. What the store says of one decides; a token only says which one is meant."""

from datetime import datetime, timedelta

from gateway.config import Settings
from gateway.errors import Conflict, Denied, Invalid, Unauthenticated
from gateway.models.agents import Agent, Window
from gateway.models.base import new_id, now
from gateway.services.agents import AgentService
from gateway.services.window_keys import WindowKeys
from gateway.stores.agents import ExpiryMoved, WindowNotFound
from gateway.stores.base import Store

_TRIES = 20


class WindowExpired(Unauthenticated):
    code = "window_expired"

    def __init__(self, why: str) -> None:
        super().__init__(f"X-Session-Token: {why} Activate the agent again.", field="X-Session-Token")


class WindowMissing(Unauthenticated):
    code = "window_required"

    def __init__(self) -> None:
        super().__init__(
            "This needs an active window: activate the agent, and send the session_token as X-Session-Token.",
            field="X-Session-Token",
        )


class OtherAgent(Denied):
    code = "window_of_another_agent"

    def __init__(self, agent_id: str) -> None:
        super().__init__(f"The window of agent {agent_id!r} is for that agent alone.", agent_id=agent_id)


class WindowBusy(Conflict):
    code = "window_busy"


class WindowService:
    def __init__(self, settings: Settings, store: Store, agents: AgentService, keys: WindowKeys) -> None:
        self._hours = settings.window_hours
        self._longest = timedelta(hours=settings.window_longest_hours)
        self._store = store
        self._agents = agents
        self._keys = keys

    async def activate(self, agent_id: str, hours: float | None, caller: str) -> tuple[Window, str]:
        """A new window, in the place of whatever the agent had, and its token. An unknown agent is created."""
        length = self._length(hours or self._hours, "duration_hours")
        agent = await self._agents.get_or_create(agent_id, caller)
        at = now()
        window = Window(
            id=new_id("win"), agent_id=agent.id, agent_uid=agent.uid, opened_by=caller, started_at=at,
            expires_at=at + length,
        )  # fmt: skip
        await self._store.open_window(window)
        return window, self._keys.sign(window)

    def _length(self, hours: float, field: str) -> timedelta:
        length = timedelta(hours=hours)
        if length > self._longest:
            raise Invalid(f"{field}: a window lasts at most {_hours(self._longest)} hours.", field=field)
        return length

    async def deactivate(self, agent: Agent) -> Window | None:
        """The window that was ended; None if the agent had none. Its sessions are put to sleep soon."""
        window = agent.window
        if window is None or not window.is_active(now()):
            return None
        try:
            ended = await self._store.end_window(window.id, now(), "deactivated")
        except WindowNotFound:
            raise WindowBusy(f"Agent {agent.id!r} was activated anew just now.", agent_id=agent.id) from None
        return ended

    async def opened(self, token: str | None) -> Window:
        """The active window that a token is for. Raises `WindowMissing`, `WindowInvalid`, `WindowExpired`.

        One that was refused once stays over, also if the clock is set back.
        """
        if not token:
            raise WindowMissing
        try:
            window = await self._store.get_window(self._keys.window_id(token))
        except WindowNotFound:
            raise WindowExpired("another window of this agent has taken its place.") from None
        at = now()
        if not window.is_active(at):
            if window.ended_at is None:
                await self._store.end_window(window.id, at, "expired")
            raise WindowExpired("its window is over.")
        return window

    async def opened_for(self, agent_id: str, token: str | None) -> Window:
        """The same, of this agent. Raises `OtherAgent` too."""
        window = await self.opened(token)
        if window.agent_id != agent_id:
            raise OtherAgent(window.agent_id)
        return window

    async def extend(self, window: Window, hours: float | None) -> tuple[Window, str]:
        """Let it expire so much later than it would; also the token that it had stays good. Raises `Invalid`."""
        more = timedelta(hours=hours or self._hours)
        for _ in range(_TRIES):
            later = window.expires_at + more
            if later - window.started_at > self._longest:
                left = max(timedelta(0), self._longest - (window.expires_at - window.started_at))
                raise Invalid(
                    f"extend_hours: a window lasts at most {_hours(self._longest)} hours in all; "
                    f"this one can still be extended by {_hours(left)}.",
                    field="extend_hours",
                )
            try:
                moved = await self._store.move_expiry(window.id, window.expires_at, later)
            except ExpiryMoved:
                window = await self._again(window.id)
            else:
                return moved, self._keys.sign(moved)
        raise WindowBusy("This window is extended by too many at once.", retry_after_s=1)

    async def _again(self, window_id: str) -> Window:
        try:
            window = await self._store.get_window(window_id)
        except WindowNotFound:
            raise WindowExpired("another window of this agent has taken its place.") from None
        if not window.is_active(now()):
            raise WindowExpired("its window is over.")
        return window

    # What ends with them

    async def end_expired(self) -> None:
        await self._store.end_expired(now())

    async def over_since(self, agent_ids: list[str]) -> dict[str, datetime | None]:
        """For each of these agents that ever had a window: when the last one ended, None while it is active."""
        at, last = now(), dict[str, Window]()
        for window in await self._store.list_windows(agent_ids):
            known = last.get(window.agent_id)
            if known is None or known.started_at < window.started_at:
                last[window.agent_id] = window
        return {agent_id: None if one.is_active(at) else one.over_at for agent_id, one in last.items()}


def _hours(length: timedelta) -> str:
    return f"{length.total_seconds() / 3600:g}"
