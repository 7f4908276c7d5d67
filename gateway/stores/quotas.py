"""What every store promises of quotas, over all gateways on it."""

from datetime import date, datetime
from typing import Protocol


class QuotaStore(Protocol):
    async def take_place(
        self, owner: str, uid: str, gateway_id: str, stale_before: datetime, most: int | None = None
    ) -> None:
        """Count the kernel of a session for its owner, until `free_place`; once, however often it is asked for.

        Raises `QuotaExceeded` if `most` others of that owner run on gateways that have beaten since `stale_before`.
        """
        ...

    async def free_place(self, uid: str, gateway_id: str) -> None:
        """Count it no more; nothing happens if another gateway has it."""
        ...

    async def clear_places(self, gateway_id: str) -> None:
        """Count none of what an earlier life of this gateway had."""
        ...

    async def note_cpu(self, owner: str, day: date, process: str, seconds: float) -> float:
        """What `process` has counted for an owner on that day so far, never less than before; the sum over all.

        What is older than the day before is forgotten.
        """
        ...

    async def disk_used(self, owner: str) -> int:
        """Bytes of files in all live sessions of an owner, as they were last counted."""
        ...
