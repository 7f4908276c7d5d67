"""Sessions as Jupyter sees them: each is a kernel, and what front ends have open on it are Jupyter's sessions."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from uuid import UUID, uuid4

from pydantic import ValidationError

from gateway.errors import Invalid, NotFound, SessionNotFound
from gateway.models.access import Caller, Level
from gateway.models.base import now
from gateway.models.jupyter import (
    ChangeSession,
    ExecutionState,
    KernelChoice,
    KernelModel,
    ServerStatus,
    SessionModel,
    StartKernel,
    StartSession,
)  # fmt: skip
from gateway.models.sessions import ENV_NAME, CreateSession, Session
from gateway.services.access import Access
from gateway.services.channels import ChannelService
from gateway.services.live import Live
from gateway.services.live_session import LiveSession
from gateway.services.sessions import SessionService
from gateway.states import State
from gateway.stores.base import SessionChanges, Store
from kernels.engine import Kernelspec

_MOST_OFFERED = 50
_OFFER = "session."  # before its id, the name of a kernelspec that stands for a session


class KernelNotFound(NotFound):
    code = "kernel_not_found"

    def __init__(self, kernel_id: str) -> None:
        super().__init__(f"Kernel does not exist: {kernel_id[:64]}", kernel_id=kernel_id[:64])


class JupyterSessionNotFound(NotFound):
    code = "jupyter_session_not_found"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"Session not found: {session_id[:64]}", session_id=session_id[:64])


class JupyterService:
    """`who` sees only what it may see."""

    def __init__(
        self, store: Store, live: Live, sessions: SessionService, channels: ChannelService, access: Access
    ) -> None:
        self._store = store
        self._access = access
        self._live = live
        self._sessions = sessions
        self._channels = channels
        self._started_at = now()

    # Kernelspecs

    async def kernelspecs(self, who: Caller) -> dict[str, Kernelspec]:
        """Those that are installed, by name, and one for each of the sessions used last that Jupyter has not started.

        Jupyter Server shows people no kernels but those that it has started. Kernelspecs it shows them all: who starts
        one that stands for a session comes to the session, also when a front end has ended its kernel.
        """
        specs = dict(self._sessions.kernelspecs())
        others = [one for one in await self._all_there(who) if one.source != "jupyter" and one.kernel in specs]
        newest = sorted(others, key=lambda session: session.updated_at, reverse=True)[:_MOST_OFFERED]
        return specs | {_OFFER + one.id: _offer(one, specs[one.kernel]) for one in newest}

    async def kernelspec(self, name: str, who: Caller) -> Kernelspec | None:
        """One by its name. Raises `SessionNotFound`."""
        specs = self._sessions.kernelspecs()
        if name in specs or not name.startswith(_OFFER):
            return specs.get(name)
        session = await self._offered(name, who, Level.READ)
        return _offer(session, specs[session.kernel]) if session.kernel in specs else None

    # Kernels

    async def list_kernels(self, who: Caller) -> list[KernelModel]:
        return [self._kernel(session) for session in await self._all(who)]

    async def get_kernel(self, kernel_id: str) -> KernelModel:
        return self._kernel(await self.find(kernel_id))

    async def start_kernel(self, request: StartKernel, who: Caller) -> KernelModel:
        """A new session, whose kernel begins to start; or one that is there, if the kernelspec stands for it."""
        return self._kernel(await self._create(request.name, request.path or "", request.env, who))

    async def hold(self, kernel_id: str) -> LiveSession:
        """Raises `KernelNotFound`, `SessionHeld`."""
        return await self._live.get((await self.find(kernel_id)).id)

    async def delete_kernel(self, kernel_id: str) -> None:
        """A session that Jupyter has started is deleted with it, and can be brought back; any other goes to sleep."""
        await self._channels.end(await self.hold(kernel_id))

    async def interrupt_kernel(self, kernel_id: str) -> None:
        await self._channels.interrupt(await self.hold(kernel_id))

    async def restart_kernel(self, kernel_id: str) -> KernelModel:
        live = await self.hold(kernel_id)
        await self._channels.restart(live)
        return self._kernel(live.session)

    async def status(self, who: Caller) -> ServerStatus:
        kernels = await self.list_kernels(who)
        last = max((kernel.last_activity for kernel in kernels), default=self._started_at)
        connections = sum(kernel.connections for kernel in kernels)
        return ServerStatus(started=self._started_at, last_activity=last, connections=connections, kernels=len(kernels))

    # What is open on them

    async def list_sessions(self, who: Caller) -> list[SessionModel]:
        return [model for session in await self._all(who) for model in self._opened(session)]

    async def get_session(self, opened_id: str, who: Caller) -> SessionModel:
        return (await self._find_opened(opened_id, who))[1]

    async def start_session(self, request: StartSession, who: Caller) -> SessionModel:
        """Open a notebook: on the kernel that it names, that it is open on, or whose workspace it is in; or a new one.

        Raises `Invalid`, `KernelNotFound`.
        """
        path = request.path or str((request.notebook or {}).get("path", ""))
        if not path:
            raise Invalid("path: is missing.", field="path")
        for model in await self.list_sessions(who):
            if model.path == path and model.type == request.type and request.kernel.id in (None, model.kernel.id):
                return model
        session = await self._choose(request.kernel, path, who)
        name = request.name or PurePosixPath(path).name
        return await self._open(session, {"id": str(uuid4()), "path": path, "name": name, "type": request.type})

    async def change_session(self, opened_id: str, request: ChangeSession, who: Caller) -> SessionModel:
        """Rename what is open, or open it on another kernel; that which it was open on stays."""
        session, model = await self._find_opened(opened_id, who)
        before = {"id": model.id, "path": model.path, "name": model.name, "type": model.type}
        opened = before | request.model_dump(include={"path", "name", "type"}, exclude_none=True)
        kernel = request.kernel
        if kernel is not None and (kernel.id or kernel.name) and kernel.id != session.kernel_id:
            wanted = await self._choose(kernel, "", who)
            await self._close(session, opened_id)
            return await self._open(wanted, opened)
        return await self._open(session, opened)

    async def delete_session(self, opened_id: str, who: Caller) -> None:
        """The kernel goes with it, as in Jupyter."""
        session = await self.find_opened(opened_id, who)
        await self._channels.end(await self._live.get(session.id))

    # Finding

    async def _all(self, who: Caller) -> list[Session]:
        """All that `who` may see whose kernels front ends are to see, as they are now, newest first."""
        return [session for session in await self._all_there(who) if not session.kernel_ended]

    async def _all_there(self, who: Caller) -> list[Session]:
        stored = {session.uid: session async for session in self._sessions.stored(who.sees_only)}
        here = {live.uid: live.session for live in self._live if live.closing is None}
        gone = {live.uid for live in self._live if live.closing is not None}
        return [
            session
            for uid, session in {**stored, **here}.items()
            if uid not in gone and self._access.level(who, session) is not Level.NONE
        ]

    async def find(self, kernel_id: str) -> Session:
        """The session whose kernel that is. Raises `KernelNotFound`."""
        session = await self._find_any(kernel_id)
        if session.kernel_ended:
            raise KernelNotFound(kernel_id)
        return session

    async def _find_any(self, kernel_id: str) -> Session:
        """Also one that a front end has ended: it can be opened again."""
        try:
            uid = UUID(kernel_id).hex
        except ValueError:
            raise KernelNotFound(kernel_id) from None
        for live in self._live:
            if live.uid == uid and live.closing is None:
                return live.session
        try:
            return await self._store.get_session_by_uid(uid)
        except SessionNotFound:
            raise KernelNotFound(kernel_id) from None

    async def find_opened(self, opened_id: str, who: Caller) -> Session:
        """The session on whose kernel that is open. Raises `JupyterSessionNotFound`."""
        return (await self._find_opened(opened_id, who))[0]

    async def _find_opened(self, opened_id: str, who: Caller) -> tuple[Session, SessionModel]:
        for session in await self._all(who):
            for model in self._opened(session):
                if model.id == opened_id:
                    return session, model
        raise JupyterSessionNotFound(opened_id)

    # Making

    async def _choose(self, kernel: KernelChoice, path: str, who: Caller) -> Session:
        if kernel.id:
            session = await self._find_any(kernel.id)
            self._access.require(who, Level.RUN, session, KernelNotFound(kernel.id))
            return session
        try:
            session_id = path.strip("/").split("/")[0]
            owner = await self._sessions.find(session_id)
            self._access.require(who, Level.RUN, owner, SessionNotFound(session_id))
            if kernel.name in (None, owner.kernel):
                return owner
        except SessionNotFound:
            pass
        self._access.check_may_make(who)
        return await self._create(kernel.name, path, {}, who)

    async def _offered(self, name: str, who: Caller, level: Level) -> Session:
        """The session that a kernelspec stands for. Raises `SessionNotFound`, `Denied`."""
        session_id = name.removeprefix(_OFFER)
        session = await self._sessions.find(session_id)
        self._access.require(who, level, session, SessionNotFound(session_id))
        return session

    async def _create(self, kernel: str | None, path: str, env: dict[str, object], who: Caller) -> Session:
        if kernel is not None and kernel.startswith(_OFFER):
            session = await self._offered(kernel, who, Level.RUN)
            return await self._sessions.change(session.id, SessionChanges(replace={"kernel_ended": False}))
        names = {"name": PurePosixPath(path).name[:256] or "jupyter"}
        given = {name: value for name, value in env.items() if ENV_NAME.fullmatch(name) and isinstance(value, str)}
        try:
            request = CreateSession.model_validate({"kernel": kernel or None, "env": given, **names})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"][:1]).replace("kernel", "name")
            raise Invalid(f"{field}: {first['msg']}", field=field) from None
        return await self._sessions.create(request, who.acts_as, source="jupyter")

    async def _open(self, session: Session, opened: dict[str, str]) -> SessionModel:
        others = [one for one in session.notebooks if one["id"] != opened["id"]]
        changed = await self._sessions.change(
            session.id, SessionChanges(replace={"notebooks": [*others, opened], "kernel_ended": False})
        )
        return self._model(changed, opened)

    async def _close(self, session: Session, opened_id: str) -> None:
        others = [one for one in session.notebooks if one["id"] != opened_id]
        await self._sessions.change(session.id, SessionChanges(replace={"notebooks": others}))

    # Showing

    def _opened(self, session: Session) -> Iterator[SessionModel]:
        """A session that no front end has opened is one that can be: it stands for itself."""
        itself = {"id": session.kernel_id, "path": session.id, "name": session.name, "type": "console"}
        for opened in session.notebooks or [itself]:
            yield self._model(session, opened)

    def _model(self, session: Session, opened: dict[str, str]) -> SessionModel:
        notebook = {"path": opened["path"], "name": opened["name"]}
        return SessionModel(**opened, kernel=self._kernel(session), notebook=notebook)

    def _kernel(self, session: Session) -> KernelModel:
        live = self._live.find(session.id)
        live = live if live is not None and live.uid == session.uid else None
        return KernelModel(
            id=session.kernel_id,
            name=session.kernel,
            last_activity=session.updated_at if live is None else _moment(live.active_at),
            execution_state=_execution_state(session, live),
            connections=0 if live is None else live.front_ends.attached,
            session_id=session.id,
        )


def _offer(session: Session, spec: Kernelspec) -> Kernelspec:
    name = session.id if session.name in (session.id, "session") else f"{session.name} ({session.id})"
    return replace(spec, display_name=f"Session {name}", metadata={**spec.metadata, "session_id": session.id})


def _execution_state(session: Session, live: LiveSession | None) -> ExecutionState:
    """A session that sleeps is idle: it wakes when something is asked of it."""
    if live is not None and live.kernel is None and live.starting:
        return "starting"
    if live is not None and live.busy:
        return "busy"
    return {State.INIT: "starting", State.BUSY: "busy", State.ERROR: "dead"}.get(session.state, "idle")  # type: ignore[return-value]


def _moment(monotonic: float) -> datetime:
    return now() - timedelta(seconds=time.monotonic() - monotonic)
