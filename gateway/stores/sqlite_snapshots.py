"""Snapshots as rows of the SQLite store."""

import sqlite3

from gateway.errors import SnapshotNotFound
from gateway.models.base import iso
from gateway.models.pages import Page, PageRequest, Position, digest
from gateway.models.snapshots import Snapshot
from gateway.stores.sqlite_reach import newest

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
    # Written out, "loose = 1" lets SQLite use the index that holds only those.
    wanted, values = ("place = ?", (place,)) if place is not None else ("loose = 1", ())
    if place is None and created_by is not None:
        wanted = f"loose = 1 AND {_CREATED_BY} > '' AND {_CREATED_BY} = ?"
        values = (created_by,)
    return newest(
        connection, "document", "snapshots", "id", wanted, values, page, digest_,
        lambda row: Snapshot.model_validate_json(row[0]), lambda last: Position(last.created_at, last.id),
    )  # fmt: skip
