"""What owners of sessions may use: kernels at once, processor seconds in a day (UTC), bytes of files.

Whose key made a session decides, or the settings, whoever runs in it. All gateways on a store count together. Where
there is no quota nothing is counted, and nothing asked.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import date, datetime, timedelta
from typing import TypeVar
from uuid import uuid4

from gateway.config import Settings
from gateway.errors import QuotaExceeded, StoreAway
from gateway.models.base import now
from gateway.models.quotas import Quotas
from gateway.models.sessions import Session
from gateway.services.origin import present
from gateway.stores.base import Store
from kernels.kernel import Kernel

Number = TypeVar("Number", int, float)

_FRESH_S = 5.0  # how old the sum may be that other gateways have counted with
_MOST_KERNELS = 10_000


class QuotaService:
    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._process = uuid4().hex
        self._seconds: dict[tuple[str, date], float] = {}  # counted here, by owner
        self._totals: dict[str, tuple[datetime, float]] = {}  # counted everywhere, as of when
        self._seen: dict[str, float] = {}  # processor seconds of a kernel when it was looked at last

    @staticmethod
    def of_new() -> Quotas:
        """What a session that is made by the request under way has."""
        limits = present().who.limits
        return Quotas(
            most_kernels=limits.kernels,
            cpu_seconds_per_day=limits.cpu_seconds_per_day,
            disk_bytes=limits.disk_bytes,
        )

    # Kernels

    @asynccontextmanager
    async def place(self, session: Session, *, runs: bool = False) -> AsyncIterator[None]:
        """A block in which its kernel is counted; one that `runs` already whatever the quota says.

        Raises `QuotaExceeded`.
        """
        most = _of(session.quotas.most_kernels, self._settings.quota_kernels)
        if most is None:
            yield
            return
        gateway_id = self._settings.gateway_id
        stale_before = now() - timedelta(seconds=self._settings.holder_timeout_s)
        await self._store.take_place(
            session.created_by, session.uid, gateway_id, stale_before, None if runs else most
        )  # fmt: skip
        try:
            yield
        finally:
            with suppress(StoreAway):  # it counts until this gateway starts anew
                await self._store.free_place(session.uid, gateway_id)

    # Processor

    def _cpu_limit(self, session: Session) -> float | None:
        return _of(session.quotas.cpu_seconds_per_day, self._settings.quota_cpu_seconds_per_day)

    async def check_cpu(self, session: Session) -> None:
        """Raises `QuotaExceeded` when its owner has used what it may today."""
        if (limit := self._cpu_limit(session)) is None:
            return
        at, owner = now(), session.created_by
        counted_at, total = self._totals.get(owner, (datetime.min.replace(tzinfo=at.tzinfo), 0.0))
        if counted_at.date() != at.date() or (at - counted_at).total_seconds() > _FRESH_S:
            total = await self._count(owner, 0.0)
        if total >= limit:
            raise QuotaExceeded.of_cpu(owner, limit, seconds_left=_until_midnight_s(at))

    def counts_cpu(self, session: Session) -> bool:
        return self._cpu_limit(session) is not None

    async def measure(self, session: Session, kernel: Kernel) -> bool:
        """Count what a kernel has used since it was looked at last. Whether its owner may go on."""
        if (limit := self._cpu_limit(session)) is None:
            return True
        used = (await kernel.process.usage()).cpu_seconds
        if used == 0.0:  # it has ended
            return True
        before = self._seen.pop(kernel.id, 0.0)
        self._seen[kernel.id] = max(before, used)
        if len(self._seen) > _MOST_KERNELS:
            del self._seen[next(iter(self._seen))]
        try:
            return await self._count(session.created_by, max(0.0, used - before)) < limit
        except StoreAway:
            return True  # it is counted here, and told the next time

    async def _count(self, owner: str, seconds: float) -> float:
        at = now()
        day = at.date()
        self._seconds = {key: kept for key, kept in self._seconds.items() if key[1] >= day - timedelta(days=1)}
        mine = self._seconds[owner, day] = self._seconds.get((owner, day), 0.0) + seconds
        total = await self._store.note_cpu(owner, day, self._process, mine)
        self._totals[owner] = (at, total)
        return total

    # Disk

    def disk_limit(self, session: Session) -> int | None:
        return _of(session.quotas.disk_bytes, self._settings.quota_disk_bytes)

    async def disk_left(self, session: Session) -> int | None:
        """Bytes that its files may grow to; None if there is no quota. What is there may be more."""
        if (limit := self.disk_limit(session)) is None:
            return None
        used = await self._store.disk_used(session.created_by)
        return max(0, limit - used + session.total_size_bytes)

    async def check_disk(self, session: Session) -> None:
        """Raises `QuotaExceeded` when its owner keeps as much as it may."""
        limit, owner = self.disk_limit(session), session.created_by
        if limit is not None and await self._store.disk_used(owner) >= limit:
            raise QuotaExceeded.of_disk(owner, limit)


def _of(own: Number | None, setting: Number | None) -> Number | None:
    return own if own is not None else setting


def _until_midnight_s(at: datetime) -> int:
    return max(
        1, int((datetime.combine(at.date() + timedelta(days=1), datetime.min.time(), at.tzinfo) - at).total_seconds())
    )
