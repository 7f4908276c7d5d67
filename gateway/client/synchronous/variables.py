"""The variables of a session, looked at from outside."""

# Made of asynchronous/variables.py by deploy/sync_client.py: change that.

from typing import Any

from pydantic import BaseModel

from gateway.client.calls import delete, get, part, put
from gateway.client.documents import Variable, VariableValue
from gateway.client.synchronous.transport import Transport

Listed = list[Variable]


class _Variables(BaseModel):
    variables: list[Variable]


class _Gone(BaseModel):
    name: str


class Variables:
    """The variables of one session, also while a cell runs."""

    def __init__(self, transport: Transport, session_id: str) -> None:
        self._transport = transport
        self._path = f"/api/sessions/{part(session_id)}/variables"

    def list(self, *, offset: int = 0, limit: int = 1000) -> Listed:
        """By name, without their values."""
        return (self._transport.ask(_Variables, get(self._path, offset=offset, limit=limit))).variables

    def get(self, name: str, *, offset: int = 0, limit: int = 100) -> VariableValue:
        """One with its value as JSON; of a table or a list, `limit` rows or items from `offset` on."""
        return self._transport.ask(VariableValue, get(f"{self._path}/{part(name)}", offset=offset, limit=limit))

    def set(self, name: str, value: Any) -> Variable:
        """Set one to a value that JSON can hold."""
        return self._transport.ask(Variable, put(f"{self._path}/{part(name)}", {"value": value}))

    def delete(self, name: str) -> None:
        """Raises `VariableNotFound`."""
        self._transport.ask(_Gone, delete(f"{self._path}/{part(name)}"), lambda: _Gone(name=name))
