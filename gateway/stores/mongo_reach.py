"""Calls to a MongoDB that may be away, and what makes repeating them harmless."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from bson import ObjectId
from pymongo import DESCENDING
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConnectionFailure,
    DocumentTooLarge,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WTimeoutError,
)

from gateway.errors import StoreAway, TooLarge
from gateway.models.pages import Page, PageRequest, Position, decode
from gateway.stores.base import StoreClosed
from gateway.stores.mongo_schema import Document, create_indexes, older_than
from gateway.stores.paging import cut, offset

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_DOUBTS = 1000
_DUPLICATE_KEY = 11000
# Host unreachable, timed out, shutting down, stepped down, not primary, interrupted, write concern not met.
_AWAY_CODES = {6, 7, 64, 89, 91, 100, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436}


class Attempts:
    """Names tries, so that a change can tell whether it has happened already.

    A try whose answer never came keeps its name: the same call, made again, is the same try.
    """

    def __init__(self) -> None:
        self._doubtful: dict[tuple[Any, ...], tuple[Any, ObjectId]] = {}

    def in_doubt(self, *call: Any) -> bool:
        """Whether this call was made before and its answer never came."""
        return call in self._doubtful

    @contextmanager
    def attempt(self, *call: Any, details: Any = None) -> Iterator[ObjectId]:
        """`call` tells one call from another and can be hashed; `details` need only be comparable."""
        doubt = self._doubtful.pop(call, None)
        attempt = doubt[1] if doubt and doubt[0] == details else ObjectId()
        try:
            yield attempt
        except (StoreAway, asyncio.CancelledError):
            self._doubtful[call] = (details, attempt)
            if len(self._doubtful) > _MOST_DOUBTS:
                del self._doubtful[next(iter(self._doubtful))]
            raise


class Reach:
    """A database that may be away: turns the driver's errors into ours, makes the indexes at its first answer."""

    def __init__(self) -> None:
        self._attempts = Attempts()
        self._open(None)

    def _open(self, database: AsyncDatabase[Document] | None) -> None:
        self._opened = database
        self._prepared = False

    @property
    def _database(self) -> AsyncDatabase[Document]:
        if self._opened is None:
            raise StoreClosed
        return self._opened

    def _collection(self, name: str) -> AsyncCollection[Document]:
        return self._database[name]

    async def _reach(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """The result of `work`, which may run twice."""
        try:
            if not self._prepared:
                await create_indexes(self._database)
                self._prepared = True
            try:
                return await work()
            except (ServerSelectionTimeoutError, NetworkTimeout):
                raise
            except AutoReconnect:  # a connection that died while it lay idle, or a new primary: ask once more
                return await work()
        except PyMongoError as error:
            raise translated(error) from error

    async def _newest(
        self, name: str, wanted: Document, page: PageRequest, digest: str,
        load: Callable[[Document], Item], position: Callable[[Item], Position], shown: Document | None = None,
    ) -> Page[Item]:  # fmt: skip
        """A page of a collection, newest first (`created_at`, then `_id`). Raises `BadPageToken`."""
        after = [older_than(decode(page.token, digest), "created_at")] if page.token else []

        async def work() -> tuple[list[Document], int]:
            collection = self._collection(name)
            total_count = await collection.count_documents(wanted)
            found = collection.find({"$and": [wanted, *after]}, shown)
            found = found.sort([("created_at", DESCENDING), ("_id", DESCENDING)])
            return await found.skip(offset(page)).limit(page.limit + 1).to_list(None), total_count

        documents, total_count = await self._reach(work)
        return cut([load(document) for document in documents], total_count, page, digest, position)


async def insert_missing(collection: AsyncCollection[Document], documents: list[Document]) -> None:
    """Insert those whose `_id` is not there yet."""
    if not documents:
        return
    try:
        await collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        if not only_duplicates(error):
            raise


def only_duplicates(error: BulkWriteError) -> bool:
    return all(one.get("code") == _DUPLICATE_KEY for one in _problems(error))


def _problems(error: BulkWriteError) -> list[Document]:
    details = error.details or {}
    return [*details.get("writeConcernErrors", []), *details.get("writeErrors", [])]


def translated(error: PyMongoError) -> Exception:
    """`StoreAway` for what may pass by itself; anything else, such as a bug of ours, as it is."""
    codes = {error.code} if isinstance(error, OperationFailure) else set()
    if isinstance(error, BulkWriteError):
        codes = {one.get("code") for one in _problems(error)}
    if isinstance(error, ConnectionFailure | WTimeoutError | ExecutionTimeout) or codes & _AWAY_CODES:
        return StoreAway(f"MongoDB gave no answer ({type(error).__name__})")
    if isinstance(error, DocumentTooLarge):
        return TooLarge("This is more than one document can hold.")
    return error
