"""API keys in MongoDB. All fields are plain, times text of fixed width."""

from datetime import datetime

from pymongo import ReturnDocument

from gateway.errors import KeyNotFound
from gateway.models.access import ApiKey
from gateway.models.base import iso
from gateway.models.pages import Page, PageRequest, Position, digest
from gateway.stores.base import KeyChanged
from gateway.stores.mongo_reach import Reach, insert_missing
from gateway.stores.mongo_schema import Document


class MongoKeys(Reach):
    async def create_key(self, key: ApiKey) -> None:
        fields = key.model_dump(mode="json")
        document = {"_id": fields.pop("id"), **fields}
        # One that is there was asked for by a caller that never heard the first answer.
        await self._reach(lambda: insert_missing(self._collection("keys"), [document]))

    async def get_key(self, key_id: str) -> ApiKey:
        return _load(key_id, await self._reach(lambda: self._collection("keys").find_one({"_id": key_id})))

    async def any_key(self) -> bool:
        wanted = {"revoked_at": None}
        return await self._reach(lambda: self._collection("keys").find_one(wanted, {"_id": 1})) is not None

    async def list_keys(self, page: PageRequest, *, include_revoked: bool) -> Page[ApiKey]:
        digest_ = digest(("keys", include_revoked))
        wanted: Document = {} if include_revoked else {"revoked_at": None}
        return await self._newest(
            "keys", wanted, page, digest_, lambda one: _load("", one), lambda last: Position(last.created_at, last.id)
        )

    async def rotate_key(self, key_id: str, former: str, new: str, former_until: datetime, at: datetime) -> ApiKey:
        changes = {
            "secret_hash": new, "former_hash": former, "former_until": iso(former_until), "rotated_at": iso(at),
        }  # fmt: skip
        wanted = {"_id": key_id, "secret_hash": former, "revoked_at": None}

        async def work() -> Document | None:
            keys = self._collection("keys")
            await keys.update_one(wanted, {"$set": changes})
            return await keys.find_one({"_id": key_id})

        key = _load(key_id, await self._reach(work))
        if key.revoked_at is not None:
            raise KeyNotFound(key_id)
        if key.secret_hash != new:
            raise KeyChanged(key_id)
        return key

    async def revoke_key(self, key_id: str, at: datetime) -> ApiKey:
        async def work() -> Document | None:
            keys = self._collection("keys")
            revoked = await keys.find_one_and_update(
                {"_id": key_id, "revoked_at": None},
                {"$set": {"revoked_at": iso(at)}},
                return_document=ReturnDocument.AFTER,
            )
            return revoked or await keys.find_one({"_id": key_id})

        return _load(key_id, await self._reach(work))

    async def touch_key(self, key_id: str, at: datetime) -> None:
        await self._reach(
            lambda: self._collection("keys").update_one({"_id": key_id}, {"$max": {"last_used_at": iso(at)}})
        )


def _load(key_id: str, document: Document | None) -> ApiKey:
    if document is None:
        raise KeyNotFound(key_id)
    return ApiKey.model_validate({**document, "id": document["_id"]})
