"""Kept answers: a POST that is sent again under its `Idempotency-Key` gets the first answer, for 24 hours."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta

from gateway.errors import Conflict, Invalid
from gateway.models.base import now
from gateway.models.idempotency import KeptAnswer
from gateway.stores.base import Store

_KEPT_FOR = timedelta(hours=24)
_LONGEST_KEY = 255


class KeyReused(Invalid):
    code = "idempotency_key_reused"


class InProgress(Conflict):
    code = "idempotency_in_progress"


class IdempotencyService:
    def __init__(self, store: Store, gateway_id: str) -> None:
        self._store = store
        self._gateway_id = gateway_id
        self._under_way: dict[str, asyncio.Event] = {}

    async def once(
        self, caller: str, path: str, key: str, body: bytes, answer: Callable[[], Awaitable[KeptAnswer | None]]
    ) -> KeptAnswer | None:
        """The kept answer, or None after `answer` was called to make (and hand back) the first one.

        Two at the same time: the second waits for the first. Raises `KeyReused` for another body, and
        `InProgress` when another gateway is at it.
        """
        if not 1 <= len(key) <= _LONGEST_KEY or not key.isprintable():
            raise Invalid(
                f"Idempotency-Key: must hold 1 to {_LONGEST_KEY} printable characters.", field="Idempotency-Key"
            )
        full_key = hashlib.sha256("\0".join((caller, path, key)).encode()).hexdigest()
        digest = hashlib.sha256(body).hexdigest()
        while True:
            while (under_way := self._under_way.get(full_key)) is not None:
                await under_way.wait()
            done = self._under_way[full_key] = asyncio.Event()
            try:
                reservation = KeptAnswer(
                    key=full_key, request_digest=digest, created_at=now(), body=self._gateway_id.encode()
                )
                kept = await self._store.reserve_answer(reservation, now() - _KEPT_FOR)
                if kept is None:
                    await self._first(reservation, answer)
                    return None
                if kept.request_digest != digest:
                    raise KeyReused("Idempotency-Key: was used with another body before.", field="Idempotency-Key")
                if kept.status is not None:
                    return kept
                if kept.body != self._gateway_id.encode():
                    raise InProgress(
                        "The first request under this Idempotency-Key is still under way.", retry_after_s=1
                    )
                await self._store.drop_answer(full_key)  # left behind by a crash of ours
            finally:
                del self._under_way[full_key]
                done.set()

    async def _first(self, reservation: KeptAnswer, answer: Callable[[], Awaitable[KeptAnswer | None]]) -> None:
        made: KeptAnswer | None = None
        try:
            made = await answer()
        finally:
            if made is None:
                await asyncio.shield(self._store.drop_answer(reservation.key))
            else:
                kept = reservation.model_copy(
                    update={"status": made.status, "content_type": made.content_type, "body": made.body}
                )
                await asyncio.shield(self._store.keep_answer(kept))
