"""The ways to an SQLite file that the parts of its store share."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from gateway.models.base import iso
from gateway.models.pages import Page, PageRequest, Position, decode
from gateway.stores.paging import AFTER_ALL, cut, offset
from gateway.stores.sqlite_writer import Work

Item = TypeVar("Item")
Result = TypeVar("Result")


class SqliteReach(Protocol):
    async def _write(self, work: Work[Result]) -> Result:
        """The result of `work` on the writing thread, once it is on disk."""
        ...

    def _point(self, sql: str, *values: Any) -> Any:
        """One row, read here and now on the event loop."""
        ...

    async def _scan(self, work: Work[Result]) -> Result:
        """The result of `work` on the scanning thread, which sees the file as of one instant."""
        ...


def newest(
    connection: sqlite3.Connection, columns: str, source: str, key: str, wanted: str, values: Sequence[Any],
    page: PageRequest, digest: str, load: Callable[[tuple[Any, ...]], Item], position: Callable[[Item], Position],
) -> Page[Item]:  # fmt: skip
    """A page of rows, newest first (`created_at`, then `key`). Raises `BadPageToken`.

    Columns, source, key and condition are our own words; what a user gave is among the `values`.
    """
    after = decode(page.token, digest) if page.token else None
    before = (iso(after.created_at), after.key) if after else (AFTER_ALL, "")
    (total_count,) = connection.execute(f"SELECT count(*) FROM {source} WHERE {wanted}", values).fetchone()  # noqa: S608
    rows = connection.execute(
        f"SELECT {columns} FROM {source} WHERE {wanted} AND (created_at, {key}) < (?, ?)"  # noqa: S608
        f" ORDER BY created_at DESC, {key} DESC LIMIT ? OFFSET ?",
        (*values, *before, page.limit + 1, offset(page)),
    ).fetchall()
    return cut([load(row) for row in rows], total_count, page, digest, position)
