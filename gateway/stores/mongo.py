"""A store on MongoDB, for several gateways at once.

It runs on motor or on PyMongo's own async client: `_connect` and `_close` are all that differs between them.
"""

import inspect
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from gateway.errors import Invalid
from gateway.models.executions import Execution
from gateway.models.sessions import Move, Session
from gateway.stores.base import NO_CHANGES, SessionChanges
from gateway.stores.mongo_agents import MongoAgents
from gateway.stores.mongo_audit import MongoAudit
from gateway.stores.mongo_history import MongoHistory
from gateway.stores.mongo_keys import MongoKeys
from gateway.stores.mongo_memories import MongoMemories
from gateway.stores.mongo_quotas import MongoQuotas
from gateway.stores.mongo_schema import Document
from gateway.stores.mongo_sessions import MongoSessions
from gateway.stores.mongo_snapshots import MongoSnapshots

Driver = Literal["motor", "pymongo"]

_OPTIONS: dict[str, Any] = {
    "connect": False,
    "retryReads": False,  # `Reach` repeats by itself, and not after a timeout, so that callers hear of it in time
    "retryWrites": False,
    "serverSelectionTimeoutMS": 1500,
    "connectTimeoutMS": 1500,
    "waitQueueTimeoutMS": 1500,
    "socketTimeoutMS": 5000,
    "w": "majority",
    "journal": True,
    "readConcernLevel": "majority",
}


class MongoStore(
    MongoSessions, MongoSnapshots, MongoKeys, MongoAgents, MongoMemories, MongoHistory, MongoAudit, MongoQuotas
):  # fmt: skip
    """See `Store` for what each method promises. The database is the one that `uri` names, or `gateway`."""

    def __init__(self, uri: str, driver: Driver = "motor") -> None:
        super().__init__()
        self._uri = uri
        self._driver = driver

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        try:
            client = _connect(self._uri, self._driver)
        except (PyMongoError, ValueError) as error:  # its words may hold the password
            raise Invalid(f"that MongoDB address can't be used ({type(error).__name__}).", field="store") from None
        self._open(client.get_default_database("gateway"))
        try:
            yield
        finally:
            self._open(None)
            await _close(client)

    async def move_session(
        self, uid: str, *moves: Move, changes: SessionChanges = NO_CHANGES, holder: str | None = None,
        executions: Sequence[Execution] = (),
    ) -> Session:  # fmt: skip
        for execution in executions:
            await self.put_execution(execution)
        return await self._move_session(uid, *moves, changes=changes, holder=holder)

    async def ping(self) -> None:
        await self._reach(lambda: self._database.command("ping"))


def _connect(uri: str, driver: Driver) -> AsyncMongoClient[Document]:
    if driver == "pymongo":
        return AsyncMongoClient(uri, **_OPTIONS)
    os.environ.setdefault("MOTOR_MAX_WORKERS", "32")  # motor reads it when it is imported
    from motor.motor_asyncio import AsyncIOMotorClient

    client: Any = AsyncIOMotorClient(uri, **_OPTIONS)
    return client  # type: ignore[no-any-return]


async def _close(client: AsyncMongoClient[Document]) -> None:
    closing: Any = client.close()
    if inspect.isawaitable(closing):
        await closing
