"""One session that is held here: its document, its kernel, its saved state.

Its document in memory leads; the store follows through the session's outbox. One task owns each kernel from start
to end.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

from gateway.config import Settings
from gateway.errors import Conflict, GatewayError, SessionNotFound, StoreAway
from gateway.metrics import Metrics
from gateway.models.base import iso, now, told
from gateway.models.executions import Execution
from gateway.models.sessions import Move, Session, check_size, size_bytes
from gateway.models.snapshots import Snapshot, SnapshotKind
from gateway.models.unsaved import UnsavedVariable, Woken
from gateway.services.changes import Counted
from gateway.services.front_ends import FrontEnds
from gateway.services.guardrails import GuardrailRefused, Guardrails
from gateway.services.journal import Journal
from gateway.services.missed import Missed
from gateway.services.origin import GATEWAY
from gateway.services.positions import Positions
from gateway.services.quotas import QuotaService
from gateway.services.recorder import Recorder, Spawn
from gateway.services.runs import Run
from gateway.services.vault import Vault, remark
from gateway.states import State, check_move
from gateway.stores.base import NO_CHANGES, SessionChanges, Store
from kernels.engine import Engine, Exit, Kept, Launch, Limits, SetupStep
from kernels.errors import (
    BlobsAway,
    CheckpointFailed,
    KernelBusy,
    KernelGone,
    KernelsError,
    NoSpace,
    NoSuchKernelspec,
    SnapshotError,
    StartFailed,
)  # fmt: skip
from kernels.intake import Intake
from kernels.journaled import past_runs
from kernels.kernel import Kernel, attached, duplicated, running
from kernels.messages import Message
from kernels.outputs import Outputs

log = logging.getLogger(__name__)

_EVENTS_BYTES = 4 * 2**20
_LEASE_LOOK_S = 0.05
_STORE_PATIENCE_S = 1.0
_SAVED = ("saved_snapshot_id", "saved_at", "state_only", "saved_changes", "woken")
_UNTOLD = ("status", "execute_input")  # three of the four messages of a short run


@dataclass(frozen=True, slots=True)
class Tools:
    """What a live session works with."""

    settings: Settings
    store: Store
    engine: Engine
    intake: Intake
    recorder: Recorder
    spawn: Spawn
    metrics: Metrics
    starting: asyncio.Semaphore
    base_url: Callable[[], str]
    vault: Vault
    guardrails: Guardrails
    quotas: QuotaService


@dataclass(frozen=True, slots=True)
class Copy:
    """A kernel that was copied from another session's; closing `ending` ends it."""

    kernel: Kernel
    ending: contextlib.AsyncExitStack


class LiveSession:
    """One session that is held here: its document, its kernel when there is one, its runs."""

    def __init__(self, session: Session, tools: Tools, room: Callable[[], None], gone: Callable[[], None]) -> None:
        self.session = session
        self.kernel: Kernel | None = None
        self.events = Journal(_EVENTS_BYTES)
        self.queue: deque[Run] = deque()
        self.current: Run | None = None
        self.closing: str | None = None
        self.active_at = time.monotonic()
        self.front_ends = FrontEnds(
            session.uid, tools.settings.front_end_buffer_bytes, tools.settings.front_end_remembered_s,
            Positions(tools.settings.data_dir / "front_ends" / session.uid),
        )  # fmt: skip
        self.guards = tools.guardrails.of(session)
        self.missed: Missed | None = None  # by front ends of an earlier gateway
        self.outbox = tools.recorder.outbox(session.uid, tools.settings.gateway_id, self._lost)
        self._tools = tools
        self._check_room = room
        self._gone = gone
        self._started: asyncio.Future[Kernel] | None = None
        self._stop: asyncio.Future[str] | None = None
        self._owned = asyncio.Event()
        self._owned.set()
        self._closed: asyncio.Future[None] | None = None
        self._trouble: str | None = None  # what went wrong at the start, though the kernel runs
        self._saving = asyncio.Lock()
        self._counted: Counted | None = None  # while it is being saved
        self._used_since_start = False
        self._unsure = False  # what was set last by an earlier gateway may not have been counted
        self._settling = asyncio.Lock()
        self._barred: asyncio.Event | None = None
        self._stops = 0  # how often it was made to begin from another state
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def uid(self) -> str:
        return self.session.uid

    @property
    def busy(self) -> bool:
        return self.current is not None or bool(self.queue) or bool(self.front_ends.beside)

    @property
    def has_unsaved_work(self) -> bool:
        """Whether the kernel's variables may differ from those that are saved."""
        return self.kernel is not None and (self._unsure or self.session.changes != self.session.saved_changes)

    @property
    def is_being_changed(self) -> bool:
        """Whether it is being saved, goes back to something, or starts anew."""
        return self._barred is not None or self._saving.locked()

    def touch(self) -> None:
        self.active_at = time.monotonic()

    def variables_changed(self, change_id: str) -> None:
        """Somebody has set a variable from outside a run."""
        if self._counted is not None:
            self._counted.setting(change_id)
        self.change(SessionChanges(add={"changes": 1}))

    def worker_wanted(self) -> bool:
        """Whether nobody works on the queue yet; who gets True must do it."""
        wanted = self._quiet.is_set()
        self._quiet.clear()
        return wanted

    def worker_done(self) -> None:
        self._quiet.set()

    # State

    def move(self, after: State, reason: str | None = None, changes: SessionChanges = NO_CHANGES) -> None:
        """Move the document, tell who listens, and have the store follow. Raises `IllegalMove`, `TooLarge`."""
        move = Move(before=self.session.state, after=after, reason=reason, at=now())
        check_move(self.session.state, after)
        self.session = self._changed(changes).model_copy(
            update={"state": after, "state_reason": reason, "updated_at": move.at}
        )
        self.events.add("state", move)
        self.outbox.move(move, changes)

    def begin_run(self, run: Run, data: dict[str, Any]) -> None:
        """Move to BUSY for a run, which tells how its kernel began if none has yet. Raises `TooLarge`."""
        self.move(State.BUSY, changes=SessionChanges(merge={"data": data} if data else {}, add={"changes": 1}))
        self.show_kernel()
        if self._counted is not None:
            self._counted.run(run.id)
        self._used_since_start = True
        self.tell_by(run.record)

    def show_kernel(self) -> None:
        """Jupyter's clients see the kernel again that one of them has ended."""
        if self.session.kernel_ended:
            self.change(SessionChanges(replace={"kernel_ended": False}))

    def tell_by(self, record: Execution | None) -> None:
        """How the kernel began, unless that was told: by this run, or by one that is on record."""
        if self.session.woken is not None:
            if record is not None:
                record.tell(self.session.woken)
            self.change(SessionChanges(replace={"woken": None}))

    def change(self, changes: SessionChanges) -> None:
        """Change the document here now, and in the store behind. Raises `TooLarge`."""
        at = now()
        self.session = self._changed(changes).model_copy(update={"updated_at": at})
        self.outbox.change(changes, at)

    def _changed(self, changes: SessionChanges) -> Session:
        changed = changes.apply(self.session)
        if not {"data", "metadata"}.isdisjoint([*changes.replace, *changes.merge]):
            check_size(changed)
        return changed

    def settle(self, reason: str | None = None) -> None:
        """Make the state true for a session whose kernel is not running."""
        if move := settlement(self.session):
            self.move(move.after, reason or move.reason)

    def lose(self, why: str) -> None:
        """Let go of a session that is no longer ours; nothing begins in it from now on."""
        if self.closing is None:
            log.warning("Session %r is no longer held here: %s", self.session.id, why)
            self.let_go("The session was taken over or deleted elsewhere.")

    def _lost(self, error: GatewayError) -> None:
        self.lose(error.sentence)

    # Kernel

    async def ready(self) -> Kernel:
        """The running kernel, started if there is none; leaving early does not stop the start.

        Raises `StartFailed`, `NoRoom`, `GuardrailRefused`, `QuotaExceeded`, `SessionNotFound` when it is being deleted.
        """
        while True:
            if self.closing is not None:
                raise SessionNotFound(self.session.id)
            if self._tools.recorder.lease_is_stale:  # the next beat tells whether the session is still ours
                await asyncio.sleep(_LEASE_LOOK_S)
                continue
            if self._barred is not None:
                await self._barred.wait()
                continue
            self.touch()
            if self._started is None:
                self._begin()
            assert self._started is not None
            if not self._ending:
                kernel = await asyncio.shield(self._started)
                if self.serves(kernel):
                    return kernel
            await self._owned.wait()

    @property
    def at_hand(self) -> Kernel | None:
        """The kernel that `ready` would give if it can do so at once."""
        kernel, waits = self.kernel, self.closing is not None or self._barred is not None
        if kernel is None or waits or self._tools.recorder.lease_is_stale or not self.serves(kernel):
            return None
        self.touch()
        return kernel

    @property
    def _ending(self) -> bool:
        stopped = self._stop is not None and self._stop.done()
        return stopped or (self.kernel is not None and self.kernel.ended.done())

    def serves(self, kernel: Kernel) -> bool:
        """Whether this is the kernel, and nobody has asked for its end."""
        return self.kernel is kernel and not self._ending

    def take(self, origin: Kept | Copy) -> None:
        """Begin to serve with a kernel that has outlived its gateway, or was copied from another session's."""
        if isinstance(origin, Kept):
            self.front_ends.recall()
        self._begin(origin)

    def _begin(self, origin: Kept | Copy | None = None) -> None:
        if origin is None:
            self._check_room()
        loop = asyncio.get_running_loop()
        self._started, self._stop = loop.create_future(), loop.create_future()
        self._used_since_start = False
        self.show_kernel()
        self.front_ends.tell("starting")
        self._started.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._owned.clear()
        self._tools.spawn(self._own(self._started, self._stop, origin))

    @property
    def starting(self) -> bool:
        return self._started is not None

    async def _own(
        self, started: asyncio.Future[Kernel], stop: asyncio.Future[str], origin: Kept | Copy | None
    ) -> None:
        """The one task of a kernel, from launch (or from when it was taken over) to end."""
        owner = asyncio.current_task()
        assert owner is not None
        stop.add_done_callback(lambda _: started.done() or owner.cancel())
        try:
            self._trouble = None
            if isinstance(origin, Copy):
                await self._keep_copy(origin, started, stop)
            elif origin is None or not await self._keep_on(origin, started, stop):
                await self._keep(await self._prepared(), started, stop)
        except asyncio.CancelledError:
            if not stop.done():
                raise
            owner.uncancel()
            self._failed(stop.result())
            self._not_started(started, StartFailed(stop.result()))
        except GuardrailRefused as error:
            self._failed(error.sentence)
            self._not_started(started, error)
        except GatewayError as error:  # there is no room for it now, or the store is away
            self._not_started(started, error)
        except KernelsError as error:
            self._tools.metrics.kernel_starts.labels("failed").inc()
            self._failed(str(error))
            self._not_started(started, StartFailed(str(error)))
        except Exception as error:
            log.exception("The kernel of session %r could not be kept", self.session.id)
            self._failed(f"Internal error: {type(error).__name__}")
            self._not_started(started, StartFailed("The kernel could not be started."))
        finally:
            self.front_ends.caught_up()
            self._not_started(started, StartFailed("The start was given up."))
            self.kernel = None
            self._started = self._stop = None
            self._owned.set()

    def _not_started(self, started: asyncio.Future[Kernel], why: StartFailed | GatewayError) -> None:
        if not started.done():
            started.set_exception(why)

    async def _prepared(self) -> Launch:
        """Files and environment as they must be before the kernel starts."""
        launch = launch_of(self.session, self._tools)
        left = await self._tools.quotas.disk_left(self.session)
        if left is not None and left < (launch.limits.disk_bytes or left + 1):
            launch = replace(launch, limits=replace(launch.limits, disk_bytes=max(1, left)))
        await self.settle_files()
        await self._set_up(launch)
        return launch

    async def settle_files(self) -> None:
        """Finish a restore of files that was begun, by whomever."""
        async with self._settling:
            if self.session.files_from is not None:
                await self._tools.vault.restore_files(self.session)
                self.change(SessionChanges(replace={"files_from": None}))

    async def _keep_on(self, kept: Kept, started: asyncio.Future[Kernel], stop: asyncio.Future[str]) -> bool:
        """Serve with a kernel that was kept; False if its start had been cut off, so that it may lack variables."""
        tools = self._tools
        async with (
            tools.quotas.place(self.session, runs=True),
            attached(tools.engine, kept, tools.intake, tools.settings.start_timeout_s) as kernel,
        ):
            if self.session.state not in (State.READY, State.BUSY) and not await past_runs(
                tools.engine.journal(kernel.id), kernel.channels.wire
            ):
                return False
            try:
                self.guards.check_walls(kernel.process.walls)
            except GuardrailRefused:  # it has a guardrail that it did not have: the next kernel has it too
                return False
            with tools.metrics.kernels.track_inprogress():
                self._unsure = True
                kernel.channels.sift(self.guards.new_sieve)
                self.missed = Missed(self.front_ends, kernel, tools.engine)
                tools.spawn(self.missed.give())
                await self._serve(kernel, started, stop)
        return True

    async def _keep_copy(self, copy: Copy, started: asyncio.Future[Kernel], stop: asyncio.Future[str]) -> None:
        async with copy.ending, self._tools.quotas.place(self.session, runs=True):
            with self._tools.metrics.kernels.track_inprogress():
                await self._serve(copy.kernel, started, stop)

    async def _keep(self, launch: Launch, started: asyncio.Future[Kernel], stop: asyncio.Future[str]) -> None:
        self.front_ends.caught_up()  # with nothing: it is another kernel
        tools, began = self._tools, time.perf_counter()
        async with tools.quotas.place(self.session), contextlib.AsyncExitStack() as stack:
            async with tools.starting:
                kernel = await stack.enter_async_context(
                    running(tools.engine, launch, tools.intake, tools.settings.start_timeout_s)
                )
            self.guards.check_walls(kernel.process.walls)
            tools.metrics.kernel_starts.labels("ok").inc()
            tools.metrics.kernel_start_seconds.observe(time.perf_counter() - began)
            with tools.metrics.kernels.track_inprogress():
                await self._bring_back(kernel)
                await self._serve(kernel, started, stop)

    async def _bring_back(self, kernel: Kernel) -> None:
        """The saved variables, into the new kernel.

        What may be better the next time has it not start: raises `StartFailed`. What will not be leaves it without
        variables; the first run tells so, and the snapshot stays. How it went is stored before a run may begin.
        """
        changed: dict[str, Any] = {"saved_changes": self.session.changes}
        woken = Woken(fresh_start=True) if self.session.changes > 0 else None
        try:
            not_carried = await self._tools.vault.load(self.session, kernel)
            if not_carried is not None:
                woken = Woken(resumed=True, not_carried=[*self._untold(not_carried), *not_carried])
        except (KernelGone, KernelBusy, NoSpace, BlobsAway) as error:
            raise StartFailed(f"Its variables could not be brought back: {error}") from None
        except (SnapshotError, CheckpointFailed) as error:
            log.warning("The variables of session %r can't be brought back (%s)", self.session.id, type(error).__name__)
            self._trouble = f"Its variables could not be brought back: {error}"
            woken = Woken(fresh_start=True, not_carried=[remark(self._trouble)])
            changed["unloaded_snapshot_id"] = self.session.saved_snapshot_id
        self._unsure = False
        self.change(SessionChanges(replace={**changed, "woken": woken}))
        if woken is not None:
            with contextlib.suppress(StoreAway):
                await self.outbox.flushed(_STORE_PATIENCE_S)

    def _untold(self, not_carried: list[UnsavedVariable]) -> list[UnsavedVariable]:
        """What was not carried over the last time either, which no run has told since."""
        before = self.session.woken
        if before is None or not before.resumed:
            return []
        return [one for one in before.not_carried if one not in not_carried]

    def _failed(self, why: str) -> None:
        if self.session.state is not State.ERROR and self.closing is None:
            self.move(State.ERROR, why)
        self.front_ends.tell("dead")

    async def _serve(self, kernel: Kernel, started: asyncio.Future[Kernel], stop: asyncio.Future[str]) -> None:
        if kernel.channels.new_sieve is None:
            kernel.channels.sift(self.guards.new_sieve)
        kernel.channels.listen(partial(self.front_ends.hear, kernel.channels.wire.session))
        kernel.channels.listen(self._hear)
        self.kernel = kernel
        if self.session.state is State.ERROR:
            self.move(State.INIT)
        if self.session.state in (State.INIT, State.IDLE):  # else it was taken back as it was
            self.move(State.READY, self._trouble)
        self.touch()
        started.set_result(kernel)
        self.front_ends.tell("idle" if self.session.state is State.READY else "busy")
        either: list[asyncio.Future[Any]] = [kernel.ended, stop]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if kernel.ended.done():
            self._died(kernel.ended.result())
        elif self.current is None and self.closing is None:
            await kernel.shut_down(grace_s=2.0)
        else:
            await kernel.process.kill(stop.result())
        if self.session.state is State.READY and self.closing is None:
            self.move(State.IDLE, stop.result())

    def _died(self, exit_: Exit) -> None:
        self._tools.metrics.kernel_deaths.inc()
        log.info("The kernel of session %r ended: %s", self.session.id, exit_.reason)
        if self.session.state is State.READY:
            self.move(State.ERROR, exit_.reason)
        if self.front_ends.attached and self.closing is None:
            self._tools.spawn(self._begin_again())

    async def _begin_again(self) -> None:
        """A kernel that died is started again at once for front ends, which do not ask for that themselves.

        Unless nothing was asked of it: whatever ended it would end the next one too.
        """
        await self._quiet.wait()
        if self._used_since_start:
            self.front_ends.tell("restarting")
            with contextlib.suppress(GatewayError, KernelsError):
                await self.ready()
        else:
            self.front_ends.tell("dead")

    async def stop_kernel(self, reason: str) -> None:
        """End the kernel, whatever it does; a run under way ends as `died`, with this reason."""
        if self._stop is not None:
            if not self._stop.done():
                self._stop.set_result(reason)
            if self.kernel is not None and self.current is not None:
                await self.kernel.process.kill(reason)
            await self._owned.wait()

    # Saving

    async def save(
        self, kind: SnapshotKind, *, files: bool = False, wait_s: float = 0.0,
        name: str | None = None, caller: str = "local",
    ) -> Snapshot:  # fmt: skip
        """Take a snapshot, waiting up to `wait_s` for a cell that runs; the session wakes with it from now on.

        Raises `KernelBusy`, and whatever else kept it from being saved, which the document then tells.
        """
        async with self._saving:
            return await self._save(kind, files=files, wait_s=wait_s, name=name, caller=caller)

    async def _save(
        self, kind: SnapshotKind, *, files: bool = False, wait_s: float = 0.0,
        name: str | None = None, caller: str = "local",
    ) -> Snapshot:  # fmt: skip
        vault, asked_at, stops = self._tools.vault, now(), self._stops
        under_way = self.current.id if self.current is not None and self.session.state is State.BUSY else None
        self._counted = counted = Counted(under_way)
        changes = self.session.changes - len(counted)  # those that are in it whenever it is taken
        kernel = None if self.kernel is None or self.kernel.ended.done() else self.kernel
        try:
            if files:
                await self.settle_files()
            snapshot, taken = await vault.save(
                self.session, kernel, kind=kind, files=files, wait_s=wait_s, name=name, caller=caller
            )
        except KernelBusy:
            raise
        except (GatewayError, KernelsError) as error:
            self.change(SessionChanges(replace={"save_problem": told(str(error))}))
            raise
        finally:
            self._counted = None
        with vault.using(snapshot.id):
            changed: dict[str, Any] = {"save_problem": None}
            if kernel is not None and stops == self._stops:  # it is the newest that there is of its variables
                self._unsure = False
                changed["saved_changes"] = self.session.changes
                if taken is not None:
                    changed["saved_changes"] = changes + counted.held(taken)
                    at = min(max(asked_at, datetime.fromtimestamp(taken.taken_at, UTC)), now())
                    changed |= {"saved_snapshot_id": snapshot.id, "saved_at": at, "state_only": None}
            self.change(SessionChanges(replace=changed))
            await self.outbox.flushed()
            if kind == "autosave":
                self._note("session.autosave", snapshot_id=snapshot.id)
            try:
                for removed in await vault.prune(lambda: self.session):
                    self._note("snapshot.remove", snapshot_id=removed.id, name=removed.name)
            except (GatewayError, KernelsError) as error:
                log.warning("Old snapshots of session %r stay for now (%s)", self.session.id, type(error).__name__)
        return snapshot

    def _note(self, action: str, **details: Any) -> None:
        """What the gateway has done by itself."""
        self._tools.recorder.note(action, self.session.id, by=GATEWAY, uid=self.uid, **details)

    async def save_work(self, kind: SnapshotKind) -> bool:
        """Save the variables if they are not; False, and a line in the log, if that fails."""
        if not self.has_unsaved_work:
            return True
        try:
            await self.save(kind)
        except (GatewayError, KernelsError) as error:
            log.warning("The variables of session %r could not be saved (%s)", self.session.id, type(error).__name__)
            return False
        return True

    async def hibernate(self, reason: str) -> None:
        """Save the variables of a session that nobody uses, and end its kernel.

        Raises `Conflict` when it is busy or used meanwhile, and what `save` raises: then the kernel is not ended.
        """
        self._check_quiet()
        async with self._saving:
            self._check_quiet()
            if self.has_unsaved_work:
                await self._save("hibernate")
                self._check_quiet()
                if self.has_unsaved_work:
                    raise Conflict(f"Session {self.session.id!r} was used just now.", session_id=self.session.id)
            await self.outbox.flushed()
            self._check_quiet()
            if self.session.state is State.READY:
                self.move(State.IDLE, reason)
            await self.stop_kernel(reason)
            self.front_ends.tell("idle")  # whatever it was asked last: it wakes for the next thing

    def _check_quiet(self) -> None:
        if self.busy:
            raise Conflict(f"Session {self.session.id!r} is running code.", session_id=self.session.id)
        if self._barred is not None or (self.kernel is None and self.starting):
            raise Conflict(f"Session {self.session.id!r} is starting.", session_id=self.session.id)

    async def restart(self, *, fresh: bool) -> None:
        """End the kernel, and start another one: with the variables as they were saved last, or without any."""
        if not fresh and not self.busy:
            await self.save_work("stop")
        async with self.stopped("The session was restarted."):
            changes: dict[str, Any] = {}
            if fresh:
                changes |= {"saved_snapshot_id": None, "saved_at": None, "state_only": None}
            if self.session.setup_status == "failed":
                changes |= {"setup_status": "pending"}
            if changes:
                self.change(SessionChanges(replace=changes))
        await self.ready()

    async def go_back(self, snapshot: Snapshot, *, files: bool, state: bool) -> None:
        """Files and variables as they were in a snapshot of this session, whose bytes were found to be whole.

        What is not to go back is saved first. Raises `Conflict` when it is busy; whatever fails leaves all as it was.
        """
        async with self._saving:
            self._check_quiet()
            self.touch()
            if self.has_unsaved_work:
                try:
                    await self._save("stop")
                except (CheckpointFailed, KernelGone):  # they can't be saved, and are to be replaced
                    if not state:
                        raise
            self._check_quiet()
            before = {name: getattr(self.session, name) for name in _SAVED}
            async with contextlib.AsyncExitStack() as stack:
                if before["saved_snapshot_id"] is not None:  # it may be needed once more
                    stack.enter_context(self._tools.vault.using(before["saved_snapshot_id"]))
                await stack.enter_async_context(self.stopped(f"It goes back to snapshot {snapshot.id}."))
                changes: dict[str, Any] = {"files_from": snapshot.id} if files else {}
                if state:
                    saved = (snapshot.id, now()) if snapshot.has_state else (None, None)
                    changes |= {"saved_snapshot_id": saved[0], "saved_at": saved[1], "state_only": None}
                    changes |= {"saved_changes": self.session.changes, "woken": None}
                self.change(SessionChanges(replace=changes))
                try:
                    await self.outbox.flushed()
                    await self.settle_files()
                except BaseException:
                    self.change(SessionChanges(replace={**before, "files_from": None}))
                    raise
                await self.outbox.flushed()

    @asynccontextmanager
    async def stopped(self, reason: str) -> AsyncIterator[None]:
        """A block in which the session has no kernel, and none is started."""
        async with self._still():
            self._stops += 1
            if self.session.state is State.READY:
                self.move(State.IDLE, reason)
            await self.stop_kernel(reason)
            yield

    @asynccontextmanager
    async def _still(self) -> AsyncIterator[None]:
        """A block in which no cell begins, nor a kernel; a cell that runs goes on."""
        while self._barred is not None:
            await self._barred.wait()
        self._barred = barred = asyncio.Event()
        self.touch()
        try:
            yield
        finally:
            self._barred = None
            barred.set()

    async def fork(self, child: Session, fill: Callable[[], Awaitable[object]], *, wait_s: float) -> Copy:
        """Copy the kernel as it lives, for a session whose place `fill` gives the files of this moment.

        Raises `KernelBusy`, `NotForked`, `CheckpointFailed`, `StartFailed`, `KernelGone`, and what `fill` raises.
        """
        tools = self._tools
        async with contextlib.AsyncExitStack() as stack, self._still():
            if self.kernel is None:
                raise KernelGone("Its kernel ended just now.")
            copying = duplicated(
                tools.engine, self.kernel, launch_of(child, tools), fill, tools.intake,
                wait_s=wait_s, timeout_s=tools.settings.start_timeout_s,
            )  # fmt: skip
            kernel = await stack.enter_async_context(copying)
            return Copy(kernel, stack.pop_all())

    async def close(self, reason: str, *, save: bool = False) -> None:
        """Let go of the session: no more runs, no kernel, nothing left to write. Goes on if the caller leaves."""
        if save and not self.busy:
            await self.save_work("stop")
        await asyncio.shield(self.let_go(reason))

    def let_go(self, reason: str) -> asyncio.Future[None]:
        """Begin to close: nothing begins here from now on."""
        if self._closed is None:
            self.closing = reason
            self._closed = asyncio.get_running_loop().create_future()
            self._closed.add_done_callback(lambda future: future.cancelled() or future.exception())
            self._tools.spawn(self._close(reason, self._closed))
        return self._closed

    async def _close(self, reason: str, closed: asyncio.Future[None]) -> None:
        try:
            for run in list(self.queue):
                run.cancel()
            await self.stop_kernel(reason)
            await self._quiet.wait()
            self.settle(reason)
            self.events.close()
            self.front_ends.close(reason)
            await self.outbox.flushed()
            await self._tools.store.release_session(self.uid, self._tools.settings.gateway_id)
        except GatewayError as error:
            closed.set_exception(error)
        finally:
            self._gone()
            if not closed.done():
                closed.set_result(None)

    async def closed(self) -> None:
        """Wait until a session that is being let go of is gone from here."""
        assert self._closed is not None
        await asyncio.wait({self._closed})

    async def recover(self, reason: str) -> None:
        """After something unforeseen: no kernel, and a state from which the next run starts one."""
        await self.stop_kernel(reason)
        if self.session.state is State.BUSY:
            self.move(State.ERROR, reason)

    async def _set_up(self, launch: Launch) -> None:
        setup = self.session.setup
        if setup is None or self.session.setup_status not in ("pending", "running"):
            return
        steps = [SetupStep("pip", tuple(setup.pip))] if setup.pip else []
        steps += [SetupStep("npm", tuple(setup.npm))] if setup.npm else []
        steps += [SetupStep("command", (command,)) for command in setup.commands]
        self.change(SessionChanges(replace={"setup_status": "running"}))
        try:
            async with asyncio.timeout(self._tools.settings.setup_timeout_s):
                exit_ = await self._tools.engine.run_setup(launch, steps)
        except TimeoutError:
            exit_ = Exit(code=124, reason=f"setup took longer than {self._tools.settings.setup_timeout_s:g} s")
        self._trouble = exit_.reason if exit_.code != 0 else None
        self.change(SessionChanges(replace={"setup_status": "done" if exit_.code == 0 else "failed"}))

    def _hear(self, message: Message) -> None:
        """Outputs are told as they come, also what a thread prints after its cell, and its answer, have ended."""
        if message.parent_id is None or message.type in _UNTOLD:
            self._stay_busy(message)
            return
        if event := Outputs(self._tools.settings.output_limit_bytes).add(message):
            self.events.add(event.kind, {**event.data, "execution_id": message.parent_id}, event.size_bytes)

    def _stay_busy(self, message: Message) -> None:
        """What is asked beside the cell that runs ends with `idle`: front ends are told that the kernel is not."""
        run = self.current
        if run is None or not run.keeps_busy or message.type != "status":
            return
        if message.content.get("execution_state") == "idle" and message.parent_id != run.request_header["msg_id"]:
            self.front_ends.tell("busy")


def launch_of(session: Session, tools: Tools) -> Launch:
    """What its kernel starts with. Raises `NoSuchKernelspec`."""
    settings, specs, limits = tools.settings, tools.engine.kernelspecs(), session.resources
    if session.kernel not in specs:
        raise NoSuchKernelspec(session.kernel, list(specs))
    image = settings.images.get(session.image_id or "")
    env = {
        **session.env,
        "ERA_SESSION": "true",
        "ERA_SESSION_ID": session.id,
        "ERA_LANGUAGE": session.language,
        "ERA_BASE_URL": tools.base_url(),
    }
    return Launch(
        kernel_id=str(uuid4()),
        place=session.uid,
        spec=specs[session.kernel],
        env=env,
        limits=Limits(
            memory_bytes=size_bytes(limits.memory) if limits.memory else settings.memory_limit_bytes,
            cpu=limits.cpu,
            pids=limits.pids or settings.pids_limit,
            disk_bytes=size_bytes(limits.disk) if limits.disk else settings.disk_limit_bytes,
        ),
        network="none" if tools.guardrails.of(session).bars_network else session.network or settings.default_network,
        preloads=(*settings.preloads, *(image.preloads if image is not None else ())),
    )


def settlement(session: Session) -> Move | None:
    """The move that makes the state of a session true whose kernel is gone; None if it is true already."""
    state = session.state
    if state is State.READY:
        kept = "variables are not" if session.saved_at is None else f"variables as of {iso(session.saved_at)}"
        return Move(before=state, after=State.IDLE, reason=f"Its kernel is gone; files are kept, {kept}.", at=now())
    if state is State.BUSY:
        return Move(before=state, after=State.ERROR, reason="The gateway stopped while a run was under way.", at=now())
    return None
