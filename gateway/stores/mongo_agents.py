"""Agents in MongoDB. The window is a part of its agent's document: that there is one, and no more, is one write."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pymongo import DESCENDING, ReturnDocument
from pymongo.errors import DuplicateKeyError

from gateway.errors import AgentExists, AgentNotFound
from gateway.models.agents import Agent, EndReason, Window
from gateway.models.base import iso
from gateway.models.pages import Page, PageRequest, Position, digest
from gateway.stores.agents import ExpiryMoved, WindowNotFound
from gateway.stores.mongo_reach import Reach
from gateway.stores.mongo_schema import Document


class MongoAgents(Reach):
    async def create_agent(self, agent: Agent) -> None:
        document = _document(agent)

        async def work() -> None:
            try:
                await self._collection("agents").insert_one(document)
            except DuplicateKeyError:
                if not await self._collection("agents").find_one({"_id": agent.uid}, {"_id": 1}):
                    raise AgentExists(agent.id) from None

        await self._reach(work)

    async def get_agent(self, agent_id: str) -> Agent:
        document = await self._reach(lambda: self._collection("agents").find_one({"id": agent_id, "live": True}))
        if document is None:
            raise AgentNotFound(agent_id)
        return _load(document)

    async def list_agents(self, page: PageRequest, created_by: str | None = None) -> Page[Agent]:
        digest_ = digest(("agents", created_by))
        wanted: Document = {"live": True} | ({"created_by": created_by} if created_by is not None else {})
        return await self._newest(
            "agents", wanted, page, digest_, _load, lambda last: Position(last.created_at, last.uid)
        )

    async def update_agent(self, uid: str, fields: dict[str, Any], at: datetime) -> Agent:
        changed = {**fields, "updated_at": iso(at)}
        if "config" in changed:
            changed["config"] = json.dumps(changed["config"])
        document = await self._reach(lambda: self._update({"_id": uid, "live": True}, {"$set": changed}))
        if document is None:
            raise AgentNotFound(uid)
        return _load(document)

    async def delete_agent(self, uid: str, at: datetime) -> Agent:
        moment = iso(at)

        async def work() -> Document | None:
            ended = {"window.ended_at": moment, "window.end_reason": "deleted", "window.open": False}
            deleted = {"live": False, "deleted_at": moment, "updated_at": moment}
            agents = self._collection("agents")
            while True:
                document = await self._update(
                    {"_id": uid, "live": True, "window.open": True}, {"$set": deleted | ended}
                )
                document = document or await self._update(
                    {"_id": uid, "live": True, "window.open": {"$ne": True}}, {"$set": deleted}
                )
                if document is not None:
                    return document
                if not await agents.find_one(
                    {"_id": uid, "live": True}, {"_id": 1}
                ):  # else a window was opened just now
                    return await agents.find_one({"_id": uid, "deleted_at": moment})  # by this call, made before

        document = await self._reach(work)
        if document is None:
            raise AgentNotFound(uid)
        return _load(document)

    async def undelete_agent(self, agent_id: str, at: datetime, owner: str | None = None) -> Agent:
        theirs = {} if owner is None else {"created_by": owner}

        async def work() -> Document:
            agents = self._collection("agents")
            while True:
                deleted = await agents.find_one(
                    {"id": agent_id, "live": False, **theirs}, {"_id": 1}, sort=[("deleted_at", DESCENDING)]
                )
                if live := await agents.find_one({"id": agent_id, "live": True}):
                    if live.get("undeleted") == attempt:
                        return live
                    if deleted is not None or owner in (None, live["created_by"]):
                        raise AgentExists(agent_id)
                if deleted is None:
                    raise AgentNotFound(agent_id)
                back = {"live": True, "deleted_at": None, "updated_at": iso(at), "undeleted": attempt}
                try:
                    document = await self._update({"_id": deleted["_id"], "live": False}, {"$set": back})
                except DuplicateKeyError:
                    continue  # somebody was faster: look again
                if document is not None:
                    return document

        with self._attempts.attempt("undelete_agent", agent_id, owner) as attempt:
            return _load(await self._reach(work))

    async def purge_agent(self, uid: str) -> None:
        async def work() -> None:
            await self._collection("agents").update_one({"_id": uid}, {"$set": {"live": None, "window": None}})
            await self._collection("memories").delete_many({"agent_uid": uid})
            await self._collection("agents").delete_one({"_id": uid})  # last: what was cut short can be asked for again

        await self._reach(work)

    async def open_window(self, window: Window) -> None:
        change = {"$set": {"window": _window_document(window)}}
        document = await self._reach(lambda: self._update({"_id": window.agent_uid, "live": True}, change))
        if document is None:
            raise AgentNotFound(window.agent_id)

    async def get_window(self, window_id: str) -> Window:
        document = await self._reach(
            lambda: self._collection("agents").find_one({"window.id": window_id}, {"window": 1})
        )
        if document is None:
            raise WindowNotFound
        return Window.model_validate(document["window"])

    async def move_expiry(self, window_id: str, before: datetime, after: datetime) -> Window:
        as_it_was = {"window.id": window_id, "window.open": True, "window.expires_at": iso(before)}

        async def work() -> Document | None:
            moved = {"window.expires_at": iso(after), "window.moved": attempt}
            document = await self._update(as_it_was, {"$set": moved})
            return document or await self._collection("agents").find_one({"window.id": window_id})

        with self._attempts.attempt("move_expiry", window_id, before, after) as attempt:
            document = await self._reach(work)
        if document is None:
            raise WindowNotFound
        if document["window"].get("moved") != attempt:
            raise ExpiryMoved
        return Window.model_validate(document["window"])

    async def end_window(self, window_id: str, at: datetime, reason: EndReason) -> Window:
        async def work() -> Document | None:
            await self._end({"window.id": window_id, "window.expires_at": {"$lte": iso(at)}}, at, "expired")
            await self._end({"window.id": window_id}, at, reason)
            return await self._collection("agents").find_one({"window.id": window_id})

        document = await self._reach(work)
        if document is None:
            raise WindowNotFound
        return Window.model_validate(document["window"])

    async def end_expired(self, at: datetime) -> None:
        await self._reach(lambda: self._end({"window.expires_at": {"$lte": iso(at)}}, at, "expired"))

    async def list_windows(self, agent_ids: Sequence[str]) -> list[Window]:
        if not agent_ids:
            return []
        query = {"id": {"$in": list(agent_ids)}, "window": {"$ne": None}}
        documents = await self._reach(lambda: self._collection("agents").find(query, {"window": 1}).to_list(None))
        return [Window.model_validate(document["window"]) for document in documents]

    async def _end(self, which: Document, at: datetime, reason: EndReason) -> None:
        over = {"window.open": False, "window.ended_at": iso(at), "window.end_reason": reason}
        await self._collection("agents").update_many({"window.open": True, **which}, {"$set": over})

    async def _update(self, which: Document, change: Document) -> Document | None:
        found: Document | None = await self._collection("agents").find_one_and_update(
            which, change, return_document=ReturnDocument.AFTER
        )
        return found


def _document(agent: Agent) -> Document:
    fields = agent.model_dump(mode="json", exclude={"uid", "window"})
    return fields | {
        "_id": agent.uid,
        "live": agent.deleted_at is None,
        "config": json.dumps(agent.config),  # dots and dollars in keys mean nothing in text
        "window": agent.window and _window_document(agent.window),
    }


def _load(document: Document) -> Agent:
    return Agent.model_validate(document | {"uid": document["_id"], "config": json.loads(document["config"])})


def _window_document(window: Window) -> Document:
    return window.model_dump(mode="json") | {"open": window.ended_at is None}
