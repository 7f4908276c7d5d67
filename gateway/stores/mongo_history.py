"""What is written down in MongoDB: executions, kept answers."""

from datetime import datetime

from bson import ObjectId
from pymongo import ASCENDING, DESCENDING
from pymongo.errors import DuplicateKeyError

from gateway.errors import ExecutionNotFound, StoreAway
from gateway.models.base import iso
from gateway.models.executions import Execution
from gateway.models.idempotency import KeptAnswer
from gateway.models.pages import Page, PageRequest, decode, digest
from gateway.stores.mongo_pieces import Pieces, PiecesGone
from gateway.stores.mongo_reach import Reach
from gateway.stores.mongo_schema import Document, older_than
from gateway.stores.packing import FINISHED, Filling, load_execution_aside, pack_aside, pack_execution, rank, unpack
from gateway.stores.paging import executions_page, offset

_READS = 3


class Restless(StoreAway):
    def __init__(self, execution_id: str) -> None:
        super().__init__(f"execution {execution_id!r} changes faster than it can be read")


class MongoHistory(Reach):
    async def put_execution(self, execution: Execution) -> None:
        packed = await pack_execution(execution)
        fields = {
            "session_uid": execution.session_uid,
            "queued_at": iso(execution.queued_at),
            "rank": rank(execution),
            "status": execution.status.value,
        }

        async def work() -> None:
            where = await self._pieces.keep(execution.id, packed, session_uid=execution.session_uid)
            replaced = await self._replace_execution(execution.id, fields | {"packed": where})
            if replaced is not None and replaced.get("digest") != where.get("digest"):
                await self._pieces.drop(execution.id, replaced)

        await self._reach(work)

    async def get_execution(self, uid: str, execution_id: str) -> Execution:
        async def work() -> bytes:
            document = await self._collection("executions").find_one({"_id": execution_id, "session_uid": uid})
            if document is None:
                raise ExecutionNotFound(execution_id)
            return await self._packed(document)

        return await load_execution_aside(await self._reach(work))

    async def list_executions(self, uid: str, page: PageRequest) -> Page[Execution]:
        digest_ = digest(("executions", uid))
        after = older_than(decode(page.token, digest_), "queued_at") if page.token else {}

        async def work() -> tuple[Filling, int]:
            executions, filling = self._collection("executions"), Filling(page)
            total_count = await executions.count_documents({"session_uid": uid})
            found = executions.find({"session_uid": uid, **after}).sort(
                [("queued_at", DESCENDING), ("_id", DESCENDING)]
            )
            found = found.skip(offset(page)).limit(page.limit + 1)
            try:
                async for document in found:
                    if not filling.add(await self._packed(document)):
                        break
            finally:
                await found.close()
            return filling, total_count

        filling, total_count = await self._reach(work)
        return executions_page(filling, total_count, digest_)

    async def list_unfinished(self, uid: str) -> list[Execution]:
        async def work() -> list[bytes]:
            found = self._collection("executions").find({"session_uid": uid, "rank": {"$lt": FINISHED}})
            documents = await found.sort([("queued_at", ASCENDING), ("_id", ASCENDING)]).to_list(None)
            return [await self._packed(document) for document in documents]

        return [await load_execution_aside(packed) for packed in await self._reach(work)]

    # Idempotency keys

    async def reserve_answer(self, answer: KeptAnswer, expired_before: datetime) -> KeptAnswer | None:
        async def work() -> KeptAnswer | None:
            answers = self._collection("answers")
            document = await self._answer_document(answer, attempt)
            while True:
                try:
                    await answers.insert_one(document)
                except DuplicateKeyError:
                    kept = await answers.find_one({"_id": answer.key})
                else:
                    return None
                if kept is None:
                    continue
                if kept["attempt"] == attempt:
                    return None
                if kept["created_at"] >= iso(expired_before):
                    return await self._kept(kept)
                await answers.delete_one({"_id": answer.key, "attempt": kept["attempt"]})

        with self._attempts.attempt("reserve", answer.key, answer.created_at) as attempt:
            return await self._reach(work)

    async def keep_answer(self, answer: KeptAnswer) -> None:
        attempt = ObjectId()

        async def work() -> None:
            document = await self._answer_document(answer, attempt)
            await self._collection("answers").replace_one({"_id": answer.key}, document, upsert=True)

        await self._reach(work)

    async def get_answer(self, key: str) -> KeptAnswer | None:
        async def work() -> KeptAnswer | None:
            kept = await self._collection("answers").find_one({"_id": key})
            return None if kept is None else await self._kept(kept)

        return await self._reach(work)

    async def _kept(self, document: Document) -> KeptAnswer:
        body = await self._pieces.load(document["_id"], document["packed"])
        return KeptAnswer.model_validate({**document, "key": document["_id"], "body": unpack(body)})

    async def drop_answer(self, reservation: KeptAnswer) -> None:
        unanswered = {"_id": reservation.key, "created_at": iso(reservation.created_at), "status": None}
        await self._reach(lambda: self._collection("answers").delete_one(unanswered))

    @property
    def _pieces(self) -> Pieces:
        return Pieces(self._collection("pieces"))

    async def _replace_execution(self, execution_id: str, fields: Document) -> Document | None:
        """Where the replaced one was kept, where `fields` say if a finished one stays, None if there was none."""
        executions, uid = self._collection("executions"), fields["session_uid"]
        ours = {"_id": execution_id, "session_uid": uid, "rank": {"$lte": fields["rank"]}}
        stays = {"$or": [{"rank": {"$gt": fields["rank"]}}, {"session_uid": {"$ne": uid}}]}
        while True:
            try:
                replaced = await executions.find_one_and_replace(ours, fields, {"packed": 1}, upsert=True)
            except DuplicateKeyError:
                if await executions.find_one({"_id": execution_id, **stays}, {"_id": 1}):
                    return None
            else:
                return replaced and replaced["packed"]

    async def _packed(self, document: Document) -> bytes:
        for _ in range(_READS):
            try:
                return await self._pieces.load(document["_id"], document["packed"])
            except PiecesGone:
                document = await self._collection("executions").find_one({"_id": document["_id"]}) or document
        raise Restless(document["_id"])

    async def _answer_document(self, answer: KeptAnswer, attempt: ObjectId) -> Document:
        body = await pack_aside(answer.body)
        return {
            "_id": answer.key,
            "request_digest": answer.request_digest,
            "created_at": iso(answer.created_at),
            "made_at": answer.created_at,  # BSON's own date, for the index that expires it
            "status": answer.status,
            "content_type": answer.content_type,
            "packed": await self._pieces.keep(answer.key, body, made_at=answer.created_at),
            "attempt": attempt,
        }
