"""Memories as rows of the SQLite store, with an FTS5 index over the names of their words.

Only names go into the index and into what it is asked, each quoted: nothing that a user writes is an operator. Each
begins with whose memory it is of, so how much others remember costs nothing. Numbers of rows grow with time, so the
index itself gives the newest first.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from gateway.errors import MemoryNotFound
from gateway.models.base import iso
from gateway.models.memories import Candidate, Indexed, Memory, MemoryFilter
from gateway.models.pages import Page, PageRequest, Position
from gateway.models.words import mark_name
from gateway.stores.memories import MemoryChanged, WordCounts
from gateway.stores.sqlite_reach import SqliteReach, newest

_MOST_VALUES = 500  # in one statement


class SqliteMemories(SqliteReach):
    async def put_memory(self, memory: Memory, indexed: Indexed) -> None:
        row = _row(memory, indexed)

        def work(connection: sqlite3.Connection) -> None:
            put = connection.execute(
                f"INSERT INTO memories ({', '.join(row)}) VALUES ({_marks(row)}) ON CONFLICT DO NOTHING",  # noqa: S608 - our own column names
                tuple(row.values()),
            )
            if put.rowcount:
                _index(connection, put.lastrowid, memory.agent_uid, row["words"])

        await self._write(work)

    async def change_memory(self, memory: Memory, indexed: Indexed) -> None:
        row = _row(memory, indexed)
        setting = ", ".join(f"{column} = ?" for column in row)

        def work(connection: sqlite3.Connection) -> None:
            found = connection.execute(
                "SELECT number, words FROM memories WHERE id = ? AND version = ? AND deleted_at IS NULL",
                (memory.id, memory.version - 1),
            ).fetchone()
            if found is None:
                raise MemoryChanged(memory.id)
            number, words = found
            unindex(connection, number, memory.agent_uid, words)
            connection.execute(
                f"UPDATE memories SET {setting} WHERE number = ?",  # noqa: S608 - our own column names
                (*row.values(), number),
            )
            _index(connection, number, memory.agent_uid, row["words"])

        await self._write(work)

    async def delete_memory(self, agent_uid: str, memory_id: str, at: datetime) -> None:
        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute(_GET, (memory_id, agent_uid)).fetchone()
            if row is None:
                raise MemoryNotFound(memory_id)
            memory = Memory.model_validate_json(row[0]).model_copy(update={"deleted_at": at})
            connection.execute(
                "UPDATE memories SET deleted_at = ?, document = ? WHERE id = ?",
                (iso(at), memory.model_dump_json(), memory_id),
            )

        await self._write(work)

    async def get_memory(self, agent_uid: str, memory_id: str) -> Memory:
        row = self._point(_GET, memory_id, agent_uid)
        if row is None:
            raise MemoryNotFound(memory_id)
        return Memory.model_validate_json(row[0])

    async def get_memories(self, agent_uid: str, memory_ids: Sequence[str]) -> list[Memory]:
        def scan(connection: sqlite3.Connection) -> list[Memory]:
            found = []
            for start in range(0, len(memory_ids), _MOST_VALUES):
                some = memory_ids[start : start + _MOST_VALUES]
                found += connection.execute(
                    # The plus keeps SQLite from looking through all of the agent's instead of for these ids.
                    f"SELECT document FROM memories WHERE id IN ({_marks(some)}) AND +agent_uid = ?",  # noqa: S608 - marks
                    (*some, agent_uid),
                ).fetchall()
            return [Memory.model_validate_json(row[0]) for row in found]

        return await self._scan(scan) if memory_ids else []

    async def list_memories(self, filter_: MemoryFilter, page: PageRequest) -> Page[Memory]:
        wanted, values = _conditions(filter_)
        source = "memories m"
        if filter_.tags:
            source = "memory_words JOIN memories m ON m.number = memory_words.rowid"
            wanted = f"memory_words MATCH ? AND {wanted}"
            values = [_match(filter_, ()), *values]

        def scan(connection: sqlite3.Connection) -> Page[Memory]:
            return newest(
                connection, "document", source, "id", wanted, values, page, filter_.digest,
                lambda row: Memory.model_validate_json(row[0]), lambda last: Position(last.created_at, last.id),
            )  # fmt: skip

        return await self._scan(scan)

    async def count_words(self, agent_uid: str, names: Sequence[str], most: int) -> WordCounts:
        def scan(connection: sqlite3.Connection) -> WordCounts:
            (total,) = connection.execute(
                "SELECT count(*) FROM (SELECT 1 FROM memories WHERE agent_uid = ? LIMIT ?)", (agent_uid, most)
            ).fetchone()
            holding = {}
            for name in names:
                (holding[name],) = connection.execute(
                    "SELECT count(*) FROM (SELECT 1 FROM memory_words WHERE memory_words MATCH ? LIMIT ?)",
                    (_quoted(agent_uid, name), most),
                ).fetchone()
            return WordCounts(total, holding)

        return await self._scan(scan)

    async def find_candidates(self, filter_: MemoryFilter, names: Sequence[str], most: int) -> list[Candidate]:
        wanted, values = _conditions(filter_)

        def scan(connection: sqlite3.Connection) -> list[Candidate]:
            rows = connection.execute(
                "SELECT m.id, m.created_at, m.version > 1, m.counts, m.length"  # noqa: S608 - our own words
                " FROM memory_words CROSS JOIN memories m ON m.number = memory_words.rowid"
                f" WHERE memory_words MATCH ? AND {wanted} ORDER BY memory_words.rowid DESC LIMIT ?",
                (_match(filter_, names), *values, most),
            )
            return [
                Candidate(id_, datetime.fromisoformat(created_at), bool(changed), counts, length)
                for id_, created_at, changed, counts, length in rows
            ]

        return await self._scan(scan)


def _row(memory: Memory, indexed: Indexed) -> dict[str, Any]:
    return {
        "id": memory.id,
        "agent_uid": memory.agent_uid,
        "type": memory.now.type,
        "confidence": memory.now.confidence,
        "created_at": iso(memory.created_at),
        "deleted_at": memory.deleted_at and iso(memory.deleted_at),
        "expires_at": memory.now.expires_at and iso(memory.now.expires_at),
        "version": memory.version,
        "words": " ".join(indexed.names),
        "counts": indexed.counts,
        "length": indexed.length,
        "document": memory.model_dump_json(),
    }


def _index(connection: sqlite3.Connection, number: int | None, agent_uid: str, words: str) -> None:
    connection.execute("INSERT INTO memory_words (rowid, words) VALUES (?, ?)", (number, _owned(agent_uid, words)))


def unindex(connection: sqlite3.Connection, number: int, agent_uid: str, words: str) -> None:
    """Take a row out of the index, which does not know itself what it holds of it."""
    connection.execute(
        "INSERT INTO memory_words (memory_words, rowid, words) VALUES ('delete', ?, ?)",
        (number, _owned(agent_uid, words)),
    )


def _owned(agent_uid: str, words: str) -> str:
    return " ".join(f"{agent_uid}{name}" for name in words.split())


def _conditions(filter_: MemoryFilter) -> tuple[str, list[Any]]:
    """What a row of `memories m` must be, but for its words."""
    at = iso(filter_.at)
    parts: list[tuple[str, Any]] = [
        ("m.agent_uid = ?", filter_.agent_uid),
        ("m.created_at <= ?", at),
        ("(m.deleted_at IS NULL OR m.deleted_at > ?)", at),
    ]
    if filter_.since is not None:
        parts.append(("m.created_at >= ?", iso(filter_.since)))
    if filter_.until is not None:
        parts.append(("m.created_at < ?", iso(filter_.until)))
    if not filter_.is_past:
        parts.append(("(m.expires_at IS NULL OR m.expires_at > ?)", at))
        if filter_.type is not None:
            parts.append(("m.type = ?", filter_.type))
        if filter_.min_confidence is not None:
            parts.append(("m.confidence >= ?", filter_.min_confidence))
        has_tag = "EXISTS (SELECT 1 FROM json_each(m.document, '$.now.tags') WHERE value = ?)"
        parts += [(has_tag, tag) for tag in filter_.tags]  # the index also has those that it had before
    return " AND ".join(part for part, _ in parts), [value for _, value in parts]


def _match(filter_: MemoryFilter, names: Iterable[str]) -> str:
    """What the index is asked: memories with these tags and this type, and one of these words if there are any."""
    needed: list[str] = []
    if not filter_.is_past:
        needed += [mark_name("g", tag) for tag in filter_.tags]
        needed += [mark_name("t", filter_.type)] if filter_.type is not None else []
    parts = [_quoted(filter_.agent_uid, name) for name in needed]
    if any_of := " OR ".join(_quoted(filter_.agent_uid, name) for name in names):
        parts.append(f"({any_of})")
    return " AND ".join(parts)


def _quoted(agent_uid: str, name: str) -> str:
    return f'"{agent_uid}{name}"'  # names hold no quotes: letters, digits and their marks alone


def _marks(values: Iterable[object]) -> str:
    return ", ".join("?" for _ in values)


_GET = "SELECT document FROM memories WHERE id = ? AND agent_uid = ? AND deleted_at IS NULL"
