"""Audit lines in MongoDB: one chain, which all gateways on the database write to.

Who appends reads the head and inserts what follows it; the unique index of `number` lets one of two win, and the
other reads the head again.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

from bson import ObjectId
from pymongo import ASCENDING, DESCENDING
from pymongo.errors import BulkWriteError

from gateway.models.audit import (
    EVERY_LINE,
    NO_HASH,
    AuditFilter,
    AuditLine,
    Before,
    ChainedLine,
    beginning,
    chained,
)  # fmt: skip
from gateway.models.pages import Page, PageRequest, Position, decode
from gateway.stores.mongo_reach import Reach, only_duplicates
from gateway.stores.mongo_schema import Document, older_than
from gateway.stores.paging import cut, offset

_BATCH = 500
_OLDEST = [("number", ASCENDING), ("order", ASCENDING)]
_BEFORE: Document = {"number": {"$exists": False}}
_IN_CHAIN: Document = {"number": {"$exists": True}}
_LONGEST_PAUSE_S = 0.02


class MongoAudit(Reach):
    async def append_audit(self, lines: list[AuditLine]) -> None:
        if lines:
            await self._reach(lambda: self._append(lines))

    async def _append(self, lines: list[AuditLine]) -> None:
        audit = self._collection("audit")
        while True:
            known = {one["_id"] async for one in audit.find({"_id": {"$in": [line.id for line in lines]}}, {"_id": 1})}
            new = list({line.id: line for line in reversed(lines) if line.id not in known}.values())[::-1]
            if not new:
                return
            head = await audit.find_one(_IN_CHAIN, {"number": 1, "hash": 1}, sort=[("number", DESCENDING)])
            if head is None:
                new.insert(0, beginning(await self._before(), new[0].at))
            links = chained(new, head["number"] if head else 0, head["hash"] if head else NO_HASH)
            try:
                await audit.insert_many([_document(link) for link in links])
            except BulkWriteError as error:
                if not only_duplicates(error):
                    raise
                await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE_S))  # noqa: S311 - another gateway was faster
            else:
                return

    async def _before(self) -> Before:
        before = Before()
        async for document in self._collection("audit").find(_BEFORE).sort([("order", ASCENDING)]):
            before.add(json.loads(document["line"]))
        return before

    async def list_audit(self, filter_: AuditFilter, page: PageRequest) -> Page[ChainedLine]:
        wanted = _wanted(filter_)
        after = [older_than(decode(page.token, filter_.digest), "at")] if page.token else []

        async def work() -> tuple[list[Document], int]:
            audit = self._collection("audit")
            total_count = await audit.count_documents(wanted)
            found = audit.find({"$and": [wanted, *after]}).sort([("at", DESCENDING), ("_id", DESCENDING)])
            return await found.skip(offset(page)).limit(page.limit + 1).to_list(None), total_count

        documents, total_count = await self._reach(work)
        found = [_load(document) for document in documents]
        return cut(found, total_count, page, filter_.digest, lambda last: Position(last.line.at, last.fields["id"]))

    async def read_audit(self, filter_: AuditFilter = EVERY_LINE) -> AsyncIterator[ChainedLine]:
        wanted = _wanted(filter_)
        for part, key in ((_BEFORE, "order"), (_IN_CHAIN, "number")):
            later: Document = {}
            while batch := await self._reach(lambda: self._audit_batch(wanted, part, later)):  # noqa: B023 - awaited before they change
                for document in batch:
                    yield _load(document)
                later = {key: {"$gt": batch[-1][key]}}

    async def _audit_batch(self, *wanted: Document) -> list[Document]:
        found = self._collection("audit").find({"$and": list(wanted)}).sort(_OLDEST)
        return await found.limit(_BATCH).to_list(None)


def _document(link: ChainedLine) -> Document:
    return {
        "_id": link.fields["id"], "at": link.fields["at"], "order": ObjectId(), "line": json.dumps(link.fields),
        "number": link.number, "previous": link.previous, "hash": link.hash, **link.searched,
    }  # fmt: skip


def _load(document: Document) -> ChainedLine:
    fields: dict[str, Any] = json.loads(document["line"])
    beside = {"id": document["_id"], "at": document["at"], **{k: document.get(k) for k in ChainedLine({}).searched}}
    intact = beside == {name: fields.get(name) for name in beside}
    return ChainedLine(fields, document.get("number"), document.get("previous"), document.get("hash"), intact)


def _wanted(filter_: AuditFilter) -> Document:
    since, until = filter_.span
    return {"at": {"$gte": since, "$lt": until}, **filter_.equal}
