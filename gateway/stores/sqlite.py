"""The default store: one SQLite file, for one gateway.

A write has reached the disk when its method returns. Point reads run on the event loop, where they take
microseconds; whatever scans runs on a thread of its own.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gateway.errors import (
    ExecutionNotFound,
    GatewayError,
    KeyNotFound,
    SessionExists,
    SessionHeld,
    SessionNotFound,
    SessionPurged,
    SnapshotNotFound,
)
from gateway.models.access import ApiKey
from gateway.models.audit import EVERY_LINE, AuditFilter, AuditLine, ChainedLine
from gateway.models.base import iso
from gateway.models.executions import Execution
from gateway.models.idempotency import KeptAnswer
from gateway.models.pages import Page, PageRequest, Position, SessionFilter, decode, digest
from gateway.models.sessions import Move, Session
from gateway.models.snapshots import Snapshot
from gateway.stores import sqlite_quotas
from gateway.stores.base import (
    NO_CHANGES,
    BroughtBack,
    HolderChanged,
    SessionChanges,
    StateChanged,
    StoreClosed,
    check_moves,
)  # fmt: skip
from gateway.stores.packing import (
    Filling,
    load_execution,
    load_execution_aside,
    pack,
    pack_aside,
    pack_execution,
    rank,
    unpack,
)
from gateway.stores.paging import AFTER_ALL, cut, executions_page, offset
from gateway.stores.sqlite_agents import SqliteAgents
from gateway.stores.sqlite_audit import append_audit, audit_after, list_audit
from gateway.stores.sqlite_keys import (
    ANY_KEY,
    GET_KEY,
    insert_key,
    list_keys,
    load_key,
    revoke_key,
    rotate_key,
    touch_key,
)
from gateway.stores.sqlite_memories import SqliteMemories
from gateway.stores.sqlite_queries import SessionQuery
from gateway.stores.sqlite_rows import check_quota, insert_session, live_session, live_uid, replace_session, write_move
from gateway.stores.sqlite_schema import connect_reader, connect_writer
from gateway.stores.sqlite_snapshots import delete_snapshot, insert_snapshot, list_snapshots
from gateway.stores.sqlite_writer import Work, Writer, translated

Result = TypeVar("Result")

_POINT_READ_TIMEOUT_S = 0.1  # on the event loop: readers of a WAL file practically never wait


class SqliteStore(SqliteAgents, SqliteMemories):
    """See `Store` for what each method promises."""

    def __init__(self, path: Path, *, busy_timeout_s: float = 2.0) -> None:
        self._path = Path(path)
        self._busy_timeout_s = busy_timeout_s
        self._writer: Writer | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Raises `Unavailable` for a file that a newer gateway has written."""
        with _translating():
            connection = await asyncio.to_thread(connect_writer, self._path, self._busy_timeout_s)
        self._writer = Writer(connection)
        self._points = connect_reader(self._path, _POINT_READ_TIMEOUT_S)
        self._scans = connect_reader(self._path, self._busy_timeout_s)
        self._scanner = ThreadPoolExecutor(1, "sqlite-scanner")
        try:
            yield
        finally:
            writer, self._writer = self._writer, None
            self._scans.interrupt()
            await asyncio.to_thread(self._scanner.shutdown)
            self._points.close()
            self._scans.close()
            await writer.close()

    async def ping(self) -> None:
        self._point("SELECT 1")

    # Sessions

    async def create_session(self, session: Session, most: int | None = None) -> None:
        def work(connection: sqlite3.Connection) -> None:
            if connection.execute("SELECT 1 FROM sessions WHERE uid = ?", (session.uid,)).fetchone():
                return  # asked for again by a caller that never heard the first answer
            if live_uid(connection, session.id):
                raise SessionExists(session.id)
            check_quota(connection, session, most)
            insert_session(connection, session)
            write_move(connection, session.uid, None, session.state, session.state_reason, session.created_at)

        await self._write(work)

    async def get_session(self, session_id: str) -> Session:
        row = self._point("SELECT document FROM sessions WHERE id = ? AND live = 1", session_id)
        if row is None:
            raise SessionNotFound(session_id)
        return Session.model_validate_json(row[0])

    async def get_session_by_uid(self, uid: str) -> Session:
        row = self._point("SELECT document FROM sessions WHERE uid = ? AND live = 1", uid)
        if row is None:
            raise SessionNotFound(uid)
        return Session.model_validate_json(row[0])

    async def get_deleted_session(self, session_id: str) -> Session:
        row = self._point(
            "SELECT document FROM sessions WHERE id = ? AND live = 0 ORDER BY deleted_at DESC LIMIT 1", session_id
        )
        if row is None:
            raise SessionNotFound(session_id)
        return Session.model_validate_json(row[0])

    async def list_sessions(self, filter_: SessionFilter, page: PageRequest) -> Page[Session]:
        query = SessionQuery.of(filter_)
        after = decode(page.token, filter_.digest) if page.token else None
        page_sql, values = query.page(after, page.limit + 1, offset(page))

        def scan(connection: sqlite3.Connection) -> Page[Session]:
            (total_count,) = connection.execute(*query.counting()).fetchone()
            rows = connection.execute(page_sql, values).fetchall()
            sessions = [Session.model_validate_json(row[0]) for row in rows]
            return cut(sessions, total_count, page, filter_.digest, lambda last: Position(last.created_at, last.uid))

        return await self._scan(scan)

    async def update_session(
        self, uid: str, changes: SessionChanges, at: datetime, holder: str | None = None
    ) -> Session:
        def work(connection: sqlite3.Connection) -> Session:
            session = live_session(connection, uid)
            if holder is not None and holder != session.holder:
                raise HolderChanged(session.id, holder)
            return replace_session(connection, session, changes.apply(session), updated_at=at)

        return await self._write(work)

    async def move_session(
        self, uid: str, *moves: Move, changes: SessionChanges = NO_CHANGES, holder: str | None = None,
        executions: Sequence[Execution] = (),
    ) -> Session:  # fmt: skip
        check_moves(moves)
        first, last = moves[0], moves[-1]

        def move(connection: sqlite3.Connection) -> Session:
            session = live_session(connection, uid)
            if session.state != first.before or holder not in (None, session.holder):
                raise StateChanged(session.id, str(first.before))
            for move in moves:
                write_move(connection, uid, move.before, move.after, move.reason, move.at)
            return replace_session(
                connection,
                session,
                changes.apply(session),
                state=last.after,
                state_reason=last.reason,
                updated_at=last.at,
            )

        if not executions:
            return await self._write(move)
        rows = [await _execution_row(execution) for execution in executions]

        def work(connection: sqlite3.Connection) -> Session | GatewayError:
            connection.executemany(_PUT_EXECUTION, rows)
            try:
                return move(connection)
            except GatewayError as refusal:  # before anything was changed; what was put stays
                return refusal

        moved = await self._write(work)
        if isinstance(moved, GatewayError):
            raise moved
        return moved

    async def list_moves(self, uid: str, page: PageRequest) -> Page[Move]:
        digest_ = digest(("moves", uid))
        before = decode(page.token, digest_).key if page.token else str(2**63 - 1)

        def scan(connection: sqlite3.Connection) -> Page[Move]:
            (total_count,) = connection.execute("SELECT count(*) FROM moves WHERE uid = ?", (uid,)).fetchone()
            rows = connection.execute(
                "SELECT before, after, reason, at, number FROM moves WHERE uid = ? AND number < CAST(? AS INTEGER)"
                " ORDER BY number DESC LIMIT ? OFFSET ?",
                (uid, before, page.limit + 1, offset(page)),
            ).fetchall()
            moves = [Move(before=row[0], after=row[1], reason=row[2], at=row[3]) for row in rows]
            last = str(rows[page.limit - 1][4]) if len(rows) > page.limit else ""
            return cut(moves, total_count, page, digest_, lambda move: Position(move.at, last))

        return await self._scan(scan)

    async def delete_session(self, uid: str, at: datetime) -> Session:
        def work(connection: sqlite3.Connection) -> Session:
            session = live_session(connection, uid)
            return replace_session(connection, session, session, deleted_at=at, updated_at=at, holder=None)

        return await self._write(work)

    async def undelete_session(self, session_id: str, at: datetime, owner: str | None = None) -> Session:
        def work(connection: sqlite3.Connection) -> Session:
            theirs, values = ("", ()) if owner is None else (" AND created_by = ?", (owner,))
            row = connection.execute(
                f"SELECT document FROM sessions WHERE id = ? AND live = 0{theirs} ORDER BY deleted_at DESC LIMIT 1",  # noqa: S608 - one of the two above
                (session_id, *values),
            ).fetchone()
            if (uid := live_uid(connection, session_id)) is not None and (
                row is not None or owner in (None, live_session(connection, uid).created_by)
            ):
                raise SessionExists(session_id)
            if row is None:
                purged = connection.execute(
                    f"SELECT 1 FROM purged WHERE id = ?{theirs}",  # noqa: S608 - as above
                    (session_id, *values),
                ).fetchone()
                raise SessionPurged(session_id) if purged else SessionNotFound(session_id)
            session = Session.model_validate_json(row[0])
            return replace_session(connection, session, session, deleted_at=None, updated_at=at)

        return await self._write(work)

    async def purge_session(self, uid: str, deleted_at: datetime | None = None) -> None:
        def work(connection: sqlite3.Connection) -> None:
            found = connection.execute("SELECT id, deleted_at FROM sessions WHERE uid = ?", (uid,)).fetchone()
            if deleted_at is not None and found is not None and found[1] != iso(deleted_at):
                raise BroughtBack(found[0])
            connection.execute(
                "INSERT OR REPLACE INTO purged SELECT id, created_by FROM sessions WHERE uid = ?", (uid,)
            )
            connection.execute("DELETE FROM sessions WHERE uid = ?", (uid,))
            connection.execute("DELETE FROM session_readers WHERE uid = ?", (uid,))
            connection.execute("DELETE FROM session_labels WHERE uid = ?", (uid,))
            connection.execute("DELETE FROM moves WHERE uid = ?", (uid,))
            connection.execute("DELETE FROM executions WHERE session_uid = ?", (uid,))
            connection.execute("DELETE FROM snapshots WHERE place = ?", (uid,))

        await self._write(work)

    # Who holds what

    async def beat(self, gateway_id: str, at: datetime) -> None:
        await self._write(
            lambda connection: connection.execute(
                "INSERT INTO gateways VALUES (?, ?) ON CONFLICT DO UPDATE SET at = max(at, excluded.at)",
                (gateway_id, iso(at)),
            )
        )

    async def is_alive(self, gateway_id: str, stale_before: datetime) -> bool:
        beat = self._point("SELECT 1 FROM gateways WHERE id = ? AND at >= ?", gateway_id, iso(stale_before))
        return beat is not None

    async def claim_session(self, uid: str, gateway_id: str, stale_before: datetime) -> Session:
        def work(connection: sqlite3.Connection) -> Session:
            session = live_session(connection, uid)
            if session.holder == gateway_id:
                return session
            if (
                session.holder is not None
                and connection.execute(
                    "SELECT 1 FROM gateways WHERE id = ? AND at >= ?", (session.holder, iso(stale_before))
                ).fetchone()
            ):
                raise SessionHeld(session.id, session.holder)
            return replace_session(connection, session, session, holder=gateway_id)

        return await self._write(work)

    async def release_session(self, uid: str, gateway_id: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            row = connection.execute(
                "SELECT document FROM sessions WHERE uid = ? AND holder = ?", (uid, gateway_id)
            ).fetchone()
            if row is not None:
                session = Session.model_validate_json(row[0])
                replace_session(connection, session, session, holder=None)

        await self._write(work)

    async def list_abandoned(self, gateway_id: str, stale_before: datetime) -> list[Session]:
        def scan(connection: sqlite3.Connection) -> list[Session]:
            rows = connection.execute(
                "SELECT document FROM sessions WHERE holder IS NOT NULL AND live = 1 AND (holder = ?"
                " OR holder NOT IN (SELECT id FROM gateways WHERE at >= ?)) ORDER BY created_at DESC, uid DESC",
                (gateway_id, iso(stale_before)),
            )
            return [Session.model_validate_json(row[0]) for row in rows]

        return await self._scan(scan)

    async def list_unheld_temporary(self) -> list[Session]:
        def scan(connection: sqlite3.Connection) -> list[Session]:
            rows = connection.execute(
                "SELECT document FROM sessions"
                " WHERE live = 1 AND holder IS NULL AND NOT json_extract(document, '$.persistent')"
            )
            return [Session.model_validate_json(row[0]) for row in rows]

        return await self._scan(scan)

    # Quotas

    async def take_place(
        self, owner: str, uid: str, gateway_id: str, stale_before: datetime, most: int | None = None
    ) -> None:
        await self._write(lambda one: sqlite_quotas.take_place(one, owner, uid, gateway_id, stale_before, most))

    async def free_place(self, uid: str, gateway_id: str) -> None:
        await self._write(lambda one: sqlite_quotas.free_place(one, uid, gateway_id))

    async def clear_places(self, gateway_id: str) -> None:
        await self._write(lambda one: sqlite_quotas.clear_places(one, gateway_id))

    async def note_cpu(self, owner: str, day: date, process: str, seconds: float) -> float:
        return await self._write(lambda one: sqlite_quotas.note_cpu(one, owner, day, process, seconds))

    async def disk_used(self, owner: str) -> int:
        return await self._scan(lambda one: sqlite_quotas.disk_used(one, owner))

    # Executions

    async def put_execution(self, execution: Execution) -> None:
        row = await _execution_row(execution)
        await self._write(lambda connection: connection.execute(_PUT_EXECUTION, row))

    async def get_execution(self, uid: str, execution_id: str) -> Execution:
        row = self._point("SELECT packed FROM executions WHERE id = ? AND session_uid = ?", execution_id, uid)
        if row is None:
            raise ExecutionNotFound(execution_id)
        return await load_execution_aside(row[0])

    async def list_executions(self, uid: str, page: PageRequest) -> Page[Execution]:
        digest_ = digest(("executions", uid))
        after = decode(page.token, digest_) if page.token else None
        before = (iso(after.created_at), after.key) if after else (AFTER_ALL, "")

        def scan(connection: sqlite3.Connection) -> Page[Execution]:
            (total_count,) = connection.execute(
                "SELECT count(*) FROM executions WHERE session_uid = ?", (uid,)
            ).fetchone()
            rows = connection.execute(
                "SELECT packed FROM executions WHERE session_uid = ? AND (queued_at, id) < (?, ?)"
                " ORDER BY queued_at DESC, id DESC LIMIT ? OFFSET ?",
                (uid, *before, page.limit + 1, offset(page)),
            )
            filling = Filling(page)
            for row in rows:
                if not filling.add(row[0]):
                    break
            rows.close()
            return executions_page(filling, total_count, digest_)

        return await self._scan(scan)

    async def list_unfinished(self, uid: str) -> list[Execution]:
        def scan(connection: sqlite3.Connection) -> list[Execution]:
            rows = connection.execute(
                "SELECT packed FROM executions WHERE session_uid = ? AND rank < 2 ORDER BY queued_at, id", (uid,)
            )
            return [load_execution(row[0]) for row in rows]

        return await self._scan(scan)

    # Snapshots

    async def put_snapshot(self, snapshot: Snapshot) -> None:
        await self._write(lambda connection: insert_snapshot(connection, snapshot))

    async def get_snapshot(self, snapshot_id: str) -> Snapshot:
        row = self._point("SELECT document FROM snapshots WHERE id = ?", snapshot_id)
        if row is None:
            raise SnapshotNotFound(snapshot_id)
        return Snapshot.model_validate_json(row[0])

    async def list_snapshots(
        self, place: str | None, page: PageRequest, created_by: str | None = None
    ) -> Page[Snapshot]:
        return await self._scan(lambda connection: list_snapshots(connection, place, page, created_by))

    async def delete_snapshot(self, snapshot_id: str) -> None:
        await self._write(lambda connection: delete_snapshot(connection, snapshot_id))

    # API keys

    async def create_key(self, key: ApiKey) -> None:
        await self._write(lambda connection: insert_key(connection, key))

    async def get_key(self, key_id: str) -> ApiKey:
        row = self._point(GET_KEY, key_id)
        if row is None:
            raise KeyNotFound(key_id)
        return load_key(row)

    async def any_key(self) -> bool:
        return self._point(ANY_KEY) is not None

    async def list_keys(self, page: PageRequest, *, include_revoked: bool) -> Page[ApiKey]:
        return await self._scan(lambda connection: list_keys(connection, page, include_revoked=include_revoked))

    async def rotate_key(self, key_id: str, former: str, new: str, former_until: datetime, at: datetime) -> ApiKey:
        return await self._write(lambda connection: rotate_key(connection, key_id, former, new, former_until, at))

    async def revoke_key(self, key_id: str, at: datetime) -> ApiKey:
        return await self._write(lambda connection: revoke_key(connection, key_id, at))

    async def touch_key(self, key_id: str, at: datetime) -> None:
        await self._write(lambda connection: touch_key(connection, key_id, at))

    # Idempotency keys

    async def reserve_answer(self, answer: KeptAnswer, expired_before: datetime) -> KeptAnswer | None:
        def work(connection: sqlite3.Connection) -> KeptAnswer | None:
            connection.execute("DELETE FROM answers WHERE created_at < ?", (iso(expired_before),))
            row = connection.execute(
                "SELECT key, request_digest, created_at, status, content_type, body FROM answers WHERE key = ?",
                (answer.key,),
            ).fetchone()
            if row is None:
                _keep(connection, answer, pack(answer.body))
                return None
            return _answer_of(row)

        return await self._write(work)

    async def keep_answer(self, answer: KeptAnswer) -> None:
        body = await pack_aside(answer.body)
        await self._write(lambda connection: _keep(connection, answer, body))

    async def get_answer(self, key: str) -> KeptAnswer | None:
        row = self._point(f"SELECT {', '.join(_ANSWER_FIELDS)} FROM answers WHERE key = ?", key)  # noqa: S608 - our own
        return None if row is None else _answer_of(row)

    async def drop_answer(self, reservation: KeptAnswer) -> None:
        await self._write(
            lambda connection: connection.execute(
                "DELETE FROM answers WHERE key = ? AND created_at = ? AND status IS NULL",
                (reservation.key, iso(reservation.created_at)),
            )
        )

    # Audit

    async def append_audit(self, lines: list[AuditLine]) -> None:
        await self._write(lambda connection: append_audit(connection, lines))

    async def list_audit(self, filter_: AuditFilter, page: PageRequest) -> Page[ChainedLine]:
        return await self._scan(lambda connection: list_audit(connection, filter_, page))

    async def read_audit(self, filter_: AuditFilter = EVERY_LINE) -> AsyncIterator[ChainedLine]:
        last = 0
        while True:
            lines, last = await self._scan(partial(audit_after, filter_=filter_, number=last))
            if not lines:
                return
            for line in lines:
                yield line

    # The three ways to the file

    async def _write(self, work: Work[Result]) -> Result:
        if self._writer is None:
            raise StoreClosed
        return await self._writer.do(work)

    def _point(self, sql: str, *values: Any) -> Any:
        """One row, read here and now on the event loop."""
        if self._writer is None:
            raise StoreClosed
        with _translating():
            return self._points.execute(sql, values).fetchone()

    async def _scan(self, work: Work[Result]) -> Result:
        """The result of `work` on the scanning thread, which sees the file as of one instant."""
        if self._writer is None:
            raise StoreClosed

        def scan() -> Result:
            with _translating(), _one_instant(self._scans):
                return work(self._scans)

        return await asyncio.get_running_loop().run_in_executor(self._scanner, scan)


async def _execution_row(execution: Execution) -> tuple[str, str, str, int, bytes]:
    packed = await pack_execution(execution)
    return execution.id, execution.session_uid, iso(execution.queued_at), rank(execution), packed


@contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise translated(error) from error


@contextmanager
def _one_instant(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.rollback()


def _answer_of(row: Any) -> KeptAnswer:
    return KeptAnswer.model_validate(dict(zip(_ANSWER_FIELDS, row, strict=True)) | {"body": unpack(row[5])})


def _keep(connection: sqlite3.Connection, answer: KeptAnswer, body: bytes) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO answers (key, request_digest, created_at, status, content_type, body)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (answer.key, answer.request_digest, iso(answer.created_at), answer.status, answer.content_type, body),
    )


_ANSWER_FIELDS = ("key", "request_digest", "created_at", "status", "content_type", "body")
_PUT_EXECUTION = """INSERT INTO executions (id, session_uid, queued_at, rank, packed) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET queued_at = excluded.queued_at, rank = excluded.rank, packed = excluded.packed
    WHERE excluded.rank >= rank AND excluded.session_uid = session_uid"""
