"""Sessions as MongoDB keeps them: the documents, the queries for them, and the indexes of all collections.

Plain fields are kept as they are, times as text of fixed width (BSON dates lose microseconds), and whatever is nested
as JSON text, for MongoDB gives a meaning to dots and dollars in keys.
"""

import json
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.asynchronous.database import AsyncDatabase

from gateway.models.audit import ChainedLine
from gateway.models.base import iso
from gateway.models.labels import Operator, Requirement
from gateway.models.pages import Position, SessionFilter
from gateway.models.sessions import Session
from gateway.stores.base import SessionChanges

Document = dict[str, Any]

_NESTED = ("data", "metadata", "env", "resources", "setup", "agents", "grants", "quotas")
_COLUMNS = ("state", "language", "created_by", "parent_id", "name")
_NEWEST = [("created_at", DESCENDING), ("_id", DESCENDING)]
_DAY_S = 24 * 3600

# `live` is true, false once deleted, null while being purged. `lkv` holds "key" and "key=value" of every label: one
# multikey index serves all of them, in the order of the list. `seen_by` is who may see it, likewise.
_INDEXES: dict[str, list[IndexModel]] = {
    "sessions": [
        IndexModel("id", unique=True, partialFilterExpression={"live": True}, name="live_id"),
        IndexModel([("id", ASCENDING), ("deleted_at", DESCENDING)], name="deleted_id"),
        IndexModel([("live", ASCENDING), *_NEWEST], name="newest"),
        IndexModel([("live", ASCENDING), ("lkv", ASCENDING), *_NEWEST], name="labels"),
        IndexModel([("live", ASCENDING), ("created_by", ASCENDING), *_NEWEST], name="owner"),
        IndexModel([("live", ASCENDING), ("created_by", ASCENDING), ("lkv", ASCENDING), *_NEWEST], name="owner_labels"),
        IndexModel([("live", ASCENDING), ("parent_id", ASCENDING), *_NEWEST], name="parent"),
        IndexModel([("live", ASCENDING), ("seen_by", ASCENDING), *_NEWEST], name="seen_by"),
        IndexModel("holder", partialFilterExpression={"holder": {"$type": "string"}}, name="holder"),
        IndexModel("persistent", partialFilterExpression={"live": True, "persistent": False}, name="temporary"),
    ],
    "moves": [IndexModel([("session_uid", ASCENDING), ("_id", DESCENDING)], name="newest")],
    "executions": [
        IndexModel([("session_uid", ASCENDING), ("queued_at", DESCENDING), ("_id", DESCENDING)], name="newest"),
        IndexModel([("session_uid", ASCENDING), ("rank", ASCENDING)], name="unfinished"),
    ],
    "snapshots": [
        IndexModel([("place", ASCENDING), *_NEWEST], name="newest"),
        IndexModel(_NEWEST, partialFilterExpression={"loose": True}, name="loose"),
        IndexModel([("created_by", ASCENDING), *_NEWEST], partialFilterExpression={"loose": True}, name="brought_in"),
    ],
    "keys": [IndexModel(_NEWEST, name="newest"), IndexModel("revoked_at", name="revoked")],
    "pieces": [
        IndexModel("session_uid", sparse=True, name="session"),
        IndexModel("made_at", expireAfterSeconds=_DAY_S, name="expiry"),
    ],
    "agents": [
        IndexModel("id", unique=True, partialFilterExpression={"live": True}, name="live_id"),
        IndexModel([("id", ASCENDING), ("deleted_at", DESCENDING)], name="id"),
        IndexModel([("live", ASCENDING), *_NEWEST], name="newest"),
        IndexModel("window.id", sparse=True, name="window"),
        IndexModel("window.expires_at", partialFilterExpression={"window.open": True}, name="open"),
    ],
    "memories": [
        IndexModel([("agent_uid", ASCENDING), *_NEWEST], name="newest"),
        IndexModel([("agent_uid", ASCENDING), ("words", ASCENDING), *_NEWEST], name="words"),
    ],
    "places": [IndexModel("owner", name="owner")],
    "cpu": [
        IndexModel([("owner", ASCENDING), ("day", ASCENDING)], name="owner"),
        IndexModel("made_at", expireAfterSeconds=3 * _DAY_S, name="expiry"),
    ],
    "answers": [IndexModel("made_at", expireAfterSeconds=_DAY_S, name="expiry")],
    "audit": [
        IndexModel("number", unique=True, partialFilterExpression={"number": {"$exists": True}}, name="number"),
        IndexModel([("number", ASCENDING), ("order", ASCENDING)], name="chain"),
        IndexModel([("at", DESCENDING), ("_id", DESCENDING)], name="newest"),
        *(
            IndexModel([(name, ASCENDING), ("at", DESCENDING), ("_id", DESCENDING)], name=name)
            for name in ("actor", "session_id", "request_id")
        ),
    ],
}


async def create_indexes(database: AsyncDatabase[Document]) -> None:
    for name, indexes in _INDEXES.items():
        await database[name].create_indexes(indexes)
    await _complete(database)


async def _complete(database: AsyncDatabase[Document]) -> None:
    """Give what an earlier gateway has written the fields that lists go by since."""
    async for document in database["sessions"].find({"seen_by": {"$exists": False}}):
        readers = load_session(document).readers
        unchanged = {"_id": document["_id"], "seen_by": {"$exists": False}}
        await database["sessions"].update_one(unchanged, {"$set": {"seen_by": readers, "grants": "{}"}})
    async for document in database["snapshots"].find({"created_by": {"$exists": False}}):
        created_by = json.loads(document["document"])["created_by"]
        await database["snapshots"].update_one({"_id": document["_id"]}, {"$set": {"created_by": created_by}})
    async for document in database["audit"].find({"actor": {"$exists": False}}):
        searched = ChainedLine(json.loads(document["line"])).searched
        await database["audit"].update_one({"_id": document["_id"]}, {"$set": searched})


def session_document(session: Session) -> Document:
    fields = _encoded(session.model_dump(mode="json"))
    return {"_id": fields.pop("uid"), "live": session.deleted_at is None, "seen_by": session.readers, **fields}


def load_session(document: Document) -> Session:
    fields = document | {name: json.loads(document[name]) for name in _NESTED if name in document}
    fields["labels"] = {label["k"]: label["v"] for label in document["labels"]}
    return Session.model_validate({**fields, "uid": document["_id"]})


def replaced_fields(changes: SessionChanges) -> Document:
    """The fields that `changes` sets outright."""
    return _fields(Session.model_construct(**changes.replace), set(changes.replace))


def changed_fields(changes: SessionChanges, session: Session) -> Document:
    """The fields of `session` that `changes` touches, after it."""
    changed = changes.apply(session)
    fields = _fields(changed, {*changes.replace, *changes.merge, *changes.add})
    return fields | {"seen_by": changed.readers} if changes_readers(changes) else fields


def changes_readers(changes: SessionChanges) -> bool:
    return not {"grants", "agents", "created_by"}.isdisjoint({*changes.replace, *changes.merge})


def session_query(filter_: SessionFilter) -> Document:
    parts: list[Document] = [{"live": {"$in": [True, False]} if filter_.include_deleted else True}]
    parts += [{name: str(value)} for name in _COLUMNS if (value := getattr(filter_, name)) is not None]
    parts += [{"seen_by": filter_.seen_by}] if filter_.seen_by is not None else []
    parts += [{"lkv": _condition(requirement)} for requirement in filter_.labels]
    return {"$and": parts}


def older_than(position: Position, time_field: str) -> Document:
    moment = iso(position.created_at)
    return {
        time_field: {"$lte": moment},  # gives the index its bound, which the $or alone does not
        "$or": [{time_field: {"$lt": moment}}, {"_id": {"$lt": position.key}}],
    }


def _fields(session: Session, names: set[str]) -> Document:
    return _encoded(session.model_dump(mode="json", include=names)) if names else {}


def _encoded(fields: Document) -> Document:
    for name in _NESTED:
        if name in fields:
            fields[name] = json.dumps(fields[name])
    if "labels" in fields:
        labels = fields["labels"]
        fields["labels"] = [{"k": k, "v": v} for k, v in labels.items()]
        fields["lkv"] = [*labels, *(f"{k}={v}" for k, v in labels.items())]
    return fields


def _condition(requirement: Requirement) -> Any:
    pairs = [f"{requirement.key}={value}" for value in requirement.values]
    match requirement.operator:
        case Operator.IN:
            return pairs[0] if len(pairs) == 1 else {"$in": pairs}
        case Operator.NOT_IN:
            return {"$nin": pairs}
        case Operator.EXISTS:
            return requirement.key
        case Operator.ABSENT:
            return {"$ne": requirement.key}
