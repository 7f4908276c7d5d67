"""Agents and their windows as rows of the SQLite store."""

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from gateway.errors import AgentExists, AgentNotFound
from gateway.models.agents import Agent, EndReason, Window
from gateway.models.base import iso
from gateway.models.pages import Page, PageRequest, Position, digest
from gateway.stores.agents import ExpiryMoved, WindowNotFound
from gateway.stores.sqlite_memories import unindex
from gateway.stores.sqlite_reach import SqliteReach, newest


class SqliteAgents(SqliteReach):
    async def create_agent(self, agent: Agent) -> None:
        def work(connection: sqlite3.Connection) -> None:
            if connection.execute("SELECT 1 FROM agents WHERE uid = ?", (agent.uid,)).fetchone():
                return  # asked for again by a caller that never heard the first answer
            if _live(connection, "id", agent.id):
                raise AgentExists(agent.id)
            _put(connection, agent)

        await self._write(work)

    async def get_agent(self, agent_id: str) -> Agent:
        row = self._point("SELECT document FROM agents WHERE id = ? AND live = 1", agent_id)
        if row is None:
            raise AgentNotFound(agent_id)
        return Agent.model_validate_json(row[0])

    async def list_agents(self, page: PageRequest, created_by: str | None = None) -> Page[Agent]:
        digest_ = digest(("agents", created_by))
        wanted, values = "live = 1", []
        if created_by is not None:
            wanted, values = "live = 1 AND json_extract(document, '$.created_by') = ?", [created_by]

        def scan(connection: sqlite3.Connection) -> Page[Agent]:
            return newest(
                connection, "document", "agents", "uid", wanted, values, page, digest_,
                lambda row: Agent.model_validate_json(row[0]), lambda last: Position(last.created_at, last.uid),
            )  # fmt: skip

        return await self._scan(scan)

    async def update_agent(self, uid: str, fields: dict[str, Any], at: datetime) -> Agent:
        def work(connection: sqlite3.Connection) -> Agent:
            agent = _live(connection, "uid", uid)
            if agent is None:
                raise AgentNotFound(uid)
            return _put(connection, agent.model_copy(update={**fields, "updated_at": at}))

        return await self._write(work)

    async def delete_agent(self, uid: str, at: datetime) -> Agent:
        def work(connection: sqlite3.Connection) -> Agent:
            agent = _live(connection, "uid", uid)
            if agent is None:
                raise AgentNotFound(uid)
            window = agent.window and _ended(agent.window, at, "deleted")
            return _put(connection, agent.model_copy(update={"deleted_at": at, "updated_at": at, "window": window}))

        return await self._write(work)

    async def undelete_agent(self, agent_id: str, at: datetime, owner: str | None = None) -> Agent:
        def work(connection: sqlite3.Connection) -> Agent:
            row = connection.execute(
                "SELECT document FROM agents WHERE id = ? AND live = 0"
                " AND (? IS NULL OR json_extract(document, '$.created_by') = ?) ORDER BY deleted_at DESC LIMIT 1",
                (agent_id, owner, owner),
            ).fetchone()
            live = _live(connection, "id", agent_id)
            if live is not None and (row is not None or owner in (None, live.created_by)):
                raise AgentExists(agent_id)
            if row is None:
                raise AgentNotFound(agent_id)
            agent = Agent.model_validate_json(row[0])
            return _put(connection, agent.model_copy(update={"deleted_at": None, "updated_at": at}))

        return await self._write(work)

    async def purge_agent(self, uid: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            rows = connection.execute("SELECT number, words FROM memories WHERE agent_uid = ?", (uid,)).fetchall()
            for number, words in rows:
                unindex(connection, number, uid, words)
            connection.execute("DELETE FROM memories WHERE agent_uid = ?", (uid,))
            connection.execute("DELETE FROM agents WHERE uid = ?", (uid,))

        await self._write(work)

    async def open_window(self, window: Window) -> None:
        def work(connection: sqlite3.Connection) -> None:
            agent = _live(connection, "uid", window.agent_uid)
            if agent is None:
                raise AgentNotFound(window.agent_id)
            _put(connection, agent.model_copy(update={"window": window}))

        await self._write(work)

    async def get_window(self, window_id: str) -> Window:
        row = self._point("SELECT document FROM agents WHERE window_id = ?", window_id)
        if row is None:
            raise WindowNotFound
        return _window_of(Agent.model_validate_json(row[0]))

    async def move_expiry(self, window_id: str, before: datetime, after: datetime) -> Window:
        def work(connection: sqlite3.Connection) -> Window:
            agent, window = _holder(connection, window_id)
            if window.ended_at is not None or window.expires_at != before:
                raise ExpiryMoved
            moved = window.model_copy(update={"expires_at": after})
            _put(connection, agent.model_copy(update={"window": moved}))
            return moved

        return await self._write(work)

    async def end_window(self, window_id: str, at: datetime, reason: EndReason) -> Window:
        def work(connection: sqlite3.Connection) -> Window:
            agent, window = _holder(connection, window_id)
            ended = _ended(window, at, reason)
            _put(connection, agent.model_copy(update={"window": ended}))
            return ended

        return await self._write(work)

    async def end_expired(self, at: datetime) -> None:
        if self._point("SELECT 1 FROM agents WHERE open_until <= ?", iso(at)) is None:
            return

        def work(connection: sqlite3.Connection) -> None:
            rows = connection.execute("SELECT document FROM agents WHERE open_until <= ?", (iso(at),)).fetchall()
            for (document,) in rows:
                agent = Agent.model_validate_json(document)
                ended = _ended(_window_of(agent), at, "expired")
                _put(connection, agent.model_copy(update={"window": ended}))

        await self._write(work)

    async def list_windows(self, agent_ids: Sequence[str]) -> list[Window]:
        def scan(connection: sqlite3.Connection) -> list[Window]:
            marks = ", ".join("?" * len(agent_ids))
            rows = connection.execute(
                f"SELECT document FROM agents WHERE id IN ({marks}) AND window_id IS NOT NULL",  # noqa: S608 - marks
                tuple(agent_ids),
            )
            return [_window_of(Agent.model_validate_json(row[0])) for row in rows]

        return await self._scan(scan) if agent_ids else []


def _put(connection: sqlite3.Connection, agent: Agent) -> Agent:
    window = agent.window
    connection.execute(
        "INSERT OR REPLACE INTO agents (uid, id, live, created_at, deleted_at, window_id, open_until, document)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            agent.uid,
            agent.id,
            int(agent.deleted_at is None),
            iso(agent.created_at),
            agent.deleted_at and iso(agent.deleted_at),
            window and window.id,
            iso(window.expires_at) if window and window.ended_at is None else None,
            agent.model_dump_json(),
        ),
    )
    return agent


def _live(connection: sqlite3.Connection, column: str, value: str) -> Agent | None:
    row = connection.execute(f"SELECT document FROM agents WHERE {column} = ? AND live = 1", (value,)).fetchone()  # noqa: S608 - `id` or `uid`
    return Agent.model_validate_json(row[0]) if row else None


def _holder(connection: sqlite3.Connection, window_id: str) -> tuple[Agent, Window]:
    row = connection.execute("SELECT document FROM agents WHERE window_id = ?", (window_id,)).fetchone()
    if row is None:
        raise WindowNotFound
    agent = Agent.model_validate_json(row[0])
    return agent, _window_of(agent)


def _window_of(agent: Agent) -> Window:
    assert agent.window is not None
    return agent.window


def _ended(window: Window, at: datetime, reason: EndReason) -> Window:
    if window.ended_at is not None:
        return window
    reason = "expired" if window.expires_at <= at else reason
    return window.model_copy(update={"ended_at": at, "end_reason": reason})
