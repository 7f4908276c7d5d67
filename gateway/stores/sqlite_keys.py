"""API keys as rows of the SQLite store."""

import json
import sqlite3
from datetime import datetime

from gateway.errors import KeyNotFound
from gateway.models.access import ApiKey
from gateway.models.base import iso
from gateway.models.pages import Page, PageRequest, Position, digest
from gateway.stores.base import KeyChanged
from gateway.stores.sqlite_reach import newest

_FIELDS = tuple(ApiKey.model_fields)
_COLUMNS = ", ".join(_FIELDS)
GET_KEY = f"SELECT {_COLUMNS} FROM api_keys WHERE id = ?"  # noqa: S608 - our own column names
ANY_KEY = "SELECT 1 FROM api_keys WHERE revoked_at IS NULL LIMIT 1"


def load_key(row: tuple[object, ...]) -> ApiKey:
    fields = dict(zip(_FIELDS, row, strict=True))
    return ApiKey.model_validate({**fields, "guardrails": json.loads(str(fields["guardrails"]))})


def insert_key(connection: sqlite3.Connection, key: ApiKey) -> None:
    row = key.model_dump(mode="json")
    row["guardrails"] = json.dumps(row["guardrails"])
    marks = ", ".join("?" * len(_FIELDS))
    connection.execute(
        f"INSERT INTO api_keys ({_COLUMNS}) VALUES ({marks}) ON CONFLICT DO NOTHING",  # noqa: S608 - as above
        [row[name] for name in _FIELDS],
    )


def list_keys(connection: sqlite3.Connection, page: PageRequest, *, include_revoked: bool) -> Page[ApiKey]:
    digest_ = digest(("keys", include_revoked))
    wanted = "1" if include_revoked else "revoked_at IS NULL"
    return newest(
        connection, _COLUMNS, "api_keys", "id", wanted, (), page, digest_,
        load_key, lambda last: Position(last.created_at, last.id),
    )  # fmt: skip


def rotate_key(
    connection: sqlite3.Connection, key_id: str, former: str, new: str, former_until: datetime, at: datetime
) -> ApiKey:
    connection.execute(
        "UPDATE api_keys SET secret_hash = ?, former_hash = ?, former_until = ?, rotated_at = ?"
        " WHERE id = ? AND secret_hash = ? AND revoked_at IS NULL",
        (new, former, iso(former_until), iso(at), key_id, former),
    )
    key = _find(connection, key_id)
    if key.revoked_at is not None:
        raise KeyNotFound(key_id)
    if key.secret_hash != new:
        raise KeyChanged(key_id)
    return key


def revoke_key(connection: sqlite3.Connection, key_id: str, at: datetime) -> ApiKey:
    connection.execute("UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (iso(at), key_id))
    return _find(connection, key_id)


def touch_key(connection: sqlite3.Connection, key_id: str, at: datetime) -> None:
    connection.execute(
        "UPDATE api_keys SET last_used_at = ? WHERE id = ? AND (last_used_at IS NULL OR last_used_at < ?)",
        (iso(at), key_id, iso(at)),
    )


def _find(connection: sqlite3.Connection, key_id: str) -> ApiKey:
    row = connection.execute(GET_KEY, (key_id,)).fetchone()
    if row is None:
        raise KeyNotFound(key_id)
    return load_key(row)
