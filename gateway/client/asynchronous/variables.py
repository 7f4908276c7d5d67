"""The variables of a session, looked at from outside."""

from typing import Any

from pydantic import BaseModel

from gateway.client.asynchronous.transport import AsyncTransport
from gateway.client.calls import delete, get, part, put
from gateway.client.documents import Variable, VariableValue

Listed = list[Variable]


class _Variables(BaseModel):
    variables: list[Variable]


class _Gone(BaseModel):
    name: str


class AsyncVariables:
    """The variables of one session, also while a cell runs."""

    def __init__(self, transport: AsyncTransport, session_id: str) -> None:
        self._transport = transport
        self._path = f"/api/sessions/{part(session_id)}/variables"

    async def list(self, *, offset: int = 0, limit: int = 1000) -> Listed:
        """By name, without their values."""
        return (await self._transport.ask(_Variables, get(self._path, offset=offset, limit=limit))).variables

    async def get(self, name: str, *, offset: int = 0, limit: int = 100) -> VariableValue:
        """One with its value as JSON; of a table or a list, `limit` rows or items from `offset` on."""
        return await self._transport.ask(VariableValue, get(f"{self._path}/{part(name)}", offset=offset, limit=limit))

    async def set(self, name: str, value: Any) -> Variable:
        """Set one to a value that JSON can hold."""
        return await self._transport.ask(Variable, put(f"{self._path}/{part(name)}", {"value": value}))

    async def delete(self, name: str) -> None:
        """Raises `VariableNotFound`."""
        await self._transport.ask(_Gone, delete(f"{self._path}/{part(name)}"), lambda: _Gone(name=name))
