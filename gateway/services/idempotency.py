"""Kept answers: a POST that is sent again under its `Idempotency-Key` gets the first answer, for 24 hours."""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from uuid import uuid4

from gateway.config import Settings
from gateway.errors import Conflict, Invalid
from gateway.models.base import now
from gateway.models.idempotency import KeptAnswer
from gateway.services.recorder import Recorder

KEPT_FOR = timedelta(hours=24)
_LONGEST_KEY = 255
_KEY = re.compile(rf"[!-~]{{1,{_LONGEST_KEY}}}")


class KeyReused(Invalid):
    code = "idempotency_key_reused"


class InProgress(Conflict):
    code = "idempotency_in_progress"

    def __init__(self) -> None:
        super().__init__("The first request under this Idempotency-Key is still under way.", retry_after_s=1)


class IdempotencyService:
    """A reservation names the process that made it: one of a process that is gone is worth nothing."""

    def __init__(self, settings: Settings, recorder: Recorder) -> None:
        self._store = recorder.store
        self._recorder = recorder
        self._gateway_id = settings.gateway_id
        self._holder_timeout = timedelta(seconds=settings.holder_timeout_s)
        self._process = f"{uuid4().hex} {settings.gateway_id}".encode()
        self._under_way: dict[str, asyncio.Event] = {}
        self._unkept: dict[str, KeptAnswer] = {}  # ended, and not yet so in the store; without a status: to be dropped

    async def once(
        self, caller: str, path: str, key: str, body: bytes, answer: Callable[[], Awaitable[KeptAnswer | None]]
    ) -> KeptAnswer | None:
        """The kept answer, or None after `answer` was called to make (and hand back) the first one.

        Two at the same time: the second waits for the first. Raises `KeyReused` for another body, and
        `InProgress` when another gateway is at it.
        """
        if not _KEY.fullmatch(key):
            raise Invalid(
                f"Idempotency-Key: must hold 1 to {_LONGEST_KEY} printable ASCII characters.", field="Idempotency-Key"
            )
        full = full_key(caller, path, key)
        digest = hashlib.sha256(body).hexdigest()
        while True:
            while (under_way := self._under_way.get(full)) is not None:
                await under_way.wait()
            done = self._under_way[full] = asyncio.Event()
            try:
                reservation = KeptAnswer(key=full, request_digest=digest, created_at=now(), body=self._process)
                kept = self._unkept.get(full)
                kept = kept or await self._store.reserve_answer(reservation, now() - KEPT_FOR)
                if kept is None:
                    await self._first(reservation, answer)
                    return None
                if kept.request_digest != digest:
                    raise KeyReused("Idempotency-Key: was used with another body before.", field="Idempotency-Key")
                if kept.status is not None:
                    return kept
                if full in self._unkept or await self._is_made(kept):
                    raise InProgress
                await self._store.drop_answer(kept)
            finally:
                del self._under_way[full]
                done.set()

    async def _is_made(self, reservation: KeptAnswer) -> bool:
        """Whether somebody may still be at the answer; nobody is here, or we would wait for it."""
        gateway_id = reservation.body.partition(b" ")[2].decode()
        if gateway_id == self._gateway_id:
            return False
        return await self._store.is_alive(gateway_id, now() - self._holder_timeout)

    async def _first(self, reservation: KeptAnswer, answer: Callable[[], Awaitable[KeptAnswer | None]]) -> None:
        made: KeptAnswer | None = None
        try:
            made = await answer()
        finally:
            if made is not None:
                fields = {"status": made.status, "content_type": made.content_type, "body": made.body}
                self._settle(reservation.model_copy(update=fields))
            else:
                self._settle(reservation)

    def _settle(self, ended: KeptAnswer) -> None:
        self._unkept[ended.key] = ended
        self._recorder.spawn(self._write(ended))

    async def _write(self, ended: KeptAnswer) -> None:
        store = self._store
        try:
            await self._recorder.write(partial(store.drop_answer if ended.status is None else store.keep_answer, ended))
        finally:
            del self._unkept[ended.key]


def full_key(caller: str, path: str, key: str) -> str:
    """A key is one caller's, for one path."""
    return hashlib.sha256("\0".join((caller, path, key)).encode(errors="replace")).hexdigest()
