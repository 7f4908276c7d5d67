"""An agent for tests, inside its window."""

from dataclasses import dataclass
from typing import Any

from tests.api import Api


@dataclass(frozen=True)
class ActiveAgent:
    """Calls a gateway with the token of a window."""

    api: Api
    id: str
    token: str

    @classmethod
    async def of(cls, api: Api, agent_id: str, **query: Any) -> "ActiveAgent":
        opened = await api.post(f"/api/agents/{agent_id}/activate", expect=200, params=query)
        return cls(api, agent_id, opened["session_token"])

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Session-Token": self.token}

    async def call(self, method: str, what: str, body: Any = None, expect: int | None = None, **params: Any) -> Any:
        """Something about itself, such as `recall`; or anything else, by its whole path."""
        path = what if what.startswith("/") else f"/api/agents/{self.id}/{what}"
        return await self.api.call(method, path, body, expect, headers=self.headers, params=params)

    async def remember(self, content: str, **fields: Any) -> Any:
        return await self.call("POST", "remember", {"content": content, **fields}, 201)

    async def recall(self, query: str, **fields: Any) -> list[str]:
        found = await self.call("POST", "recall", {"query": query, **fields}, 200)
        assert found["count"] == len(found["memories"])
        return [memory["content"] for memory in found["memories"]]
