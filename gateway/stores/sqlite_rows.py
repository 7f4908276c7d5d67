"""A session as rows of the SQLite store: its document with the columns beside it, its labels, its moves."""

import sqlite3
from datetime import datetime
from typing import Any

from gateway.errors import QuotaExceeded, SessionNotFound
from gateway.models.base import iso
from gateway.models.sessions import Session
from gateway.states import State


def live_uid(connection: sqlite3.Connection, session_id: str) -> str | None:
    row = connection.execute("SELECT uid FROM sessions WHERE id = ? AND live = 1", (session_id,)).fetchone()
    return None if row is None else str(row[0])


def live_session(connection: sqlite3.Connection, uid: str) -> Session:
    row = connection.execute("SELECT document FROM sessions WHERE uid = ? AND live = 1", (uid,)).fetchone()
    if row is None:
        raise SessionNotFound(uid)
    return Session.model_validate_json(row[0])


def check_quota(connection: sqlite3.Connection, session: Session, most: int | None) -> None:
    """Raises `QuotaExceeded` if its owner has `most` live sessions already."""
    if most is None:
        return
    (owned,) = connection.execute(
        "SELECT count(*) FROM sessions WHERE live = 1 AND created_by = ?", (session.created_by,)
    ).fetchone()
    if owned >= most:
        raise QuotaExceeded.of_sessions(session.created_by, most)


def insert_session(connection: sqlite3.Connection, session: Session) -> None:
    connection.execute(_INSERT_SESSION, [*_columns(session).values(), session.model_dump_json()])
    _write_labels(connection, session)
    _write_readers(connection, session)


def replace_session(connection: sqlite3.Connection, old: Session, changed: Session, **fields: Any) -> Session:
    """Write `changed` with `fields` over `old`, touching only the columns that differ: each has indexes."""
    new = changed.model_copy(update={**fields, "version": old.version + 1})
    before, after = _columns(old), _columns(new)
    differing = {name: value for name, value in after.items() if value != before[name]}
    differing["document"] = new.model_dump_json()
    sets = ", ".join(f"{name} = ?" for name in differing)
    connection.execute(f"UPDATE sessions SET {sets} WHERE uid = ?", [*differing.values(), old.uid])  # noqa: S608 - our own column names
    if old.labels != new.labels or "live" in differing:
        connection.execute("DELETE FROM session_labels WHERE uid = ?", (old.uid,))
        _write_labels(connection, new)
    if old.readers != new.readers or "live" in differing:
        connection.execute("DELETE FROM session_readers WHERE uid = ?", (old.uid,))
        _write_readers(connection, new)
    return new


def _columns(session: Session) -> dict[str, Any]:
    return {
        "uid": session.uid,
        "id": session.id,
        "live": int(session.deleted_at is None),
        "state": session.state,
        "language": session.language,
        "created_by": session.created_by,
        "parent_id": session.parent_id,
        "name": session.name,
        "holder": session.holder,
        "created_at": iso(session.created_at),
        "deleted_at": session.deleted_at and iso(session.deleted_at),
    }


def _write_labels(connection: sqlite3.Connection, session: Session) -> None:
    live, created_at = int(session.deleted_at is None), iso(session.created_at)
    connection.executemany(
        "INSERT INTO session_labels VALUES (?, ?, ?, ?, ?)",
        [(live, k, v, created_at, session.uid) for k, v in session.labels.items()],
    )


def _write_readers(connection: sqlite3.Connection, session: Session) -> None:
    live, created_at = int(session.deleted_at is None), iso(session.created_at)
    connection.executemany(
        "INSERT INTO session_readers VALUES (?, ?, ?, ?)",
        [(reader, live, created_at, session.uid) for reader in session.readers],
    )


def write_move(
    connection: sqlite3.Connection, uid: str, before: State | None, after: State, reason: str | None, at: datetime
) -> None:
    connection.execute(
        "INSERT INTO moves (uid, number, at, before, after, reason)"
        " VALUES (?, (SELECT coalesce(max(number), 0) + 1 FROM moves WHERE uid = ?), ?, ?, ?, ?)",
        (uid, uid, iso(at), before, after, reason),
    )


_INSERT_SESSION = """INSERT INTO sessions
    (uid, id, live, state, language, created_by, parent_id, name, holder, created_at, deleted_at, document)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
