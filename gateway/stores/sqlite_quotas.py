"""Quotas in the SQLite store, which has one gateway."""

import sqlite3
from datetime import date, datetime, timedelta

from gateway.errors import QuotaExceeded
from gateway.models.base import iso


def take_place(
    connection: sqlite3.Connection, owner: str, uid: str, gateway_id: str, stale_before: datetime, most: int | None
) -> None:
    if most is not None:
        (others,) = connection.execute(
            "SELECT count(*) FROM places WHERE owner = ? AND uid <> ?"
            " AND (gateway_id = ? OR gateway_id IN (SELECT id FROM gateways WHERE at >= ?))",
            (owner, uid, gateway_id, iso(stale_before)),
        ).fetchone()
        if others >= most:
            raise QuotaExceeded.of_kernels(owner, most)
    connection.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", (uid, owner, gateway_id))


def free_place(connection: sqlite3.Connection, uid: str, gateway_id: str) -> None:
    connection.execute("DELETE FROM places WHERE uid = ? AND gateway_id = ?", (uid, gateway_id))


def clear_places(connection: sqlite3.Connection, gateway_id: str) -> None:
    connection.execute("DELETE FROM places WHERE gateway_id = ?", (gateway_id,))


def note_cpu(connection: sqlite3.Connection, owner: str, day: date, process: str, seconds: float) -> float:
    connection.execute("DELETE FROM cpu WHERE day < ?", ((day - timedelta(days=1)).isoformat(),))
    connection.execute(
        "INSERT INTO cpu VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET seconds = max(seconds, excluded.seconds)",
        (owner, day.isoformat(), process, seconds),
    )
    total = "SELECT total(seconds) FROM cpu WHERE owner = ? AND day = ?"
    return float(connection.execute(total, (owner, day.isoformat())).fetchone()[0])


def disk_used(connection: sqlite3.Connection, owner: str) -> int:
    used = "SELECT total(json_extract(document, '$.total_size_bytes')) FROM sessions WHERE live = 1 AND created_by = ?"
    return int(connection.execute(used, (owner,)).fetchone()[0])
