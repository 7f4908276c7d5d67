"""Snapshots as rows of the SQLite store."""

import sqlite3

from gateway.errors import SnapshotNotFound
from gateway.models.base import iso
from gateway.models.pages import Page, PageRequest, Position, decode, digest
from gateway.models.snapshots import Snapshot
from gateway.stores.paging import AFTER_ALL, cut, offset

_CREATED_BY = "json_extract(document, '$.created_by')"


def insert_snapshot(connection: sqlite3.Connection, snapshot: Snapshot) -> None:
    connection.execute(
        "INSERT INTO snapshots (id, place, loose, created_at, document) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            snapshot.id,
            snapshot.place,
            int(snapshot.is_loose),
            iso(snapshot.created_at),
            snapshot.model_dump_json(),
        ),
    )


def delete_snapshot(connection: sqlite3.Connection, snapshot_id: str) -> None:
    if not connection.execute("DELETE FROM snapshots WHERE id = ?", (snapshot_id,)).rowcount:
        raise SnapshotNotFound(snapshot_id)


def list_snapshots(
    connection: sqlite3.Connection, place: str | None, page: PageRequest, created_by: str | None = None
) -> Page[Snapshot]:
    digest_ = digest(("snapshots", place, created_by))
    after = decode(page.token, digest_) if page.token else None
    before = (iso(after.created_at), after.key) if after else (AFTER_ALL, "")
    # Written out, "loose = 1" lets SQLite use the index that holds only those.
    wanted, values = ("place = ?", (place,)) if place is not None else ("loose = 1", ())
    if place is None and created_by is not None:
        wanted = f"loose = 1 AND {_CREATED_BY} > '' AND {_CREATED_BY} = ?"
        values = (created_by,)
    (total_count,) = connection.execute(f"SELECT count(*) FROM snapshots WHERE {wanted}", values).fetchone()  # noqa: S608 - one of those above
    rows = connection.execute(
        f"SELECT document FROM snapshots WHERE {wanted} AND (created_at, id) < (?, ?)"  # noqa: S608 - as above
        " ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?",
        (*values, *before, page.limit + 1, offset(page)),
    ).fetchall()
    found = [Snapshot.model_validate_json(row[0]) for row in rows]
    return cut(found, total_count, page, digest_, lambda last: Position(last.created_at, last.id))
