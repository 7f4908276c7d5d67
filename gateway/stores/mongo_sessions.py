"""Sessions in MongoDB, their moves, and who holds them.

Every write is idempotent or compare-and-set, and carries the name of its attempt: a call that was cancelled, or
whose answer got lost, may have happened all the same. A document carries its last moves too, so that a move and its
line are one write; they are copied to `moves` some at a time.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from bson import ObjectId
from pymongo import DESCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError

from gateway.errors import QuotaExceeded, SessionExists, SessionHeld, SessionNotFound, SessionPurged, StoreAway
from gateway.models.base import iso
from gateway.models.pages import Page, PageRequest, Position, SessionFilter, decode, digest
from gateway.models.sessions import Move, Session
from gateway.states import State
from gateway.stores.base import (
    MOST_MOVES,
    NO_CHANGES,
    BroughtBack,
    HolderChanged,
    SessionChanges,
    StateChanged,
    check_moves,
)  # fmt: skip
from gateway.stores.mongo_reach import Reach, insert_missing
from gateway.stores.mongo_schema import (
    Document,
    changed_fields,
    changes_readers,
    load_session,
    older_than,
    replaced_fields,
    session_document,
    session_query,
)
from gateway.stores.paging import AFTER_ALL, cut, offset

_COPIED_AT_ONCE = MOST_MOVES
_REMEMBERED = 2 * _COPIED_AT_ONCE  # attempts and moves that a document carries
_UNBORN = "unborn"  # `live` of a session that is not yet known to be within its owner's quota
_UNBORN_S = 60
_NEWEST = [("created_at", DESCENDING), ("_id", DESCENDING)]


class MongoSessions(Reach):
    async def create_session(self, session: Session, most: int | None = None) -> None:
        move = _move(None, session.state, session.state_reason, session.created_at)
        document = session_document(session) | {"attempts": [], "move_count": 1, "last_moves": [move]}

        async def work() -> None:
            sessions = self._collection("sessions")
            try:
                if most is None:
                    await sessions.insert_one(document)
                else:
                    await self._create_within(document, most)
            except DuplicateKeyError:
                if not await sessions.find_one({"_id": session.uid}, {"_id": 1}):
                    raise SessionExists(session.id) from None

        await self._reach(work)

    async def _create_within(self, document: Document, most: int) -> None:
        """Put it where nobody sees it, then count: of two gateways that do so at once, at least one sees the other.

        At the last place both may be refused; never are there more than `most`. Raises `DuplicateKeyError`.
        """
        sessions, uid, owner = self._collection("sessions"), document["_id"], document["created_by"]
        unborn = {"_id": uid, "live": _UNBORN}
        begun_at = ObjectId()
        left_by_a_crash = {"created_by": owner, "live": _UNBORN, "begun_at": {"$lt": _long_before(begun_at)}}
        await sessions.delete_many(left_by_a_crash)
        with suppress(DuplicateKeyError):  # it was put there by this very call, whose answer got lost
            await sessions.insert_one(document | {"live": _UNBORN, "begun_at": begun_at})
        try:
            owned = await sessions.count_documents({"created_by": owner, "live": {"$in": [True, _UNBORN]}})
            if owned > most and await sessions.find_one(unborn, {"_id": 1}):
                raise QuotaExceeded.of_sessions(owner, most)
            await sessions.update_one(unborn, {"$set": {"live": True}, "$unset": {"begun_at": ""}})
        except (QuotaExceeded, DuplicateKeyError):
            await sessions.delete_one(unborn)
            raise

    async def get_session(self, session_id: str) -> Session:
        document = await self._reach(lambda: self._collection("sessions").find_one({"id": session_id, "live": True}))
        if document is None:
            raise SessionNotFound(session_id)
        return load_session(document)

    async def get_session_by_uid(self, uid: str) -> Session:
        document = await self._reach(lambda: self._collection("sessions").find_one({"_id": uid, "live": True}))
        if document is None:
            raise SessionNotFound(uid)
        return load_session(document)

    async def get_deleted_session(self, session_id: str) -> Session:
        wanted, newest = {"id": session_id, "live": False}, [("deleted_at", DESCENDING)]
        document = await self._reach(lambda: self._collection("sessions").find_one(wanted, sort=newest))
        if document is None:
            raise SessionNotFound(session_id)
        return load_session(document)

    async def list_sessions(self, filter_: SessionFilter, page: PageRequest) -> Page[Session]:
        query = session_query(filter_)
        after = [older_than(decode(page.token, filter_.digest), "created_at")] if page.token else []

        async def work() -> tuple[list[Document], int]:
            sessions = self._collection("sessions")
            total_count = await sessions.count_documents(query)
            found = sessions.find({"$and": query["$and"] + after}).sort(_NEWEST)
            return await found.skip(offset(page)).limit(page.limit + 1).to_list(None), total_count

        documents, total_count = await self._reach(work)
        found = [load_session(document) for document in documents]
        return cut(found, total_count, page, filter_.digest, lambda last: Position(last.created_at, last.uid))

    async def update_session(
        self, uid: str, changes: SessionChanges, at: datetime, holder: str | None = None
    ) -> Session:
        query: Document = {"live": True} | ({"holder": holder} if holder is not None else {})

        async def work() -> Document | None:
            document = await self._change(uid, attempt, query, changes, {"updated_at": iso(at)})
            return document or await self._collection("sessions").find_one({"_id": uid, "live": True})

        with self._attempts.attempt("update", uid, at, details=(changes, holder)) as attempt:
            document = await self._reach(work)
        if document is None:
            raise SessionNotFound(uid)
        if attempt not in document["attempts"]:
            raise HolderChanged(document["id"], str(holder))
        return load_session(document)

    async def _move_session(
        self, uid: str, *moves: Move, changes: SessionChanges = NO_CHANGES, holder: str | None = None
    ) -> Session:
        check_moves(moves)
        before, last = str(moves[0].before), moves[-1]
        query: Document = {"live": True, "state": before} | ({"holder": holder} if holder is not None else {})
        fields: Document = {"state": last.after.value, "state_reason": last.reason, "updated_at": iso(last.at)}
        lines = [_move(move.before, move.after, move.reason, move.at) for move in moves]

        async def work() -> Document | None:
            document = await self._change(uid, attempt, query, changes, fields, lines)
            return document or await self._collection("sessions").find_one({"_id": uid, "live": True})

        with self._attempts.attempt("move", uid, last.at, details=(lines, changes, holder)) as attempt:
            document = await self._reach(work)
        if document is None:
            raise SessionNotFound(uid)
        if attempt not in document["attempts"]:
            raise StateChanged(document["id"], before)
        if document["move_count"] % _COPIED_AT_ONCE < len(moves):
            with suppress(StoreAway):  # the move is made; its document carries the lines until next time
                await self._reach(lambda: self._copy_moves(document))
        return load_session(document)

    async def list_moves(self, uid: str, page: PageRequest) -> Page[Move]:
        digest_ = digest(("moves", uid))
        before = decode(page.token, digest_).key if page.token else AFTER_ALL

        async def work() -> tuple[list[Document], int]:
            if document := await self._collection("sessions").find_one({"_id": uid, "live": {"$ne": None}}):
                await self._copy_moves(document)
            moves = self._collection("moves")
            found = moves.find({"session_uid": uid, "_id": {"$lt": f"{uid}:{before}"}}).sort("_id", DESCENDING)
            documents = await found.skip(offset(page)).limit(page.limit + 1).to_list(None)
            return documents, await moves.count_documents({"session_uid": uid})

        documents, total_count = await self._reach(work)
        last = documents[page.limit - 1]["_id"].removeprefix(f"{uid}:") if len(documents) > page.limit else ""
        found = [Move.model_validate(document) for document in documents]
        return cut(found, total_count, page, digest_, lambda move: Position(move.at, last))

    async def delete_session(self, uid: str, at: datetime) -> Session:
        fields: Document = {"live": False, "deleted_at": iso(at), "updated_at": iso(at), "holder": None}
        with self._attempts.attempt("delete", uid, at) as attempt:
            document = await self._reach(lambda: self._change(uid, attempt, {"live": True}, NO_CHANGES, fields))
        if document is None:
            raise SessionNotFound(uid)
        return load_session(document)

    async def undelete_session(self, session_id: str, at: datetime, owner: str | None = None) -> Session:
        fields: Document = {"live": True, "deleted_at": None, "updated_at": iso(at)}
        theirs: Document = {} if owner is None else {"created_by": owner}

        async def work() -> Document:
            sessions = self._collection("sessions")
            while True:
                # In this order: one that somebody undeletes in between is seen at least once.
                deleted = await sessions.find_one(
                    {"id": session_id, "live": False, **theirs}, {"_id": 1}, sort=[("deleted_at", DESCENDING)]
                )
                if live := await sessions.find_one({"id": session_id, "live": True}):
                    if attempt in live["attempts"]:
                        return live
                    if owner is None or deleted is not None or live["created_by"] == owner:
                        raise SessionExists(session_id)
                if deleted is None:
                    purged = await self._collection("purged").find_one({"_id": session_id, **theirs})
                    raise SessionPurged(session_id) if purged else SessionNotFound(session_id)
                with suppress(DuplicateKeyError):  # somebody was faster: look again
                    changed = await self._change(deleted["_id"], attempt, {"live": False}, NO_CHANGES, fields)
                    if changed is not None:
                        return changed

        with self._attempts.attempt("undelete", session_id, at, owner) as attempt:
            return load_session(await self._reach(work))

    async def purge_session(self, uid: str, deleted_at: datetime | None = None) -> None:
        condition: Document = {"_id": uid} if deleted_at is None else {"_id": uid, "deleted_at": iso(deleted_at)}

        async def work() -> None:
            sessions = self._collection("sessions")
            document = await sessions.find_one_and_update(condition, {"$set": {"live": None, "holder": None}})
            if document is None:
                if other := await sessions.find_one({"_id": uid}):
                    raise BroughtBack(other["id"])
                return
            owner = {"created_by": document["created_by"]}
            await self._collection("purged").update_one({"_id": document["id"]}, {"$set": owner}, upsert=True)
            for name in ("moves", "executions", "pieces"):
                await self._collection(name).delete_many({"session_uid": uid})
            await self._collection("snapshots").delete_many({"place": uid})
            await sessions.delete_one({"_id": uid})  # last, so that a purge cut short can be asked for again

        await self._reach(work)

    # Who holds what

    async def beat(self, gateway_id: str, at: datetime) -> None:
        await self._reach(
            lambda: self._collection("gateways").update_one({"_id": gateway_id}, {"$max": {"at": iso(at)}}, upsert=True)
        )

    async def is_alive(self, gateway_id: str, stale_before: datetime) -> bool:
        beating = {"_id": gateway_id, "at": {"$gte": iso(stale_before)}}
        return await self._reach(lambda: self._collection("gateways").find_one(beating)) is not None

    async def claim_session(self, uid: str, gateway_id: str, stale_before: datetime) -> Session:
        async def work() -> Document:
            sessions = self._collection("sessions")
            while True:
                document = await sessions.find_one({"_id": uid, "live": True})
                if document is None:
                    raise SessionNotFound(uid)
                holder = document["holder"]
                if holder == gateway_id:
                    return document
                beating = {"_id": holder, "at": {"$gte": iso(stale_before)}}
                if holder is not None and await self._collection("gateways").find_one(beating):
                    raise SessionHeld(document["id"], holder)
                claimed = await sessions.find_one_and_update(
                    {"_id": uid, "live": True, "holder": holder},
                    {"$set": {"holder": gateway_id}, "$inc": {"version": 1}},
                    return_document=ReturnDocument.AFTER,
                )
                if claimed is not None:
                    await self._copy_moves(claimed)  # what a holder that died left to do
                    return claimed

        return load_session(await self._reach(work))

    async def release_session(self, uid: str, gateway_id: str) -> None:
        await self._reach(
            lambda: self._collection("sessions").update_one(
                {"_id": uid, "holder": gateway_id}, {"$set": {"holder": None}, "$inc": {"version": 1}}
            )
        )

    async def list_abandoned(self, gateway_id: str, stale_before: datetime) -> list[Session]:
        async def work() -> list[Document]:
            beating = await self._collection("gateways").find({"at": {"$gte": iso(stale_before)}}).to_list(None)
            others = [gateway["_id"] for gateway in beating if gateway["_id"] != gateway_id]
            query = {"live": True, "holder": {"$type": "string", "$nin": others}}
            return await self._collection("sessions").find(query).sort(_NEWEST).to_list(None)

        return [load_session(document) for document in await self._reach(work)]

    async def list_unheld_temporary(self) -> list[Session]:
        query = {"live": True, "persistent": False, "holder": None}
        documents = await self._reach(lambda: self._collection("sessions").find(query).to_list(None))
        return [load_session(document) for document in documents]

    async def _change(
        self,
        uid: str,
        attempt: ObjectId,
        query: Document,
        changes: SessionChanges,
        fields: Document,
        moves: Sequence[Document] = (),
    ) -> Document | None:
        """The document after the change, or as it is if this attempt has succeeded before; None if `query` fails."""
        sessions = self._collection("sessions")
        wanted: Document = {"_id": uid, "attempts": {"$ne": attempt}, **query}
        added: Document = {"version": 1} | ({"move_count": len(moves)} if moves else {})
        pushed: Document = {"attempts": {"$each": [attempt], "$slice": -_REMEMBERED}}
        as_it_is = bool(changes.merge) or changes_readers(changes)
        if moves:
            pushed["last_moves"] = {"$each": list(moves), "$slice": -_REMEMBERED}
        while True:
            if as_it_is:  # needs the document as it is: compare and set, until nobody comes between
                old = await sessions.find_one(wanted)
                if old is None:
                    break
                update = {"$set": changed_fields(changes, load_session(old)) | fields, "$inc": added, "$push": pushed}
                guard = {**wanted, "version": old["version"]}
            else:
                update = {"$set": replaced_fields(changes) | fields, "$inc": added | changes.add, "$push": pushed}
                guard = wanted
            document = await sessions.find_one_and_update(guard, update, return_document=ReturnDocument.AFTER)
            if document is not None:
                return document
            if not as_it_is:
                break
        return await sessions.find_one({"_id": uid, "attempts": attempt})

    async def _copy_moves(self, document: Document) -> None:
        moves, uid = document["last_moves"], document["_id"]
        first = document["move_count"] - len(moves) + 1
        lines = [{"_id": f"{uid}:{first + n:010}", "session_uid": uid, **move} for n, move in enumerate(moves)]
        await insert_missing(self._collection("moves"), lines)


def _move(before: State | None, after: State, reason: str | None, at: datetime) -> Document:
    return {"before": before and before.value, "after": after.value, "reason": reason, "at": iso(at)}


def _long_before(moment: ObjectId) -> ObjectId:
    return ObjectId.from_datetime(moment.generation_time - timedelta(seconds=_UNBORN_S))
