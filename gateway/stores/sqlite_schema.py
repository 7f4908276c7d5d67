"""The tables of the SQLite store, and how an older file becomes a newer one."""

import os
import sqlite3
from pathlib import Path

from gateway.errors import Unavailable

# `document` holds the whole session. The columns beside it are what lists filter by; labels have a table of their
# own whose rows repeat `live` and `created_at`, so that one index finds them and gives them in a list's order.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE sessions (
            uid TEXT PRIMARY KEY,
            id TEXT NOT NULL,
            live INTEGER NOT NULL,
            state TEXT NOT NULL,
            language TEXT NOT NULL,
            created_by TEXT NOT NULL,
            parent_id TEXT,
            name TEXT NOT NULL,
            holder TEXT,
            created_at TEXT NOT NULL,
            deleted_at TEXT,
            document TEXT NOT NULL
        ) STRICT""",
        "CREATE UNIQUE INDEX sessions_live_id ON sessions (id) WHERE live = 1",
        "CREATE INDEX sessions_deleted_id ON sessions (id, deleted_at DESC) WHERE live = 0",
        "CREATE INDEX sessions_newest ON sessions (live, created_at DESC, uid DESC)",
        "CREATE INDEX sessions_owner ON sessions (live, created_by, created_at DESC, uid DESC)",
        "CREATE INDEX sessions_parent ON sessions (live, parent_id, created_at DESC, uid DESC)"
        " WHERE parent_id IS NOT NULL",
        "CREATE INDEX sessions_holder ON sessions (holder) WHERE holder IS NOT NULL",
        """CREATE TABLE session_labels (
            live INTEGER NOT NULL,
            k TEXT NOT NULL,
            v TEXT NOT NULL,
            created_at TEXT NOT NULL,
            uid TEXT NOT NULL,
            PRIMARY KEY (live, k, v, created_at DESC, uid DESC)
        ) STRICT, WITHOUT ROWID""",
        "CREATE UNIQUE INDEX session_labels_key ON session_labels (live, k, created_at DESC, uid DESC)",
        "CREATE INDEX session_labels_uid ON session_labels (uid)",
        """CREATE TABLE moves (
            uid TEXT NOT NULL,
            number INTEGER NOT NULL,
            at TEXT NOT NULL,
            before TEXT,
            after TEXT NOT NULL,
            reason TEXT,
            PRIMARY KEY (uid, number)
        ) STRICT, WITHOUT ROWID""",
        "CREATE TABLE purged (id TEXT PRIMARY KEY) STRICT, WITHOUT ROWID",
        "CREATE TABLE gateways (id TEXT PRIMARY KEY, at TEXT NOT NULL) STRICT, WITHOUT ROWID",
        """CREATE TABLE executions (
            id TEXT PRIMARY KEY,
            session_uid TEXT NOT NULL,
            queued_at TEXT NOT NULL,
            rank INTEGER NOT NULL,
            packed BLOB NOT NULL
        ) STRICT""",
        "CREATE INDEX executions_newest ON executions (session_uid, queued_at DESC, id DESC)",
        "CREATE INDEX executions_unfinished ON executions (session_uid) WHERE rank < 2",
        """CREATE TABLE answers (
            key TEXT PRIMARY KEY,
            created_at TEXT NOT NULL,
            request_digest TEXT NOT NULL,
            status INTEGER,
            content_type TEXT,
            body BLOB NOT NULL
        ) STRICT""",
        "CREATE INDEX answers_oldest ON answers (created_at)",
        "CREATE TABLE audit (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at TEXT NOT NULL, line TEXT NOT NULL)"
        " STRICT",
        "CREATE INDEX audit_oldest ON audit (at, number)",
    ),
    (
        """CREATE TABLE snapshots (
            id TEXT PRIMARY KEY,
            place TEXT NOT NULL,
            loose INTEGER NOT NULL,
            created_at TEXT NOT NULL,
            document TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX snapshots_newest ON snapshots (place, created_at DESC, id DESC)",
        "CREATE INDEX snapshots_loose ON snapshots (created_at DESC, id DESC) WHERE loose = 1",
    ),
    # 3: keys, and who may see a session. `session_readers` repeats `live` and `created_at` as labels do.
    (
        """CREATE TABLE api_keys (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            role TEXT NOT NULL,
            agent_id TEXT,
            secret_hash TEXT NOT NULL,
            former_hash TEXT,
            former_until TEXT,
            created_at TEXT NOT NULL,
            created_by TEXT NOT NULL,
            expires_at TEXT,
            rotated_at TEXT,
            revoked_at TEXT,
            last_used_at TEXT
        ) STRICT""",
        "CREATE INDEX api_keys_newest ON api_keys (created_at DESC, id DESC)",
        "CREATE INDEX api_keys_unrevoked ON api_keys (created_at DESC, id DESC) WHERE revoked_at IS NULL",
        """CREATE TABLE session_readers (
            reader TEXT NOT NULL,
            live INTEGER NOT NULL,
            created_at TEXT NOT NULL,
            uid TEXT NOT NULL,
            PRIMARY KEY (reader, live, created_at DESC, uid DESC)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX session_readers_uid ON session_readers (uid)",
        "INSERT INTO session_readers SELECT created_by, live, created_at, uid FROM sessions",
        "INSERT OR IGNORE INTO session_readers"
        " SELECT 'agent:' || json_extract(agent.value, '$.id'), live, created_at, uid"
        " FROM sessions, json_each(sessions.document, '$.agents') AS agent",
        "ALTER TABLE purged ADD COLUMN created_by TEXT",
        "CREATE INDEX snapshots_brought_in ON snapshots"
        " (json_extract(document, '$.created_by'), created_at DESC, id DESC)"
        " WHERE loose = 1 AND json_extract(document, '$.created_by') > ''",  # which tells it from the index above
    ),
    # 4: agents, each with its last window, and their memories. An index of words says which agent they are of, too.
    (
        """CREATE TABLE agents (
            uid TEXT PRIMARY KEY,
            id TEXT NOT NULL,
            live INTEGER NOT NULL,
            created_at TEXT NOT NULL,
            deleted_at TEXT,
            window_id TEXT,
            open_until TEXT,
            document TEXT NOT NULL
        ) STRICT""",
        "CREATE UNIQUE INDEX agents_live_id ON agents (id) WHERE live = 1",
        "CREATE INDEX agents_id ON agents (id, deleted_at DESC)",
        "CREATE INDEX agents_newest ON agents (live, created_at DESC, uid DESC)",
        "CREATE UNIQUE INDEX agents_window ON agents (window_id) WHERE window_id IS NOT NULL",
        "CREATE INDEX agents_open ON agents (open_until) WHERE open_until IS NOT NULL",
        """CREATE TABLE memories (
            number INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            agent_uid TEXT NOT NULL,
            type TEXT NOT NULL,
            confidence REAL NOT NULL,
            created_at TEXT NOT NULL,
            deleted_at TEXT,
            expires_at TEXT,
            version INTEGER NOT NULL,
            words TEXT NOT NULL,
            counts TEXT NOT NULL,
            length INTEGER NOT NULL,
            document TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX memories_newest ON memories (agent_uid, created_at DESC, id DESC)",
        "CREATE VIRTUAL TABLE memory_words USING fts5 (words, content = '', tokenize = 'ascii', detail = 'none')",
    ),
    # 5: the chain of audit lines (`sequence` is null for what is older), which only
    # grows; limits of keys.
    (
        "ALTER TABLE audit ADD COLUMN sequence INTEGER",
        "ALTER TABLE audit ADD COLUMN previous TEXT",
        "ALTER TABLE audit ADD COLUMN hash TEXT",
        "CREATE UNIQUE INDEX audit_sequence ON audit (sequence) WHERE sequence IS NOT NULL",
        "DROP INDEX audit_oldest",
        "CREATE INDEX audit_newest ON audit (at DESC, id DESC)",
        "CREATE INDEX audit_actor ON audit (json_extract(line, '$.actor'), at DESC, id DESC)",
        "CREATE INDEX audit_session ON audit (json_extract(line, '$.session_id'), at DESC, id DESC)",
        "CREATE INDEX audit_request ON audit (json_extract(line, '$.request_id'), at DESC, id DESC)",
        "CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit"
        " BEGIN SELECT RAISE(ABORT, 'audit lines are never changed'); END",
        "CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit"
        " BEGIN SELECT RAISE(ABORT, 'audit lines are never deleted'); END",
        "ALTER TABLE api_keys ADD COLUMN requests_per_second REAL",
        "ALTER TABLE api_keys ADD COLUMN burst INTEGER",
        "ALTER TABLE api_keys ADD COLUMN most_sessions INTEGER",
    ),
    # 6: guardrails of keys, as JSON; quotas: kernels that run, and what they have used.
    (
        "ALTER TABLE api_keys ADD COLUMN guardrails TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE api_keys ADD COLUMN most_kernels INTEGER",
        "ALTER TABLE api_keys ADD COLUMN cpu_seconds_per_day REAL",
        "ALTER TABLE api_keys ADD COLUMN disk_bytes INTEGER",
        "CREATE TABLE places (uid TEXT PRIMARY KEY, owner TEXT NOT NULL, gateway_id TEXT NOT NULL) STRICT",
        "CREATE INDEX places_owner ON places (owner)",
        """CREATE TABLE cpu (
            owner TEXT NOT NULL,
            day TEXT NOT NULL,
            process TEXT NOT NULL,
            seconds REAL NOT NULL,
            PRIMARY KEY (owner, day, process)
        ) STRICT""",
    ),
)


class NewerFile(Unavailable):
    """Opening it would lose what the newer gateway keeps in it."""

    code = "store_newer"

    def __init__(self, path: Path, version: int) -> None:
        super().__init__(
            f"{path} was written by a newer gateway: its schema is {version}, this one knows {len(_MIGRATIONS)}."
        )


def connect_writer(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection on which a COMMIT that returns has reached the disk; makes the file, for its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = _connect(path, busy_timeout_s)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {64 * 1024 * 1024}")
        _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    connection = _connect(path, busy_timeout_s)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    return sqlite3.connect(
        path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, cached_statements=256
    )


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise NewerFile(path, version)
        for statements in _MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise
