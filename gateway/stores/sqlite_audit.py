"""Audit lines as rows of the SQLite store. The file's triggers refuse to change or delete one."""

import json
import sqlite3
from collections.abc import Iterable
from typing import Any

from gateway.models.audit import NO_HASH, AuditFilter, AuditLine, Before, ChainedLine, beginning, chained
from gateway.models.base import iso
from gateway.models.pages import Page, PageRequest, Position, decode
from gateway.stores.paging import AFTER_ALL, cut, offset

BATCH = 500
_COLUMNS = "id, at, line, sequence, previous, hash"


def append_audit(connection: sqlite3.Connection, lines: list[AuditLine]) -> None:
    """In the transaction of the caller: nobody else writes between the head that is read and the lines after it."""
    new = list({line.id: line for line in reversed(lines) if not _is_there(connection, line.id)}.values())[::-1]
    if not new:
        return
    head = connection.execute(
        "SELECT sequence, hash FROM audit WHERE sequence IS NOT NULL ORDER BY sequence DESC LIMIT 1"
    ).fetchone()
    if head is None:
        before = Before()
        for (text,) in connection.execute("SELECT line FROM audit ORDER BY number"):
            before.add(json.loads(text))
        new.insert(0, beginning(before, new[0].at))
    connection.executemany(
        f"INSERT INTO audit ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608 - our own column names
        [
            (link.fields["id"], link.fields["at"], json.dumps(link.fields), link.number, link.previous, link.hash)
            for link in chained(new, *(head or (0, NO_HASH)))
        ],
    )


def list_audit(connection: sqlite3.Connection, filter_: AuditFilter, page: PageRequest) -> Page[ChainedLine]:
    after = decode(page.token, filter_.digest) if page.token else None
    before = (iso(after.created_at), after.key) if after else (AFTER_ALL, "")
    wanted, values = _wanted(filter_)
    (total_count,) = connection.execute(f"SELECT count(*) FROM audit WHERE {wanted}", values).fetchone()  # noqa: S608 - fixed fragments, values are bound
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM audit WHERE {wanted} AND (at, id) < (?, ?) ORDER BY at DESC, id DESC LIMIT ? OFFSET ?",  # noqa: S608 - as above
        (*values, *before, page.limit + 1, offset(page)),
    )
    found = list(_loaded(rows))
    return cut(found, total_count, page, filter_.digest, lambda last: Position(last.line.at, last.fields["id"]))


def audit_after(connection: sqlite3.Connection, filter_: AuditFilter, number: int) -> tuple[list[ChainedLine], int]:
    """The next lines in the order in which they were written, and the number of the last row."""
    wanted, values = _wanted(filter_)
    rows = connection.execute(
        f"SELECT {_COLUMNS}, number FROM audit WHERE {wanted} AND number > ? ORDER BY number LIMIT ?",  # noqa: S608 - as above
        (*values, number, BATCH),
    ).fetchall()
    return list(_loaded(row[:-1] for row in rows)), rows[-1][-1] if rows else number


def _is_there(connection: sqlite3.Connection, id_: str) -> bool:
    return connection.execute("SELECT 1 FROM audit WHERE id = ?", (id_,)).fetchone() is not None


def _wanted(filter_: AuditFilter) -> tuple[str, list[Any]]:
    conditions, values = ["at >= ?", "at < ?"], list[Any](filter_.span)
    for name, value in filter_.equal.items():
        conditions.append(f"json_extract(line, '$.{name}') = ?")
        values.append(value)
    return " AND ".join(conditions), values


def _loaded(rows: Iterable[tuple[Any, ...]]) -> Iterable[ChainedLine]:
    for id_, at, text, number, previous, hash_ in rows:
        fields = json.loads(text)
        yield ChainedLine(fields, number, previous, hash_, (fields.get("id"), fields.get("at")) == (id_, at))
