"""A client for tests, as thin as it can be: what goes over the wire stays visible."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2


@dataclass(frozen=True)
class Sse:
    kind: str
    id: str
    data: Any


class Api:
    """Calls one gateway."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx2.AsyncClient(base_url=url, timeout=90, trust_env=False)

    async def __aenter__(self) -> "Api":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def call(self, method: str, path: str, body: Any = None, expect: int | None = None, **keywords: Any) -> Any:
        """The JSON answer; `expect` is the status that it must have (any 2xx if none is given)."""
        if body is not None:
            keywords["json"] = body
        answer = await self.http.request(method, path, **keywords)
        fine = answer.status_code == expect if expect else answer.is_success
        assert fine, f"{method} {path}: {answer.status_code} {answer.text[:2000]}"
        return answer.json() if answer.content else None

    async def get(self, path: str, expect: int | None = None, **keywords: Any) -> Any:
        return await self.call("GET", path, expect=expect, **keywords)

    async def post(self, path: str, body: Any = None, expect: int | None = None, **keywords: Any) -> Any:
        return await self.call("POST", path, body, expect, **keywords)

    async def create(self, **fields: Any) -> Any:
        return await self.post("/api/sessions", fields, 201)

    async def run(self, session_id: str, code: str, **fields: Any) -> Any:
        return await self.post(f"/api/sessions/{session_id}/run", {"code": code, **fields}, 200)

    @asynccontextmanager
    async def stream(
        self, session_id: str, code: str = "", headers: dict[str, str] | None = None, **fields: Any
    ) -> Any:
        """The events of a streamed run, as an async iterator."""
        path, body = f"/api/sessions/{session_id}/stream", {"code": code, **fields}
        async with self.http.stream("POST", path, json=body, headers=headers) as answer:
            assert answer.status_code == 200, (await answer.aread()).decode()
            yield events(answer)

    @asynccontextmanager
    async def events(self, path: str, headers: dict[str, str] | None = None) -> Any:
        async with self.http.stream("GET", path, headers=headers) as answer:
            assert answer.status_code == 200, (await answer.aread()).decode()
            yield events(answer)


async def events(answer: httpx2.Response) -> AsyncIterator[Sse]:
    """The Server-Sent Events of an answer."""
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line.startswith((":", "retry:")):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Sse(fields["event"], fields.get("id", ""), json.loads(fields["data"]))
            fields = {}
