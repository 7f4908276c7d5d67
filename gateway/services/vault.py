"""Snapshots of sessions: taken, kept in bounds, brought back. Their bytes are at the place, documents in the store.

A snapshot exists once the store names it; bytes that nothing names are removed with the next one that is taken.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from gateway.config import Settings
from gateway.errors import Conflict, SnapshotNotFound
from gateway.models.base import new_id, now
from gateway.models.pages import PageRequest
from gateway.models.sessions import Session
from gateway.models.snapshots import SkippedFile, Snapshot, SnapshotFacts, SnapshotKind
from gateway.models.unsaved import UnsavedVariable
from gateway.stores.base import Store
from kernels import checkpoint
from kernels.engine import Engine, SnapshotInfo
from kernels.errors import NoSuchSnapshot
from kernels.kernel import Kernel

log = logging.getLogger(__name__)

_KEPT_FOR_GOOD = ("manual", "import")


class InUse(Conflict):
    code = "snapshot_in_use"

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(
            f"Snapshot {snapshot.id!r} is needed: its session wakes with it, or it is being read.",
            snapshot_id=snapshot.id,
        )


@dataclass(slots=True)
class _State:
    """The variables that go into a snapshot: in a folder that a kernel wrote, or those of an earlier snapshot."""

    taken: checkpoint.Checkpoint | None = None
    folder: str | None = None
    of: str | None = None
    variables: list[dict[str, Any]] = field(default_factory=list)
    unsaved: list[UnsavedVariable] = field(default_factory=list)
    note: str | None = None
    python: str | None = None
    packages: dict[str, str] = field(default_factory=dict)


class Vault:
    def __init__(self, settings: Settings, store: Store, engine: Engine) -> None:
        self._settings = settings
        self._store = store
        self._engine = engine
        self._in_use: dict[str, int] = {}  # snapshots that are being read, or named in the store any moment now
        self._deleting: set[str] = set()

    # Taking

    async def save(
        self, session: Session, kernel: Kernel | None, *, kind: SnapshotKind, files: bool, wait_s: float,
        name: str | None = None, caller: str = "local",
    ) -> tuple[Snapshot, checkpoint.Checkpoint | None]:  # fmt: skip
        """A new snapshot of a session as of now; its variables are those of `kernel`, else those that it sleeps with.

        With it what the kernel told of them, if they are its own.

        Raises `KernelBusy` when a cell runs longer than `wait_s`, `CheckpointFailed`, `SnapshotError`, `KernelGone`.
        """
        snapshot_id, kept = new_id("snap"), self._engine.snapshots
        with self.using(snapshot_id):
            async with AsyncExitStack() as stack:
                state = await self._state(stack, session, kernel, wait_s)
                info = await kept.save(
                    session.uid, snapshot_id, files=files, state=state.folder, state_of=state.of,
                    facts=_facts(session, name, kind, state, files=files),
                )  # fmt: skip
            snapshot = _document(info, session, state, kind=kind, name=name, caller=caller)
            await self._store.put_snapshot(snapshot)
        return snapshot, state.taken

    async def _state(self, stack: AsyncExitStack, session: Session, kernel: Kernel | None, wait_s: float) -> _State:
        if kernel is None:
            return await self._sleeping_state(session)
        if not kernel.is_ours:
            return _State(note=f"The kernel {session.kernel!r} can't save its variables; files are kept.")
        folder = await stack.enter_async_context(self._engine.snapshots.state_folder(session.uid))
        saved = await checkpoint.save(
            kernel.channels, folder, wait_s=wait_s, timeout_s=self._settings.checkpoint_timeout_s
        )
        notes = [] if saved.method == "fork" else [f"They were saved between two cells: {saved.method_reason}"]
        notes += saved.warnings
        return _State(
            taken=saved,
            folder=folder,
            variables=[{"name": one.name, "type": one.type, "size": one.size} for one in saved.variables],
            unsaved=[_unsaved(one) for one in saved.unsaved],
            note=" ".join(notes) or None,
            packages=saved.packages,
            python=kernel.info.get("language_info", {}).get("version"),
        )

    async def _sleeping_state(self, session: Session) -> _State:
        saved_id = session.saved_snapshot_id
        before = None if saved_id is None else await self._engine.snapshots.info(session.uid, saved_id)
        if before is None or not before.has_state:
            return _State(note="No kernel was running, and no variables had been saved.")
        facts = SnapshotFacts.model_validate(dict(before.facts))
        return _State(
            of=before.id,
            variables=[one.model_dump() for one in facts.variables],
            unsaved=facts.unsaved,
            python=facts.python,
            packages=facts.packages,
        )

    # Bringing back

    async def load(self, session: Session, kernel: Kernel) -> list[UnsavedVariable] | None:
        """Bring the saved variables into a kernel that has just started; what was not carried over.

        None when there were none to bring back. Raises `SnapshotError`, `CheckpointFailed`, `KernelGone`.
        """
        snapshot_id = session.saved_snapshot_id
        if snapshot_id is None or not kernel.is_ours:
            return None
        with self.using(snapshot_id):
            async with self._engine.snapshots.state(session.uid, snapshot_id) as folder:
                if folder is None:
                    return None
                restored = await checkpoint.load(
                    kernel.channels, folder, names=session.state_only, timeout_s=self._settings.checkpoint_timeout_s
                )
        not_carried = [_unsaved(one) for one in (*restored.unsaved, *restored.failed)]
        if session.state_only is not None:
            wanted = set(session.state_only)
            not_carried = [one for one in not_carried if one.name in wanted]
        not_carried += [remark(warning) for warning in restored.warnings]
        if session.changes != session.saved_changes:
            since = "the session began" if session.saved_at is None else f"{session.saved_at:%Y-%m-%d %H:%M:%S} UTC"
            not_carried.append(remark(f"What was done after {since} had not been saved when the kernel ended."))
        return not_carried

    async def restore_files(self, session: Session) -> None:
        """Put the files that its document names into the session's workspace."""
        assert session.files_from is not None
        with self.using(session.files_from):
            await self._engine.snapshots.restore_files(session.uid, session.files_from)

    # Keeping

    @contextmanager
    def using(self, snapshot_id: str) -> Iterator[None]:
        """A snapshot that must not be removed meanwhile. Raises `SnapshotNotFound` for one that just is."""
        if snapshot_id in self._deleting:
            raise SnapshotNotFound(snapshot_id)
        self._in_use[snapshot_id] = self._in_use.get(snapshot_id, 0) + 1
        try:
            yield
        finally:
            self._in_use[snapshot_id] -= 1
            if not self._in_use[snapshot_id]:
                del self._in_use[snapshot_id]

    async def get(self, place: str, snapshot_id: str) -> Snapshot:
        """Raises `SnapshotNotFound`, also for one of another place."""
        snapshot = await self._store.get_snapshot(snapshot_id)
        if snapshot.place != place:
            raise SnapshotNotFound(snapshot_id)
        return snapshot

    async def delete(self, session: Session, snapshot: Snapshot) -> None:
        """Raises `InUse` for the one that the session wakes with."""
        if snapshot.id in (session.saved_snapshot_id, session.files_from):  # at this very moment
            raise InUse(snapshot)
        with self.deleting(snapshot):
            await self._store.delete_snapshot(snapshot.id)
            with contextlib.suppress(NoSuchSnapshot):
                await self._engine.snapshots.delete(snapshot.place, snapshot.id)

    @contextmanager
    def deleting(self, snapshot: Snapshot) -> Iterator[None]:
        """A block that removes it. Raises `InUse` while it is read."""
        if snapshot.id in self._in_use:
            raise InUse(snapshot)
        self._deleting.add(snapshot.id)
        try:
            yield
        finally:
            self._deleting.discard(snapshot.id)

    async def prune(self, current: Callable[[], Session]) -> list[Snapshot]:
        """Remove what is past the settings' count and age, and bytes that nothing names. `current` is the document.

        Those that somebody had asked for and that are gone now.
        """
        session = current()
        # Asked before the store is, so that what comes later is not in it.
        there = await self._engine.snapshots.ids(session.uid)
        named: dict[str, Snapshot] = {}
        token: str | None = None
        while True:
            found = await self._store.list_snapshots(session.uid, PageRequest(limit=1000, token=token))
            named.update((one.id, one) for one in found.items)
            token = found.next_token
            if token is None:
                break
        removed = []
        for snapshot in self._surplus(list(named.values()), session):
            with contextlib.suppress(InUse, SnapshotNotFound):  # the session has gone on, or somebody was faster
                await self.delete(current(), snapshot)
                removed.append(snapshot)
        for snapshot_id in there:
            if snapshot_id not in named and snapshot_id not in self._in_use:
                log.info("Snapshot %s of session %r is named nowhere: it is removed", snapshot_id, session.id)
                await self._engine.snapshots.delete(session.uid, snapshot_id)
        return [one for one in removed if one.kind in _KEPT_FOR_GOOD]

    def _surplus(self, newest_first: list[Snapshot], session: Session) -> list[Snapshot]:
        settings = self._settings
        needed = {session.saved_snapshot_id, session.files_from, session.unloaded_snapshot_id, *self._in_use}
        for_good = [one for one in newest_first if one.kind in _KEPT_FOR_GOOD]
        passing = [one for one in newest_first if one.kind not in _KEPT_FOR_GOOD]
        surplus = for_good[settings.snapshots_kept :] + passing[settings.autosaves_kept :]
        if settings.snapshots_max_age_s is not None:
            oldest = now() - timedelta(seconds=settings.snapshots_max_age_s)
            surplus += [one for one in for_good[: settings.snapshots_kept] if one.created_at < oldest]
        return [one for one in surplus if one.id not in needed]


def _unsaved(one: checkpoint.Unsaved) -> UnsavedVariable:
    return UnsavedVariable(name=one.name, type=one.type, reason=one.reason, part=one.part)


def remark(sentence: str) -> UnsavedVariable:
    """Something about all variables."""
    return UnsavedVariable(name="*", type="", reason=sentence, part=True)


def _facts(session: Session, name: str | None, kind: SnapshotKind, state: _State, *, files: bool) -> dict[str, Any]:
    """What the manifest tells of the session, so that it is understood without its gateway."""
    return {
        "name": name,
        "kind": kind,
        "files": files,
        "session_id": session.id,
        "session_name": session.name,
        "language": session.language,
        "kernel": session.kernel,
        "python": state.python,
        "packages": state.packages,
        "variables": state.variables,
        "unsaved": [one.model_dump() for one in state.unsaved],
        "state_note": state.note,
        "parent_id": session.parent_id,
        "parent_snapshot_id": session.saved_snapshot_id,
    }


def _document(
    info: SnapshotInfo, session: Session, state: _State, *, kind: SnapshotKind, name: str | None, caller: str
) -> Snapshot:
    return Snapshot(
        place=session.uid,
        session_id=session.id,
        name=name,
        kind=kind,
        created_by=caller,
        variable_count=len(state.variables),
        unsaved=state.unsaved,
        state_note=state.note,
        parent_snapshot_id=session.saved_snapshot_id,
        **measured(info),
    )


def measured(info: SnapshotInfo) -> dict[str, Any]:
    """The fields of a snapshot's document that its bytes tell."""
    return {
        "id": info.id,
        "created_at": info.created_at,
        "size_bytes": info.size_bytes,
        "stored_bytes": info.stored_bytes,
        "file_count": info.file_count,
        "has_files": info.facts.get("files") is not False,
        "has_state": info.has_state,
        "digest": info.digest,
        "skipped": [SkippedFile(path=one.path, reason=one.reason) for one in info.skipped]
        + [SkippedFile(path=path, reason="it changed while it was read") for path in info.changed],
    }
