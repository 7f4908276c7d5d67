"""What every store promises.

Each method is atomic, speaks in our models and raises our errors: `StoreAway` whenever the database
can't be reached, in which case the caller may repeat the very same call without harm.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from gateway.errors import Conflict, IllegalMove, StoreAway
from gateway.models.access import ApiKey
from gateway.models.audit import EVERY_LINE, AuditFilter, AuditLine, ChainedLine
from gateway.models.executions import Execution
from gateway.models.idempotency import KeptAnswer
from gateway.models.pages import Page, PageRequest, SessionFilter
from gateway.models.sessions import Move, Session
from gateway.models.snapshots import Snapshot
from gateway.states import check_move
from gateway.stores.agents import AgentStore
from gateway.stores.memories import MemoryStore
from gateway.stores.quotas import QuotaStore


class StateChanged(Conflict):
    code = "state_changed"

    def __init__(self, session_id: str, before: str) -> None:
        super().__init__(f"Session {session_id!r} is no longer {before}.", session_id=session_id, before=before)


class HolderChanged(Conflict):
    code = "holder_changed"

    def __init__(self, session_id: str, holder: str) -> None:
        super().__init__(f"Session {session_id!r} is not held by {holder} any more.", session_id=session_id)


class KeyChanged(Conflict):
    """Somebody else rotated it first."""

    code = "key_changed"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"Key {key_id!r} was rotated by somebody else just now.", key_id=key_id)


class BroughtBack(Conflict):
    code = "brought_back"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"Session {session_id!r} was undeleted meanwhile.", session_id=session_id)


class StoreClosed(StoreAway):
    def __init__(self) -> None:
        super().__init__("it is closed")


@dataclass(frozen=True, slots=True)
class SessionChanges:
    """A change to parts of a session, applied to the document as it is at that instant.

    `replace` sets fields, `merge` merges maps (a None removes its key), `add` adds to counters.
    """

    replace: dict[str, Any] = field(default_factory=dict)
    merge: dict[str, dict[str, Any]] = field(default_factory=dict)
    add: dict[str, int] = field(default_factory=dict)

    def apply(self, session: Session) -> Session:
        changed = dict(self.replace)
        for name, changes in self.merge.items():
            merged = {**getattr(session, name), **changes}
            changed[name] = {key: value for key, value in merged.items() if value is not None}
        for name, amount in self.add.items():
            changed[name] = getattr(session, name) + amount
        return session.model_copy(update=changed)

    def then(self, later: "SessionChanges") -> "SessionChanges":
        """One change that does what this one and then `later` would do."""
        replace, merge, add = dict(self.replace), dict(self.merge), dict(self.add)
        for name, changes in later.merge.items():
            if name in replace:
                replace[name] = {k: v for k, v in {**replace[name], **changes}.items() if v is not None}
            else:
                merge[name] = {**merge.get(name, {}), **changes}
        for name, value in later.replace.items():
            merge.pop(name, None)
            add.pop(name, None)
            replace[name] = value
        for name, amount in later.add.items():
            if name in replace:
                replace[name] += amount
            else:
                add[name] = add.get(name, 0) + amount
        return SessionChanges(replace, merge, add)


NO_CHANGES = SessionChanges()
MOST_MOVES = 8


def check_moves(moves: Sequence[Move]) -> None:
    """Raise `IllegalMove` unless every move is legal and begins where the one before it led."""
    for number, move in enumerate(moves):
        before = move.before if number == 0 else moves[number - 1].after
        if move.before is None or move.before != before:
            raise IllegalMove(str(before), move.after)
        check_move(move.before, move.after)


class Store(AgentStore, MemoryStore, QuotaStore, Protocol):
    """Sessions by `uid`; only `get_session`, `create_session` and `undelete_session` know ids."""

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Connects when entered, without waiting for a database that is away; closes when left."""
        ...

    async def ping(self) -> None:
        """Raises `StoreAway` when the store can't answer."""
        ...

    # Sessions

    async def create_session(self, session: Session, most: int | None = None) -> None:
        """Keep a new session and its first move. Raises `SessionExists` if a live one has its id.

        Raises `QuotaExceeded` if its owner has `most` live sessions already, whoever else makes one at the same time.
        """
        ...

    async def get_deleted_session(self, session_id: str) -> Session:
        """The one of this id that was deleted last. Raises `SessionNotFound`, also for one that was purged."""
        ...

    async def get_session(self, session_id: str) -> Session:
        """The live session with this id. Raises `SessionNotFound`."""
        ...

    async def get_session_by_uid(self, uid: str) -> Session:
        """The live session with this uid. Raises `SessionNotFound`."""
        ...

    async def list_sessions(self, filter_: SessionFilter, page: PageRequest) -> Page[Session]:
        """Newest first (`created_at`, then `uid`). Raises `BadPageToken`."""
        ...

    async def update_session(
        self, uid: str, changes: SessionChanges, at: datetime, holder: str | None = None
    ) -> Session:
        """The document after the change, its `updated_at` set to `at`. Raises `SessionNotFound` if not live.

        Raises `Conflict` (code `holder_changed`) if it is not held by `holder`, when one is given.
        """
        ...

    async def move_session(
        self, uid: str, *moves: Move, changes: SessionChanges = NO_CHANGES, holder: str | None = None,
        executions: Sequence[Execution] = (),
    ) -> Session:  # fmt: skip
        """Change the state along one or more moves, each from where the one before it led.

        Only if the state is still where the first begins (and it is still held by `holder`, when one is given).
        The moves, their lines in `list_moves` and `changes` happen together; the last reason becomes `state_reason`,
        the last time `updated_at`. At most `MOST_MOVES` at once.
        `executions` are put before that, as by `put_execution`; they stay also if the move is refused.
        Raises `IllegalMove`, `Conflict` (code `state_changed`) if another came first, `SessionNotFound`.
        """
        ...

    async def list_moves(self, uid: str, page: PageRequest) -> Page[Move]:
        """Newest first; the last one is the creation."""
        ...

    async def delete_session(self, uid: str, at: datetime) -> Session:
        """Soft-delete: set `deleted_at`, clear `holder`, free the id. Raises `SessionNotFound` if not live."""
        ...

    async def undelete_session(self, session_id: str, at: datetime, owner: str | None = None) -> Session:
        """Bring back the last session deleted under this id; given an `owner`, the last of theirs.

        Raises `SessionExists` if the id is taken, `SessionPurged`, `SessionNotFound`; an owner who has no session of
        this id, live or deleted, learns nothing of those of others.
        """
        ...

    async def purge_session(self, uid: str, deleted_at: datetime | None = None) -> None:
        """Remove the document, its moves, executions and snapshots; remember only that its id was purged.

        Raises `Conflict` (code `brought_back`) if it is not deleted since `deleted_at`, when that is given.
        """
        ...

    # Who holds what: a session runs on one gateway at a time

    async def beat(self, gateway_id: str, at: datetime) -> None:
        """Say that this gateway is alive."""
        ...

    async def is_alive(self, gateway_id: str, stale_before: datetime) -> bool:
        """Whether this gateway has beaten since."""
        ...

    async def claim_session(self, uid: str, gateway_id: str, stale_before: datetime) -> Session:
        """Become the holder. Raises `SessionHeld` if another is that has beaten since `stale_before`."""
        ...

    async def release_session(self, uid: str, gateway_id: str) -> None:
        """Hold it no longer; nothing happens if another does."""
        ...

    async def list_abandoned(self, gateway_id: str, stale_before: datetime) -> list[Session]:
        """Live sessions held by `gateway_id` itself or by a gateway without a beat since `stale_before`."""
        ...

    async def list_unheld_temporary(self) -> list[Session]:
        """Live sessions that are not persistent and that nobody holds."""
        ...

    # Executions

    async def put_execution(self, execution: Execution) -> None:
        """Insert, or replace the one with the same `id`; a late write never makes a finished one unfinished.

        Clients choose ids: one that is another session's is left as it is.
        """
        ...

    async def get_execution(self, uid: str, execution_id: str) -> Execution:
        """Raises `ExecutionNotFound`."""
        ...

    async def list_executions(self, uid: str, page: PageRequest) -> Page[Execution]:
        """Newest first (`queued_at`, then `id`); a page ends early, with a token, when its outputs fill memory."""
        ...

    async def list_unfinished(self, uid: str) -> list[Execution]:
        """Those that are queued or running."""
        ...

    # Snapshots: the documents, whose bytes are kept elsewhere

    async def put_snapshot(self, snapshot: Snapshot) -> None:
        """Insert; one whose `id` is there already is left as it is."""
        ...

    async def get_snapshot(self, snapshot_id: str) -> Snapshot:
        """Raises `SnapshotNotFound`."""
        ...

    async def list_snapshots(
        self, place: str | None, page: PageRequest, created_by: str | None = None
    ) -> Page[Snapshot]:
        """Newest first (`created_at`, then `id`); without a place those brought in that belong to no session.

        Of these only those that `created_by` brought in, when it is given.
        """
        ...

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Raises `SnapshotNotFound`."""
        ...

    # API keys

    async def create_key(self, key: ApiKey) -> None:
        """Insert; one whose `id` is there already is left as it is."""
        ...

    async def get_key(self, key_id: str) -> ApiKey:
        """Also one that is revoked. Raises `KeyNotFound`."""
        ...

    async def any_key(self) -> bool:
        """Whether there is a key that is not revoked."""
        ...

    async def list_keys(self, page: PageRequest, *, include_revoked: bool) -> Page[ApiKey]:
        """Newest first (`created_at`, then `id`)."""
        ...

    async def rotate_key(self, key_id: str, former: str, new: str, former_until: datetime, at: datetime) -> ApiKey:
        """Replace the hash `former` by `new`. Raises `KeyNotFound`, also for a revoked one; `KeyChanged`."""
        ...

    async def revoke_key(self, key_id: str, at: datetime) -> ApiKey:
        """Revoke for good; the first time stays. Raises `KeyNotFound`."""
        ...

    async def touch_key(self, key_id: str, at: datetime) -> None:
        """Note a use; an earlier one never replaces a later, and one that is not there is left alone."""
        ...

    # Idempotency keys

    async def reserve_answer(self, answer: KeptAnswer, expired_before: datetime) -> KeptAnswer | None:
        """None when the key is now ours, else what is kept under it. Older ones count as absent."""
        ...

    async def keep_answer(self, answer: KeptAnswer) -> None: ...

    async def get_answer(self, key: str) -> KeptAnswer | None:
        """What is kept under a key, however old."""
        ...

    async def drop_answer(self, reservation: KeptAnswer) -> None:
        """Free the key, unless an answer was kept or another reservation made under it meanwhile."""
        ...

    # Audit

    async def append_audit(self, lines: list[AuditLine]) -> None:
        """Append to the store's one chain, also while others do; a line whose `id` is there already is left as it is.

        The first line ever is preceded by the chain's own.
        """
        ...

    async def list_audit(self, filter_: AuditFilter, page: PageRequest) -> Page[ChainedLine]:
        """Newest first (`at`, then `id`)."""
        ...

    def read_audit(self, filter_: AuditFilter = EVERY_LINE) -> AsyncIterator[ChainedLine]:
        """In the order of the chain, after what is older than it."""
        ...
