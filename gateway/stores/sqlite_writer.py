"""The one thread that writes to an SQLite file, many operations to a commit.

An operation that fails undoes itself alone. A waiter that is cancelled leaves its operation in the queue:
operations happen in the order in which they were asked for, each wholly or not at all.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from gateway.errors import StoreAway
from gateway.stores.base import StoreClosed

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]

_MOST_PER_COMMIT = 256
_AWAY = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
}


def translated(error: BaseException) -> BaseException:
    """`StoreAway` for what may pass by itself; anything else, such as a bug of ours, as it is."""
    if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _AWAY:
        away = StoreAway(str(error))
        away.__cause__ = error
        return away
    return error


@dataclass(slots=True)
class _Operation:
    work: Work[Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        if self.future.done():  # its waiter was cancelled
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class Writer:
    """Runs operations on its connection, which it owns from `start` to the end of `close`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def do(self, work: Work[Result]) -> Result:
        """The result of `work`, once it is on disk."""
        if self._closed:
            raise StoreClosed
        future: asyncio.Future[Result] = self._loop.create_future()
        self._queue.put(_Operation(work, future))
        return await future

    async def close(self) -> None:
        """Finish what was asked for, then close the connection."""
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._commit(batch)
                self._answer(batch)
        finally:
            self._connection.close()

    def _next_batch(self) -> list[_Operation]:
        """All that waits, up to a limit; empty once the queue is closed."""
        batch: list[_Operation] = []
        try:
            operation = self._queue.get()
            while operation is not None:
                batch.append(operation)
                if len(batch) == _MOST_PER_COMMIT:
                    return batch
                operation = self._queue.get_nowait()
        except queue.Empty:
            return batch
        if batch:
            self._queue.put(None)
        return batch

    def _answer(self, batch: list[_Operation]) -> None:
        try:
            self._loop.call_soon_threadsafe(_settle, batch)
        except RuntimeError:
            return  # the loop is gone, and with it everybody who waited

    def _commit(self, batch: list[_Operation]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            _fail(batch, error)
            return
        try:
            for operation in batch:
                self._attempt(operation)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            if len(batch) == 1:
                _fail(batch, error)
                return
            for operation in batch:  # the transaction is lost: one of them was too much for the disk, say
                self._commit([operation])

    def _attempt(self, operation: _Operation) -> None:
        """Run one operation; raises `sqlite3.Error` only when the whole transaction is lost."""
        operation.error = None
        self._connection.execute("SAVEPOINT operation")
        try:
            operation.result = operation.work(self._connection)
        except BaseException as error:  # whatever it is belongs to the waiter, not to this thread
            if not self._connection.in_transaction:
                raise
            operation.error = translated(error)
            self._connection.execute("ROLLBACK TO operation")
        self._connection.execute("RELEASE operation")

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def _settle(batch: list[_Operation]) -> None:
    for operation in batch:
        operation.settle()


def _fail(batch: list[_Operation], error: sqlite3.Error) -> None:
    for operation in batch:
        operation.error = translated(error)
