"""API keys: made, rotated, revoked, and told apart when a caller sends one.

A key is `sgw_<16 hex>_<64 hex>`: its id, by which its row is found, and 256 random bits. Nobody guesses those, however
fast they are hashed, so one SHA-256 is enough: slow hashes are for passwords, and would cost every request their time.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from datetime import timedelta

from gateway.errors import KeyNotFound, StoreAway, Unauthenticated
from gateway.models.access import ApiKey, CreateKey, KeyMade, Role
from gateway.models.base import now
from gateway.models.pages import Page, PageRequest
from gateway.services.guardrails import Known
from gateway.services.recorder import Spawn
from gateway.stores.base import Store

_KEY = re.compile(r"sgw_([0-9a-f]{16})_[0-9a-f]{64}")
_KNOWN_S = 2.0  # what another gateway, or the command line, has revoked is refused here after that
_MOST_KNOWN = 10_000
_TOUCHED_S = 60.0
_LIMITS = (
    "requests_per_second", "burst", "most_sessions", "most_kernels", "cpu_seconds_per_day", "disk_bytes", "guardrails",
)  # fmt: skip
_NO_HASH = "0" * 64


class BadKey(Unauthenticated):
    """Says nothing of what is wrong with it."""

    def __init__(self) -> None:
        super().__init__("That is not a key of this gateway.")


class KeyRevoked(Unauthenticated):
    code = "key_revoked"

    def __init__(self) -> None:
        super().__init__("This key was revoked.")


class KeyExpired(Unauthenticated):
    code = "key_expired"

    def __init__(self) -> None:
        super().__init__("This key has expired.")


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def _secret(number: str) -> str:
    return f"sgw_{number}_{secrets.token_hex(32)}"


class KeyService:
    def __init__(self, store: Store, spawn: Spawn) -> None:
        self._store = store
        self._spawn = spawn
        self._guardrails = Known()
        self._known: OrderedDict[str, tuple[float, ApiKey]] = OrderedDict()
        self._any: tuple[float, bool] | None = None
        self._touched: dict[str, float] = {}

    # Keeping

    async def create(self, request: CreateKey, created_by: str) -> KeyMade:
        """A new key, with its secret. Raises `Invalid` for a guardrail that is not there."""
        self._guardrails.named(request.guardrails)
        at, number = now(), secrets.token_hex(8)
        secret = _secret(number)
        agent_id = (request.agent_id or request.name) if request.role is Role.AGENT else None
        key = ApiKey(
            id=f"key_{number}", name=request.name, role=request.role, agent_id=agent_id, secret_hash=hashed(secret),
            created_at=at, created_by=created_by, expires_at=request.expiry(at),
            **request.model_dump(include=set(_LIMITS)),
        )  # fmt: skip
        await self._store.create_key(key)
        self._any = None
        return KeyMade(**key.model_dump(), key=secret)

    async def list(self, page: PageRequest, *, include_revoked: bool) -> Page[ApiKey]:
        return await self._store.list_keys(page, include_revoked=include_revoked)

    async def get(self, key_id: str) -> ApiKey:
        """Raises `KeyNotFound`."""
        return await self._store.get_key(key_id)

    async def rotate(self, key_id: str, overlap_s: float) -> KeyMade:
        """A new secret; the one that it replaces stays good for `overlap_s`, one from before that does not.

        Raises `KeyNotFound`, also for a revoked key; `KeyChanged` if somebody else rotated it meanwhile.
        """
        at, former = now(), await self.get(key_id)
        secret = _secret(key_id.removeprefix("key_"))
        until = at + timedelta(seconds=overlap_s)
        key = await self._store.rotate_key(key_id, former.secret_hash, hashed(secret), until, at)
        self._known.pop(key_id, None)
        return KeyMade(**key.model_dump(), key=secret)

    async def revoke(self, key_id: str) -> ApiKey:
        """Refused from now on: here at once, by other gateways on the store within seconds. Raises `KeyNotFound`."""
        key = await self._store.revoke_key(key_id, now())
        self._known.pop(key_id, None)
        self._any = None
        return key

    # Telling apart

    async def any(self) -> bool:
        """Whether there is a key that is not revoked; while the store is away, whether there was one."""
        at = time.monotonic()
        if self._any is None or at - self._any[0] > _KNOWN_S:
            try:
                self._any = (at, await self._store.any_key())
            except StoreAway:
                if self._any is None:
                    raise
        return self._any[1]

    async def open(self, given: str) -> ApiKey:
        """The key that a caller sends. Raises `BadKey`; `KeyRevoked`, `KeyExpired` to who has the secret."""
        match = _KEY.fullmatch(given)
        if match is None:
            raise BadKey
        digest, key_id = hashed(given), f"key_{match[1]}"
        try:
            key = await self._find(key_id)
            if not self._fits(key, digest):  # another gateway may have rotated it since it was looked up
                self._known.pop(key_id, None)
                key = await self._find(key_id)
        except KeyNotFound:
            hmac.compare_digest(digest, _NO_HASH)  # takes as long as for one that is there
            raise BadKey from None
        if not self._fits(key, digest):
            raise BadKey
        if key.revoked_at is not None:
            raise KeyRevoked
        if key.is_expired(now()):
            raise KeyExpired
        return key

    @staticmethod
    def _fits(key: ApiKey, digest: str) -> bool:
        is_present = hmac.compare_digest(digest, key.secret_hash)
        is_former = hmac.compare_digest(digest, key.former_hash or _NO_HASH)
        return is_present or (is_former and key.former_until is not None and now() < key.former_until)

    def used(self, key: ApiKey) -> None:
        """Note a use behind the answer, at most once a minute."""
        at = time.monotonic()
        if at - self._touched.get(key.id, float("-inf")) < _TOUCHED_S:
            return
        if len(self._touched) >= _MOST_KNOWN:
            self._touched.clear()
        self._touched[key.id] = at
        self._spawn(self._touch(key.id))

    async def _touch(self, key_id: str) -> None:
        try:
            await self._store.touch_key(key_id, now())
        except StoreAway:
            self._touched.pop(key_id, None)  # the next use tells

    async def _find(self, key_id: str) -> ApiKey:
        at = time.monotonic()
        known = self._known.get(key_id)
        if known is not None and at - known[0] < _KNOWN_S:
            return known[1]
        key = await self._store.get_key(key_id)
        self._known[key_id] = (at, key)
        self._known.move_to_end(key_id)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return key
