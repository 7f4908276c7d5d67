"""Saved state on request: snapshots, going back to one, and new sessions that carry on from one."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar
from uuid import uuid4

from pydantic import ValidationError

from gateway.config import Settings
from gateway.errors import (
    Conflict,
    GatewayError,
    Invalid,
    SessionExists,
    SessionNotFound,
    SnapshotNotFound,
    Stopping,
)
from gateway.models.base import new_id, now
from gateway.models.pages import Page, PageRequest
from gateway.models.sessions import Session, check_size
from gateway.models.snapshots import (
    Chosen,
    CreateSnapshot,
    DuplicateSession,
    RemixSession,
    RestoreSnapshot,
    Snapshot,
    SnapshotFacts,
)  # fmt: skip
from gateway.models.unsaved import UnsavedVariable
from gateway.services.agents import named
from gateway.services.lasting import lasting
from gateway.services.limits import most_sessions
from gateway.services.live import Live
from gateway.services.live_session import Copy, LiveSession
from gateway.services.quotas import QuotaService
from gateway.services.recorder import Recorder, Spawn
from gateway.services.sessions import SessionService
from gateway.services.unborn import Unborn
from gateway.services.vault import Vault, measured
from gateway.states import State
from gateway.stores.base import Store
from kernels.duplicates import NotForked
from kernels.engine import Engine, Skipped, SnapshotInfo
from kernels.errors import BadArchive, CheckpointFailed, KernelBusy, KernelGone, KernelsError, StartFailed

log = logging.getLogger(__name__)

_MOST_FILES = 250_000
_PATIENCE_S = 5.0

T = TypeVar("T")
_OF_THE_SOURCE = (
    "language", "kernel", "image_id", "image_found", "persistent", "labels", "data", "metadata", "starting_prompt",
    "agents", "template", "workspace", "allow_internet_access", "allow_public_access", "waiting_timeout_seconds",
    "default_timeout", "resources", "env", "setup", "setup_status", "code", "name",
)  # fmt: skip


class SessionBusy(Conflict):
    code = "session_busy"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"Session {session_id!r} is running code.", session_id=session_id)


@dataclass(frozen=True, slots=True)
class Carried:
    """A new session, how it came by what it has, why not by a fork, and what the source had and it has not."""

    session: Session
    method: Literal["fork", "snapshot"]
    method_reason: str | None
    not_carried: list[UnsavedVariable]


class SnapshotService:
    def __init__(
        self, settings: Settings, store: Store, engine: Engine, live: Live, sessions: SessionService, vault: Vault,
        recorder: Recorder, spawn: Spawn, quotas: QuotaService,
    ) -> None:  # fmt: skip
        self._quotas = quotas
        self._settings = settings
        self._store = store
        self._engine = engine
        self._live = live
        self._sessions = sessions
        self._vault = vault
        self._recorder = recorder
        self._spawn = spawn
        self._unborn = Unborn(settings.data_dir / "unborn")

    async def clear_unborn(self) -> None:
        """Remove copies, and tarballs on their way in, that an earlier process left half made."""
        await self._recorder.write(partial(self._unborn.clear, self._is_born, self._engine.remove))

    async def _is_born(self, place: str, name: str) -> bool:
        with contextlib.suppress(SessionNotFound):
            if (await self._store.get_session(name)).uid == place:
                return True
        with contextlib.suppress(SnapshotNotFound):
            return (await self._store.get_snapshot(name)).place == place
        return False

    async def _done(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work that goes on if the caller leaves. Raises `StoreAway` when it has to wait for the store."""
        waiting = asyncio.ensure_future(lasting(self._spawn, work))
        try:
            while True:
                await asyncio.wait({waiting}, timeout=_PATIENCE_S)
                if waiting.done():
                    return await waiting
                self._recorder.check()
        finally:
            waiting.cancel()

    # Taking and keeping

    async def create(self, session_id: str, request: CreateSnapshot, caller: str) -> Snapshot:
        """Files and variables as of now; waits for a cell that runs. Raises `SessionBusy` if it is not to wait."""
        self._recorder.check()
        live = await self._live.get(session_id)
        return await self._done(self._take(live, "manual", caller, name=request.name, wait=request.wait))

    async def _take(
        self, live: LiveSession, kind: Any, caller: str, *, name: str | None = None, wait: bool = True
    ) -> Snapshot:
        if not wait and live.busy:
            raise SessionBusy(live.session.id)
        live.touch()
        if live.kernel is None and (live.starting or live.session.state_only is not None):
            await live.ready()  # its variables are on their way, or not all that were saved are its own
        wait_s = self._settings.snapshot_wait_s if wait else 0.0
        try:
            return await live.save(kind, files=True, wait_s=wait_s, name=name, caller=caller)
        except KernelBusy:
            raise SessionBusy(live.session.id) from None
        except KernelGone:  # it died meanwhile: what was saved before is what there is
            return await live.save(kind, files=True, name=name, caller=caller)

    async def list(self, session_id: str, page: PageRequest) -> Page[Snapshot]:
        return await self._store.list_snapshots(await self._sessions.uid_of(session_id), page)

    async def list_imported(self, page: PageRequest, created_by: str | None = None) -> Page[Snapshot]:
        """Those that were brought in (by `created_by`, when it is given) and belong to no session."""
        return await self._store.list_snapshots(None, page, created_by)

    async def get(self, session_id: str, snapshot_id: str) -> Snapshot:
        """Raises `SnapshotNotFound`."""
        return await self._vault.get(await self._sessions.uid_of(session_id), snapshot_id)

    async def delete(self, session_id: str, snapshot_id: str) -> Snapshot:
        """Raises `InUse` for the one that the session wakes with."""
        self._recorder.check()
        live = await self._live.get(session_id)
        await live.outbox.flushed()
        snapshot = await self._vault.get(live.uid, snapshot_id)
        await self._vault.delete(live.session, snapshot)
        return snapshot

    async def export(self, session_id: str, snapshot_id: str) -> AsyncIterator[bytes]:
        """The portable tar.zst, in pieces, for which the snapshot stays. Raises `SnapshotNotFound`, `SnapshotError`."""
        snapshot = await self.get(session_id, snapshot_id)
        await self._engine.snapshots.verify(snapshot.place, snapshot.id)  # what is wrong is said before the first byte
        return self._exported(snapshot)

    async def _exported(self, snapshot: Snapshot) -> AsyncIterator[bytes]:
        with self._vault.using(snapshot.id):
            async for piece in self._engine.snapshots.export(snapshot.place, snapshot.id):
                yield piece

    async def take_in(self, pieces: AsyncIterator[bytes], caller: str) -> Snapshot:
        """Bring a tarball in; it belongs to no session until one is made or restored from it.

        Raises `BadArchive`, `OutsideWorkspace`, `QuotaExceeded`, `NewerSnapshot`; then nothing is kept.
        """
        self._recorder.check()
        place, snapshot_id = uuid4().hex, new_id("snap")
        with self._unborn.making(place, snapshot_id) as made:
            try:
                info = await self._engine.snapshots.take_in(
                    place, snapshot_id, pieces, limit_bytes=self._settings.disk_limit_bytes, max_files=_MOST_FILES
                )
                snapshot = _brought_in(info, place, caller)
            except BaseException:
                await asyncio.shield(self._engine.remove(place))
                made.removed = True
                raise
            await self._done(self._recorder.write(partial(self._store.put_snapshot, snapshot)))
        return snapshot

    async def get_imported(self, snapshot_id: str) -> Snapshot:
        """Raises `SnapshotNotFound`, also for one that belongs to a session."""
        snapshot = await self._store.get_snapshot(snapshot_id)
        if not snapshot.is_loose:
            raise SnapshotNotFound(snapshot_id)
        return snapshot

    async def delete_imported(self, snapshot_id: str) -> Snapshot:
        """Raises `SnapshotNotFound`."""
        self._recorder.check()
        snapshot = await self.get_imported(snapshot_id)
        with self._vault.deleting(snapshot):
            await self._store.delete_snapshot(snapshot.id)
            await self._engine.remove(snapshot.place)
        return snapshot

    # Going back

    async def restore(self, session_id: str, request: RestoreSnapshot) -> Session:
        """Files and variables go back to a snapshot. Raises `SessionBusy`, `SnapshotNotFound`, `SnapshotError`."""
        self._recorder.check()
        live = await self._live.get(session_id)
        if live.busy:
            raise SessionBusy(session_id)
        snapshot = await self._store.get_snapshot(request.snapshot_id)
        session = await self._done(self._restore(live, snapshot, request))
        self._spawn(self._sessions.start(live))
        return session

    async def _restore(self, live: LiveSession, snapshot: Snapshot, request: RestoreSnapshot) -> Session:
        if live.starting and live.kernel is None:
            with contextlib.suppress(KernelsError):  # it need not start for this
                await live.ready()
        if snapshot.place != live.uid:
            snapshot = await self._adopt(live.session, snapshot)
        with self._vault.using(snapshot.id):
            await self._engine.snapshots.verify(live.uid, snapshot.id)
            await live.go_back(snapshot, files=request.files and snapshot.has_files, state=request.state)
        return await self._sessions.count_files(live.session)

    async def _adopt(self, session: Session, snapshot: Snapshot) -> Snapshot:
        """A copy of a snapshot of another place, for this session."""
        copy_id = new_id("snap")
        with self._vault.using(snapshot.id), self._vault.using(copy_id):
            info = await self._engine.snapshots.copy(snapshot.place, snapshot.id, session.uid, copy_id)
            copied = snapshot.model_copy(
                update={"place": session.uid, "session_id": session.id, "parent_snapshot_id": snapshot.id,
                        **measured(info)}
            )  # fmt: skip
            await self._store.put_snapshot(copied)
        return copied

    # Carrying on elsewhere

    async def duplicate(self, session_id: str, request: DuplicateSession, caller: str) -> Carried:
        """A new session with all files and all variables of the source as of now. Raises `SessionExists`."""
        changes: dict[str, Any] = {}
        if request.name is not None:
            changes["name"] = request.name
        elif request.session_id is not None:
            changes["name"] = request.session_id
        if request.labels is not None:
            changes["labels"] = request.labels
        return await self._carry_on(session_id, request, changes, caller)

    async def remix(self, session_id: str, request: RemixSession, caller: str) -> Carried:
        """A new session that inherits configuration, files and variables, as far as they are asked for."""
        changes: dict[str, Any] = {"name": request.name}
        if request.starting_prompt is not None:
            changes["starting_prompt"] = request.starting_prompt
        if request.agent_ids is not None:
            changes["agents"] = await named(self._store, request.agent_ids)
        if request.waiting_timeout_seconds is not None:
            changes["waiting_timeout_seconds"] = request.waiting_timeout_seconds
        return await self._carry_on(session_id, request, changes, caller)

    async def _carry_on(
        self, session_id: str, request: DuplicateSession | RemixSession, changes: dict[str, Any], caller: str
    ) -> Carried:
        self._recorder.check()
        self._live.check()
        source = await self._live.get(session_id)
        child_id = request.session_id or new_id("sess")
        await self._check_free(child_id)
        self._live.check_room()
        snapshot = None if request.snapshot_id is None else await self._store.get_snapshot(request.snapshot_id)
        carried = await self._done(self._carried(source, child_id, snapshot, request, changes, caller))
        self._recorder.note("session.create", carried.session.id, uid=carried.session.uid, parent_id=session_id)
        return carried

    async def _carried(
        self, source: LiveSession, child_id: str, snapshot: Snapshot | None,
        request: DuplicateSession | RemixSession, changes: dict[str, Any], caller: str,
    ) -> Carried:  # fmt: skip
        """By a fork of the live kernel where that carries everything over, else by a snapshot."""
        if not request.wait and source.busy:
            raise SessionBusy(source.session.id)
        reason = self._why_not_forked(source, snapshot, request)
        if reason is None:
            try:
                return await self._fork(source, child_id, request, changes, caller)
            except KernelBusy:
                raise SessionBusy(source.session.id) from None
            except NotForked as error:
                reason = str(error)
            except (CheckpointFailed, StartFailed, KernelGone) as error:
                reason = str(error).partition("\n")[0]
                log.warning("Session %r could not be copied as it lives: %s", source.session.id, reason)
        snapshot, live = await self._copy(source, child_id, snapshot, request, changes, caller)
        self._spawn(self._sessions.start(live))
        return Carried(live.session, "snapshot", reason, snapshot.unsaved if request.state else [])

    def _why_not_forked(
        self, source: LiveSession, snapshot: Snapshot | None, request: DuplicateSession | RemixSession
    ) -> str | None:
        if snapshot is not None:
            return "It carries on from a snapshot."
        if request.state is not True or not isinstance(request.files, bool):
            return "Not everything was to be carried over."
        if source.kernel is None:
            return "The session is asleep."
        if not source.kernel.is_ours:
            return f"The kernel {source.session.kernel!r} can't be copied."
        return None if self._settings.fork_server else "The setting fork_server is off."

    async def _fork(
        self, source: LiveSession, child_id: str, request: DuplicateSession | RemixSession,
        changes: dict[str, Any], caller: str,
    ) -> Carried:  # fmt: skip
        """Raises `KernelBusy`, `NotForked`, `CheckpointFailed`, `StartFailed`, `KernelGone`."""
        uid = uuid4().hex
        child = self._child(source.session, uid, child_id, request, changes, caller)
        # Nothing of it was ever saved; and its kernel has all that it is to have: who takes it over need not ask.
        child = child.model_copy(update={"changes": 1, "state": State.READY})
        check_size(child)
        await self._quotas.check_disk(child)
        skipped: list[Skipped] = []

        async def fill() -> None:
            if request.files:
                skipped.extend(await self._engine.copy_files(source.uid, uid))
            await self._engine.copy_environment(source.uid, uid)

        with self._unborn.making(uid, child_id) as made:
            copy: Copy | None = None
            try:
                wait_s = self._settings.snapshot_wait_s if request.wait else 0.0
                async with self._quotas.place(child):  # then it is counted by what keeps it
                    copy = await source.fork(child, fill, wait_s=wait_s)
                child = await self._sessions.with_files_counted(child)
                live = await self._recorder.write(partial(self._live.create, child, copy))
            except BaseException as error:
                if copy is not None:
                    await asyncio.shield(copy.ending.aclose())
                # When it is cancelled nobody knows what the store has heard; when all stops, it has.
                if isinstance(error, Exception) and not isinstance(error, Stopping):
                    await self._engine.remove(uid)
                    made.removed = True
                raise
        await self._sessions.start(live)  # it runs: this only waits until that is told by the document
        not_carried = [UnsavedVariable(name=one.path, type="file", reason=one.reason, part=False) for one in skipped]
        return Carried(live.session, "fork", None, not_carried)

    async def _check_free(self, session_id: str) -> None:
        """So that nothing is copied for an id that is taken; the store decides in the end."""
        try:
            await self._store.get_session(session_id)
        except SessionNotFound:
            return
        raise SessionExists(session_id)

    async def _copy(
        self, source: LiveSession, child_id: str, snapshot: Snapshot | None,
        request: DuplicateSession | RemixSession, changes: dict[str, Any], caller: str,
    ) -> tuple[Snapshot, LiveSession]:  # fmt: skip
        """The session's document comes last: a copy that was cut off leaves nothing that anybody could find."""
        if snapshot is None:
            snapshot = await self._take(source, "duplicate", caller, wait=request.wait)
        if snapshot.place != source.uid and snapshot.session_id is not None:
            raise Invalid(f"snapshot_id: {snapshot.id!r} is not of this session.", field="snapshot_id")
        if request.files and not snapshot.has_files:
            raise Invalid(f"snapshot_id: {snapshot.id!r} holds variables alone; ask for no files.", field="files")
        uid, copy_id = uuid4().hex, new_id("snap")
        child = self._child(source.session, uid, child_id, request, changes, caller)
        await self._quotas.check_disk(child)
        check_size(child)
        if request.state and snapshot.has_state:
            only = None if request.state is True else request.state
            child = child.model_copy(update={"saved_snapshot_id": copy_id, "saved_at": now(), "state_only": only})
        with self._vault.using(snapshot.id), self._vault.using(copy_id), self._unborn.making(uid, child_id) as made:
            try:
                child = await self._fill(source.uid, snapshot, copy_id, child, request.files)
                await self._recorder.write(partial(self._store.create_session, child, most_sessions(self._settings)))
            except Exception:  # not when it is cancelled: then nobody knows what the store has heard
                with contextlib.suppress(GatewayError):  # nobody will find it without its session
                    await self._store.delete_snapshot(copy_id)
                await self._engine.remove(uid)
                made.removed = True
                raise
        return snapshot, await self._live.hold(child)

    async def _fill(self, source: str, snapshot: Snapshot, copy_id: str, child: Session, files: Chosen) -> Session:
        """Give a new place its snapshot, files and what is installed; the document of its session, files counted."""
        kept = self._engine.snapshots
        info = await kept.copy(snapshot.place, snapshot.id, child.uid, copy_id)
        if files:
            await kept.restore_files(child.uid, copy_id, paths=None if files is True else files)
        await self._engine.copy_environment(source, child.uid)
        fields = {"place": child.uid, "session_id": child.id, "kind": "duplicate", "created_by": child.created_by,
                  "parent_snapshot_id": snapshot.id, **measured(info)}  # fmt: skip
        await self._recorder.write(partial(self._store.put_snapshot, snapshot.model_copy(update=fields)))
        return await self._sessions.with_files_counted(child)

    def _child(
        self, source: Session, uid: str, child_id: str, request: DuplicateSession | RemixSession,
        changes: dict[str, Any], caller: str,
    ) -> Session:  # fmt: skip
        at = now()
        inherited = {name: getattr(source, name) for name in _OF_THE_SOURCE}
        inherited["data"] = {**source.data, **(request.data or {})}
        if caller != source.created_by:
            inherited["agents"] = []  # its owner chose who may run in it; the owner of the copy chooses for the copy
        inherited["guardrails"] = self._sessions.guardrails_of_copy(source)
        inherited["quotas"] = QuotaService.of_new()
        inherited["metadata"] = {**source.metadata, **(request.metadata or {})}
        return Session(
            uid=uid, id=child_id, state=State.INIT, parent_id=source.id, created_by=caller, created_at=at,
            updated_at=at, **{**inherited, **changes},
        )  # fmt: skip


def _brought_in(info: SnapshotInfo, place: str, caller: str) -> Snapshot:
    """The document of a snapshot from elsewhere. Raises `BadArchive` if what it tells of itself makes no sense."""
    try:
        facts = SnapshotFacts.model_validate(dict(info.facts))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BadArchive("manifest.json", f"facts.{where} is not what it should be") from None
    return Snapshot(
        place=place,
        session_id=None,
        name=facts.name,
        kind="import",
        created_by=caller,
        variable_count=len(facts.variables),
        unsaved=facts.unsaved,
        state_note=facts.state_note,
        parent_snapshot_id=facts.parent_snapshot_id,
        **measured(info),
    )
