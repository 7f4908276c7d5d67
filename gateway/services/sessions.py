"""Sessions: create, look up, change, delete, bring back."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import uuid4

from gateway.config import Settings
from gateway.errors import (
    Conflict,
    GatewayError,
    Invalid,
    NoRoom,
    NotFound,
    QuotaExceeded,
    SessionExists,
    SessionHeld,
    SessionNotFound,
)  # fmt: skip
from gateway.models.access import GrantLevel
from gateway.models.base import new_id, now
from gateway.models.labels import check_count
from gateway.models.pages import Page, PageRequest, SessionFilter
from gateway.models.sessions import (
    CreateSession,
    Deleted,
    DeletedMany,
    Move,
    Resources,
    Session,
    UpdateSession,
    check_size,
    size_bytes,
)  # fmt: skip
from gateway.services.admitted import admitted
from gateway.services.agents import named
from gateway.services.guardrails import Guardrails, Guards
from gateway.services.lasting import lasting
from gateway.services.limits import most_sessions
from gateway.services.live import Live
from gateway.services.live_session import LiveSession
from gateway.services.quotas import QuotaService
from gateway.services.recorder import Recorder, Spawn
from gateway.stores.base import SessionChanges, Store
from kernels.engine import Engine, Kernelspec, Workspace
from kernels.errors import KernelsError, StartFailed
from kernels.kernel import Kernel

log = logging.getLogger(__name__)

_ALSO_CALLED = {
    "py": "python", "python3": "python", "ipython": "python", "sh": "bash", "shell": "bash",
    "node": "javascript", "nodejs": "javascript", "js": "javascript", "ts": "typescript", "golang": "go",
}  # fmt: skip


class FilesStay(GatewayError):
    code = "files_stay"

    def __init__(self, session: Session) -> None:
        super().__init__(
            f"Session {session.id!r} was purged, but some of its files could not be removed.",
            session_id=session.id,
            uid=session.uid,
        )


class SessionService:
    def __init__(
        self, settings: Settings, store: Store, engine: Engine, live: Live, recorder: Recorder, spawn: Spawn,
        guardrails: Guardrails, quotas: QuotaService,
    ) -> None:  # fmt: skip
        self._guardrails = guardrails
        self._quotas = quotas
        self._settings = settings
        self._store = store
        self._engine = engine
        self._live = live
        self._recorder = recorder
        self._spawn = spawn

    # Finding

    async def get(self, session_id: str) -> Session:
        """The document, with its files measured now unless another gateway has them."""
        session = await self.find(session_id)
        return await self.count_files(session) if session.holder in (None, self._settings.gateway_id) else session

    async def find(self, session_id: str) -> Session:
        """The document, with its files as they were last counted. Raises `SessionNotFound`."""
        live = self._live.find(session_id)
        if live is not None and live.closing is None:
            return admitted(live.session)
        return admitted(await self._store.get_session(session_id))

    async def uid_of(self, session_id: str) -> str:
        """The uid of a session, once all that was to be written about it has been."""
        live = self._live.find(session_id)
        if live is not None and live.closing is None:
            await live.outbox.flushed()
            return admitted(live.session).uid
        return admitted(await self._store.get_session(session_id)).uid

    async def guards(self, session_id: str) -> Guards:
        """The guardrails of a session. Raises `SessionNotFound`."""
        return self._guardrails.of(await self.find(session_id))

    def kernel(self, session_id: str) -> Kernel | None:
        """The kernel that runs for it here."""
        live = self._live.find(session_id)
        return live.kernel if live is not None else None

    async def hold(self, session_id: str, caller: str, *, create: bool) -> LiveSession:
        """The live session; one that does not exist is created if `create` says so."""
        try:
            return await self._live.get(session_id)
        except SessionNotFound:
            if not create:
                raise
        with contextlib.suppress(SessionExists):  # somebody else was faster
            await self.create(CreateSession(session_id=session_id), caller, start=False)
        return await self._live.get(session_id)

    async def list(self, filter_: SessionFilter, page: PageRequest) -> Page[Session]:
        await asyncio.gather(*(live.outbox.flushed() for live in self._live))
        found = await self._store.list_sessions(filter_, page)
        return Page([await self._measure(one) for one in found.items], found.total_count, found.next_token)

    async def all(self, seen_by: str | None = None) -> AsyncIterator[Session]:
        """Every live session (that `seen_by` may see), newest first, with its files as they were last counted."""
        await asyncio.gather(*(live.outbox.flushed() for live in self._live))
        async for session in self.stored(seen_by):
            yield session

    async def stored(self, seen_by: str | None = None) -> AsyncIterator[Session]:
        """The same, as the store has them: what a live one has changed just now may not be there yet."""
        page = PageRequest(limit=1000)
        while True:
            found = await self._store.list_sessions(SessionFilter(seen_by=seen_by), page)
            for session in found.items:
                yield session
            if found.next_token is None:
                return
            page = PageRequest(limit=1000, token=found.next_token)

    async def list_children(self, session_id: str, page: PageRequest, seen_by: str | None = None) -> Page[Session]:
        await self.find(session_id)
        return await self.list(SessionFilter(parent_id=session_id, seen_by=seen_by), page)

    async def list_moves(self, session_id: str, page: PageRequest) -> Page[Move]:
        return await self._store.list_moves(await self.uid_of(session_id), page)

    async def _measure(self, session: Session) -> Session:
        """Files are counted when somebody looks, in sessions whose kernel may have changed them."""
        if session.deleted_at is not None or self._live.find(session.id) is None:
            return session
        return await self.count_files(session)

    async def with_files_counted(self, session: Session) -> Session:
        usage = await (await self.workspace(session)).usage()
        return session.model_copy(update={"file_count": usage.file_count, "total_size_bytes": usage.total_bytes})

    async def count_files(self, session: Session) -> Session:
        """The document with its files counted now, kept if that is news."""
        measured = (await self.with_files_counted(session)).model_dump(include={"file_count", "total_size_bytes"})
        if measured != session.model_dump(include=set(measured)):
            live = self._live.find(session.id)
            if live is not None and live.uid == session.uid:
                live.change(SessionChanges(replace=measured))
            else:
                await self._store.update_session(session.uid, SessionChanges(replace=measured), now())
        return session.model_copy(update=measured)

    async def files_changed(self, session_id: str) -> None:
        """Somebody has changed files from outside the kernel."""
        session = await self.count_files(await self.find(session_id))
        live = self._live.find(session_id)
        if live is not None and self._quotas.disk_limit(session) is not None:  # which the store counts
            await live.outbox.flushed()

    # Files, which belong to a session whatever its state is

    async def workspace(self, session: Session) -> Workspace:
        if session.files_from is not None:
            await (await self._live.get(session.id)).settle_files()
        disk, left = session.resources.disk, await self._quotas.disk_left(session)
        limit_bytes = size_bytes(disk) if disk else self._settings.disk_limit_bytes
        return await self._engine.workspace(session.uid, limit_bytes if left is None else min(limit_bytes, left))

    async def files(self, session_id: str, caller: str = "", *, create: bool = False) -> Workspace:
        """The workspace of a session; `create` makes a session that does not exist, if the settings allow that."""
        try:
            session = await self.find(session_id)
        except SessionNotFound:
            if not (create and self._settings.auto_create):
                raise
            session = (await self.hold(session_id, caller, create=True)).session
        if create:
            await self._quotas.check_disk(session)
        return await self.workspace(session)

    async def write_file(self, session_id: str, path: str, content: bytes) -> None:
        await (await self.files(session_id)).write(path, once(content))

    # Creating

    async def create(
        self, request: CreateSession, caller: str, *, start: bool = True, source: Literal["api", "jupyter"] = "api"
    ) -> Session:
        """Keep a new session and begin to start its kernel. Raises `SessionExists`, `Invalid`."""
        self._recorder.check()
        self._live.check()
        spec, image_found = self._choose_kernel(request)
        at = now()
        session = Session(
            uid=uuid4().hex,
            id=request.session_id or new_id("sess"),
            name=request.name or request.session_id or "session",
            language=spec.language,
            kernel=spec.name,
            image_found=image_found,
            state_reason=None if image_found is not False else f"No image {request.image_id!r}; the default is used.",
            agents=await named(self._store, request.agent_ids),
            waiting_timeout_seconds=request.waiting_timeout_seconds or self._settings.waiting_timeout_s,
            setup_status="pending" if request.setup else None,
            source=source,
            created_by=caller,
            created_at=at,
            updated_at=at,
            resources=self._resources(request),
            **request.model_dump(
                include={"image_id", "persistent", "labels", "data", "metadata", "starting_prompt", "template",
                         "default_timeout", "env", "workspace", "allow_internet_access", "allow_public_access"}
            ),
            setup=request.setup,
            guardrails=self._guardrails.of_new(request.guardrails),
            quotas=self._quotas.of_new(),
        )  # fmt: skip
        check_size(session)
        self._guardrails.check_setup(session)
        live = await self._live.create(session)
        self._recorder.note("session.create", session.id, uid=session.uid)
        if start:
            self._spawn(self.start(live))
        return live.session

    def guardrails_of_copy(self, source: Session) -> Sequence[str]:
        """What a copy that is made by the request under way has: the source's, and the caller's."""
        return self._guardrails.of_new(source.guardrails)

    async def make_ready(self) -> None:
        """Have the next sessions that ask for nothing special start fast."""
        with contextlib.suppress(Invalid):
            spec, _ = self._choose_kernel(CreateSession())
            await self._engine.prepare(spec, self._settings.default_network, tuple(self._settings.preloads))

    async def start(self, live: LiveSession) -> None:
        """Start its kernel for nobody in particular: what goes wrong is told by the document."""
        try:
            await live.ready()
        except NoRoom:
            log.info("Session %r is started when there is room", live.session.id)
        except StartFailed as error:
            why = error.sentence.partition("\n")[0]  # what the kernel printed is for its user alone
            log.info("Session %r did not start: %s", live.session.id, why)
        except (GatewayError, KernelsError) as error:
            log.info("Session %r did not start: %s", live.session.id, error)

    def _resources(self, request: CreateSession) -> Resources:
        image = self._settings.images.get(request.image_id or "")
        given = request.resources.model_dump(exclude_none=True)
        return Resources.model_validate({**(image.resources if image else {}), **given})

    def _choose_kernel(self, request: CreateSession) -> tuple[Kernelspec, bool | None]:
        """The kernelspec of a new session, and whether its image is known (None: none was asked for)."""
        specs = self._engine.kernelspecs()
        image = self._settings.images.get(request.image_id) if request.image_id else None
        image_found = None if request.image_id is None else image is not None
        kernel = request.kernel or (image.kernel if image else None)
        if kernel is not None:
            if kernel not in specs:
                raise Invalid(f"kernel: {_no_kernel(kernel, specs)}", kernel=f"one of {', '.join(sorted(specs))}")
            spec = specs[kernel]
            if request.language is not None and _language(request.language) != spec.language:
                raise Invalid(f"language: kernel {kernel!r} runs {spec.language}.", field="language")
            return spec, image_found
        language = _language(request.language or self._settings.default_language)
        matching = [spec for spec in specs.values() if spec.language == language]
        if not matching:
            raise Invalid(f"language: {_no_kernel(language, specs)}", field="language")
        preferred = [spec for spec in matching if spec.name in ("python3", language)]
        return (preferred or sorted(matching, key=lambda spec: spec.name))[0], image_found

    # Changing

    async def update(self, session_id: str, request: UpdateSession, *, replace_maps: bool) -> Session:
        """PUT replaces the maps that it names, PATCH merges them."""
        given = {name: getattr(request, name) for name in request.model_fields_set}
        maps = {name: value for name, value in given.items() if name in ("data", "metadata", "labels")}
        for name, value in given.items():
            if value is None and name != "default_timeout":
                raise Invalid(f"{name}: can't be null.", field=name)
        if not replace_maps and "labels" in maps:
            await self._check_label_count(session_id, maps["labels"])
        plain = {name: value for name, value in given.items() if name not in maps}
        changes = SessionChanges(replace={**plain, **maps}) if replace_maps else SessionChanges(plain, maps)
        return await self.change(session_id, changes)

    async def _check_label_count(self, session_id: str, changes: dict[str, str | None]) -> None:
        merged = {**(await self.find(session_id)).labels, **changes}
        try:
            check_count([key for key, value in merged.items() if value is not None])
        except ValueError as error:
            raise Invalid(f"labels: {error}", field="labels") from None

    async def set_labels(self, session_id: str, labels: dict[str, str]) -> dict[str, str]:
        return (await self.change(session_id, SessionChanges(replace={"labels": labels}))).labels

    async def set_grants(self, session_id: str, grants: dict[str, GrantLevel]) -> dict[str, GrantLevel]:
        return (await self.change(session_id, SessionChanges(replace={"grants": grants}))).grants

    async def set_code(self, session_id: str, code: str) -> None:
        await self.change(session_id, SessionChanges(replace={"code": code}))

    async def get_code(self, session_id: str) -> str:
        """Raises `NotFound` when none is stored."""
        code = (await self.find(session_id)).code
        if code is None:
            raise NotFound(f"No code is stored in session {session_id!r}.", session_id=session_id)
        return code

    async def change(self, session_id: str, changes: SessionChanges) -> Session:
        """Change a session that is live here, or else its document. Raises `TooLarge`."""
        self._recorder.check()
        session = await self.find(session_id)
        async with self._live.claiming(session.uid):
            live = self._live.find(session_id)
            if live is not None and live.closing is not None:
                await live.closed()
            elif live is not None and live.uid == session.uid:
                live.change(changes)
                await live.outbox.flushed()
                if live.outbox.refused is not None:
                    raise live.outbox.refused
                return live.session
            check_size(changes.apply(session))
            return await self._store.update_session(session.uid, changes, now())

    async def variables_changed(self, session_id: str, change_id: str) -> None:
        """Somebody has changed variables from outside a run."""
        (await self._live.get(session_id)).variables_changed(change_id)

    # Starting and stopping

    async def restart(self, session_id: str, *, fresh: bool) -> Session:
        live = await self._live.get(session_id)
        await lasting(self._spawn, live.restart(fresh=fresh))
        return live.session

    async def wake(self, session_id: str) -> Session:
        live = await self._live.get(session_id)
        await live.ready()
        return live.session

    async def hibernate(
        self, session_id: str, reason: str = "It was put to sleep.", *, active_at: float | None = None
    ) -> Session:
        """Raises `Conflict` while it runs code, or if it was used since `active_at` when that is given."""
        live = await self._live.get(session_id)
        await self.count_files(live.session)
        if active_at not in (None, live.active_at):
            raise Conflict(f"Session {session_id!r} was used just now.", session_id=session_id)
        await lasting(self._spawn, live.hibernate(reason))
        self._recorder.note("session.hibernate", session_id)
        return live.session

    # Deleting

    async def purge_deleted(self, session_id: str) -> Deleted:
        """Remove for good the last one of this id that was deleted. Raises `SessionNotFound`, `BroughtBack`."""
        self._recorder.check()
        session = await self._store.get_deleted_session(session_id)
        assert session.deleted_at is not None
        await lasting(self._spawn, self._purge(session, session.deleted_at))
        return Deleted(id=session.id, deleted_at=session.deleted_at)

    async def uid_of_last(self, session_id: str) -> str:
        """The uid of a session, or of the last one of this id that was deleted. Raises `SessionNotFound`."""
        try:
            return await self.uid_of(session_id)
        except SessionNotFound:
            return (await self._store.get_deleted_session(session_id)).uid

    async def delete(self, session_id: str, *, purge: bool = False) -> Deleted:
        """Stop the kernel and soft-delete, also if the caller leaves; `purge` removes files and document for good."""
        self._recorder.check()
        return await lasting(self._spawn, self._delete(await self._live.get(session_id), purge))

    async def _delete(self, live: LiveSession, purge: bool) -> Deleted:
        if live.session.persistent and not purge and not live.busy:
            await live.save_work("stop")  # for undelete
        await live.outbox.flushed()
        at = (await self._store.delete_session(live.uid, now())).deleted_at
        assert at is not None
        self._recorder.note("session.delete", live.session.id, uid=live.uid)
        live.front_ends.tell("dead")
        await live.close("The session was deleted.")
        if purge:
            await self._purge(live.session, at)
        return Deleted(id=live.session.id, deleted_at=at)

    async def _purge(self, session: Session, deleted_at: datetime) -> None:
        """Raises `BroughtBack` when it was undeleted since, `FilesStay`."""
        async with self._live.claiming(session.uid):
            await self._store.purge_session(session.uid, deleted_at)
            self._recorder.note("session.purge", session.id, uid=session.uid)
            try:
                await self._engine.remove(session.uid)
            except (OSError, KernelsError) as error:
                log.warning("Files of the purged session %r stay under the uid %s: %s", session.id, session.uid, error)
                raise FilesStay(session) from None

    async def delete_many(self, filter_: SessionFilter) -> DeletedMany:
        """Delete all that match, but for those that somebody else deletes or holds meanwhile."""
        deleted: list[str] = []
        token: str | None = None
        while True:
            found = await self.list(filter_, PageRequest(limit=1000, token=token))
            for one in found.items:
                with contextlib.suppress(SessionNotFound, SessionHeld):
                    live = await self._live.get(one.id)
                    if live.uid != one.uid:  # deleted meanwhile, and its id given to another
                        continue
                    await lasting(self._spawn, self._delete(live, purge=False))
                    deleted.append(one.id)
            token = found.next_token
            if token is None:
                return DeletedMany(deleted_count=len(deleted), deleted_sessions=deleted)

    async def undelete(self, session_id: str, owner: str | None = None) -> Session:
        """The last one deleted, of `owner` if one is given. Raises `SessionPurged`, `SessionExists` for a taken id."""
        self._live.check()
        await self._check_quota(owner)
        session = await self._store.undelete_session(session_id, now(), owner)
        self._recorder.note("session.undelete", session.id, uid=session.uid)
        return (await self._live.hold(session)).session

    async def _check_quota(self, owner: str | None) -> None:
        most = most_sessions(self._settings)
        if owner is not None and most is not None:
            owned = await self._store.list_sessions(SessionFilter(created_by=owner), PageRequest(1))
            if owned.total_count >= most:
                raise QuotaExceeded.of_sessions(owner, most)

    # Looking

    def kernelspecs(self) -> Mapping[str, Kernelspec]:
        return self._engine.kernelspecs()

    async def logs(self, session_id: str, name: Literal["kernel", "setup"], limit_bytes: int) -> str:
        log_ = await self._engine.log(await self.uid_of(session_id), name, limit_bytes)
        return (await self.guards(session_id)).text(log_)

    async def metrics(self, session_id: str) -> dict[str, Any]:
        """What the session uses: CPU and memory of its kernel with all that it started, disk of its files."""
        session = await self.get(session_id)
        live = self._live.find(session_id)
        kernel = live.kernel if live is not None else None
        usage = await kernel.process.usage() if kernel is not None else None
        return {
            "cpu_seconds": usage.cpu_seconds if usage else 0.0,
            "memory_bytes": usage.memory_bytes if usage else 0,
            "process_count": usage.process_count if usage else 0,
            "disk_bytes": session.total_size_bytes,
            "state_bytes": await self._engine.snapshots.usage(session.uid),
            "uptime_s": round(time.time() - kernel.process.started_at, 3) if kernel is not None else 0.0,
            "run_count": session.run_count,
        }


def _language(name: str) -> str:
    return _ALSO_CALLED.get(name.lower(), name.lower())


def _no_kernel(wanted: str, specs: Any) -> str:
    return f"no kernel for {wanted!r} is installed; there are {', '.join(sorted(specs))}."


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content
