"""Memories in MongoDB: what lists and recall go by as fields, the rest as JSON text.

An index over the names of their words, newest first for each word of each agent, finds candidates. One of MongoDB's
own text indexes would split words by its own rules, and can neither give the newest first nor stop when it has enough.
"""

from collections.abc import Sequence
from datetime import datetime

from pymongo import DESCENDING

from gateway.errors import MemoryNotFound
from gateway.models.base import iso
from gateway.models.memories import Candidate, Indexed, Memory, MemoryFilter
from gateway.models.pages import Page, PageRequest, Position
from gateway.stores.memories import MemoryChanged, WordCounts
from gateway.stores.mongo_reach import Reach, insert_missing
from gateway.stores.mongo_schema import Document

_NEWEST = [("created_at", DESCENDING), ("_id", DESCENDING)]


class MongoMemories(Reach):
    async def put_memory(self, memory: Memory, indexed: Indexed) -> None:
        document = memory_document(memory, indexed)
        # One that is there was asked for by a caller that never heard the first answer.
        await self._reach(lambda: insert_missing(self._collection("memories"), [document]))

    async def change_memory(self, memory: Memory, indexed: Indexed) -> None:
        document = memory_document(memory, indexed)
        former = {"_id": memory.id, "version": memory.version - 1, "deleted_at": None}

        async def work() -> None:
            memories = self._collection("memories")
            replaced = await memories.replace_one(former, document | {"attempt": attempt})
            if not replaced.matched_count and not await memories.find_one({"_id": memory.id, "attempt": attempt}):
                raise MemoryChanged(memory.id)

        with self._attempts.attempt("change_memory", memory.id, memory.version, details=document) as attempt:
            await self._reach(work)

    async def delete_memory(self, agent_uid: str, memory_id: str, at: datetime) -> None:
        call = ("delete_memory", memory_id)
        asked_before = self._attempts.in_doubt(*call)

        async def work() -> None:
            nonlocal asked_before
            again, asked_before = asked_before, True
            deleted = await self._collection("memories").update_one(
                {"_id": memory_id, "agent_uid": agent_uid, "deleted_at": None}, {"$set": {"deleted_at": iso(at)}}
            )
            if not deleted.matched_count and not again:  # else it was this very call whose answer got lost
                raise MemoryNotFound(memory_id)

        with self._attempts.attempt(*call):
            await self._reach(work)

    async def get_memory(self, agent_uid: str, memory_id: str) -> Memory:
        query = {"_id": memory_id, "agent_uid": agent_uid, "deleted_at": None}
        document = await self._reach(lambda: self._collection("memories").find_one(query, _SHOWN))
        if document is None:
            raise MemoryNotFound(memory_id)
        return _load(document)

    async def get_memories(self, agent_uid: str, memory_ids: Sequence[str]) -> list[Memory]:
        if not memory_ids:
            return []
        query = {"_id": {"$in": list(memory_ids)}, "agent_uid": agent_uid}
        documents = await self._reach(lambda: self._collection("memories").find(query, _SHOWN).to_list(None))
        return [_load(document) for document in documents]

    async def list_memories(self, filter_: MemoryFilter, page: PageRequest) -> Page[Memory]:
        return await self._newest(
            "memories", {"$and": _conditions(filter_)}, page, filter_.digest, _load,
            lambda last: Position(last.created_at, last.id), _SHOWN,
        )  # fmt: skip

    async def count_words(self, agent_uid: str, names: Sequence[str], most: int) -> WordCounts:
        async def work() -> WordCounts:
            memories = self._collection("memories")
            total = await memories.count_documents({"agent_uid": agent_uid}, limit=most)
            holding = {
                name: await memories.count_documents({"agent_uid": agent_uid, "words": name}, limit=most)
                for name in names
            }
            return WordCounts(total, holding)

        return await self._reach(work)

    async def find_candidates(self, filter_: MemoryFilter, names: Sequence[str], most: int) -> list[Candidate]:
        query = {"$and": [*_conditions(filter_), {"words": {"$in": list(names)}}]}
        fields = {"created_at": 1, "version": 1, "counts": 1, "length": 1}

        async def work() -> list[Document]:
            found = self._collection("memories").find(query, fields).sort(_NEWEST).hint("words").limit(most)
            return await found.to_list(None)

        return [
            Candidate(
                one["_id"], datetime.fromisoformat(one["created_at"]), one["version"] > 1, one["counts"], one["length"]
            )
            for one in await self._reach(work)
        ]


def memory_document(memory: Memory, indexed: Indexed) -> Document:
    said = memory.now
    return {
        "_id": memory.id,
        "agent_uid": memory.agent_uid,
        "type": said.type,
        "tags": said.tags,
        "confidence": said.confidence,
        "created_at": iso(memory.created_at),
        "deleted_at": memory.deleted_at and iso(memory.deleted_at),
        "expires_at": said.expires_at and iso(said.expires_at),
        "version": memory.version,
        "words": indexed.names,
        "counts": indexed.counts,
        "length": indexed.length,
        "document": memory.model_dump_json(),
    }


def _load(document: Document) -> Memory:
    deleted_at = document["deleted_at"]
    memory = Memory.model_validate_json(document["document"])
    return memory.model_copy(update={"deleted_at": deleted_at and datetime.fromisoformat(deleted_at)})


def _conditions(filter_: MemoryFilter) -> list[Document]:
    at = iso(filter_.at)
    parts: list[Document] = [
        {"agent_uid": filter_.agent_uid},
        {"created_at": {"$lte": at}},
        {"$or": [{"deleted_at": None}, {"deleted_at": {"$gt": at}}]},
    ]
    if filter_.since is not None:
        parts.append({"created_at": {"$gte": iso(filter_.since)}})
    if filter_.until is not None:
        parts.append({"created_at": {"$lt": iso(filter_.until)}})
    if not filter_.is_past:
        parts.append({"$or": [{"expires_at": None}, {"expires_at": {"$gt": at}}]})
        parts += [{"tags": tag} for tag in filter_.tags]
        if filter_.type is not None:
            parts.append({"type": filter_.type})
        if filter_.min_confidence is not None:
            parts.append({"confidence": {"$gte": filter_.min_confidence}})
    return parts


_SHOWN = {"document": 1, "deleted_at": 1}
