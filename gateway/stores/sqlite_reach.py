"""The ways to an SQLite file that the parts of its store share."""

from typing import Any, Protocol, TypeVar

from gateway.stores.sqlite_writer import Work

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
