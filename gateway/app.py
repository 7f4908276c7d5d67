"""The one place that builds things: settings in, a running gateway out."""

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import shlex
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

from tornado.netutil import bind_sockets
from tornado.web import Application

from gateway.background.meter import Meter
from gateway.background.reaper import Reaper
from gateway.background.saver import Saver
from gateway.background.supervisor import Supervisor
from gateway.background.windows import WindowSweeper
from gateway.config import MOST_FILES, Settings
from gateway.errors import GatewayError, StoreAway
from gateway.handlers.base import NoSuchRoute, Services
from gateway.handlers.connections import Server
from gateway.handlers.openapi import document
from gateway.handlers.routes import ROUTES
from gateway.metrics import Metrics
from gateway.services.access import Access
from gateway.services.agents import AgentService
from gateway.services.answers import AnswerService
from gateway.services.audit import AuditService
from gateway.services.beside import BesideService
from gateway.services.channels import ChannelService
from gateway.services.contents import ContentsService
from gateway.services.executions import ExecutionService
from gateway.services.guardrails import Guardrails
from gateway.services.idempotency import IdempotencyService
from gateway.services.introspection import IntrospectionService
from gateway.services.jupyter import JupyterService
from gateway.services.keys import KeyService
from gateway.services.limits import Limits
from gateway.services.live import Live
from gateway.services.live_session import Tools
from gateway.services.memories import MemoryService
from gateway.services.notebooks import NotebookService
from gateway.services.past_runs import PastRuns
from gateway.services.quotas import QuotaService
from gateway.services.recall import Recaller
from gateway.services.recorder import Recorder
from gateway.services.replays import ReplayService
from gateway.services.series import SeriesService
from gateway.services.sessions import SessionService
from gateway.services.snapshots import SnapshotService
from gateway.services.vault import Vault
from gateway.services.window_keys import WindowKeys
from gateway.services.windows import WindowService
from gateway.stores.base import Store
from gateway.stores.sqlite import SqliteStore
from kernels.engine import Engine
from kernels.engines.local import LocalEngine
from kernels.errors import StartFailed, WallsMissing
from kernels.intake import Intake

log = logging.getLogger(__name__)

_MESSAGE_BYTES = 32 * 2**20  # at most, of what a kernel says; more where a run may have more outputs
_ENVELOPE_BYTES = 2 * 2**20
_RECHECK_S = 1.0  # whether who is being answered may still be
_SLOW_S = 0.5  # whether bodies come fast enough
_METERED_S = 2.0  # what kernels use whose owners have a quota
_PING_S = 30  # a websocket whose client has not answered by the next one is closed


class CannotStart(Exception):
    """A sentence that tells what is wrong and how to mend it."""


class Gateway:
    """A gateway that serves. Made by `running`."""

    def __init__(self, services: Services, engine: Engine, server: Server, url: str) -> None:
        self.services = services
        self.url = url
        self._engine = engine
        self._server = server

    def end_at_once(self) -> NoReturn:
        """End this process and every kernel, whatever they do; the next start makes the documents true."""
        self._engine.abandon()
        os._exit(1)

    async def stop(self) -> None:
        """Take no new work, let runs end within the grace time, interrupt the others, put every session to sleep."""
        services = self.services
        services.live.stopping = True
        self._server.stop()
        try:
            async with asyncio.timeout(services.settings.shutdown_grace_s):
                await services.executions.quiet()
        except TimeoutError:
            log.info("Runs are interrupted: the grace time is over")
        await services.executions.stop_all()
        closing = (live.close("The gateway stopped.", save=live.session.persistent) for live in services.live)
        await asyncio.gather(*closing, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await self._server.close_all_connections()
        services.channels.stop()
        await services.recorder.audit_flushed()


class Tasks:
    """Everything that runs beside requests; what fails is logged and harms nothing else."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._group.create_task(self._guarded(work))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("A background task failed")


@asynccontextmanager
async def tasks() -> AsyncIterator[Tasks]:
    """Tasks that end with the block."""
    try:
        async with asyncio.TaskGroup() as group:
            yield Tasks(group)
            raise _Over
    except* _Over:
        pass


class _Over(Exception):
    """Cancels what is left in a task group."""


async def every(interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception:
            log.exception("A periodic task failed")
        await asyncio.sleep(interval_s)


def make_store(settings: Settings) -> Store:
    uri = settings.store_uri
    if uri.startswith("sqlite:///"):
        return SqliteStore(Path(uri.removeprefix("sqlite:///")))
    if uri.startswith(("mongodb://", "mongodb+srv://")):
        from gateway.stores.mongo import MongoStore  # motor is slow to import

        return MongoStore(uri, driver=settings.mongo_driver)
    raise CannotStart("--store: it must start with sqlite:///, mongodb:// or mongodb+srv://")  # it may hold a password


def make_engine(settings: Settings) -> LocalEngine:
    return LocalEngine(
        settings.data_dir,
        settings.blobs,
        journal_bytes=settings.journal_limit_bytes,
        fork_server=settings.fork_server,
        pool_size=settings.pool_size,
        preloads=tuple(settings.preloads),
        isolation=settings.walls_wanted,
        readable=settings.readable,
    )


@asynccontextmanager
async def opened(store: Store, settings: Settings) -> AsyncIterator[None]:
    """The store, opened until the block is left. Raises `CannotStart`, in which no password is told."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(store.opened())
        except GatewayError as error:
            raise CannotStart(f"--store: {error.sentence}") from None
        except (OSError, sqlite3.Error) as error:
            where = settings.store_uri if settings.store_uri.startswith("sqlite:") else "MongoDB"
            raise CannotStart(f"--store: {where} can't be opened: {error}") from None
        yield


@asynccontextmanager
async def _ready(engine: LocalEngine) -> AsyncIterator[None]:
    """The engine, opened until the block is left. Raises `CannotStart`."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(engine.opened())
        except StartFailed as error:
            raise CannotStart(f"--data-dir: {error.sentence}") from None
        except WallsMissing as error:
            raise CannotStart(f"--isolation strict: {error} Or choose --isolation best-effort.") from None
        except OSError as error:
            raise CannotStart(f"--data-dir: {error.filename} can't be used: {error.strerror}") from None
        yield


async def _check_guarded(settings: Settings) -> None:
    """Raises `CannotStart` unless keys are asked for beyond loopback, and nobody can read them on the way."""
    has_keys = await _has_keys(settings)
    otherwise = "Or bind it to 127.0.0.1, or insist with --insecure."
    if not has_keys:
        raise CannotStart(
            f"Without keys this gateway would let anybody who reaches {settings.host} run code. "
            f"Make the first one: `{_key_command(settings)}`. {otherwise}"
        )
    if not settings.behind_tls:
        raise CannotStart(
            f"On {settings.host} keys would cross the network for anybody to read. Put a proxy with TLS in front and "
            f"say so with --behind-tls (GATEWAY_BEHIND_TLS=true). {otherwise}"
        )


async def _has_keys(settings: Settings) -> bool:
    uri = settings.store_uri
    if uri.startswith("sqlite:///") and not os.path.exists(uri.removeprefix("sqlite:///")):  # noqa: ASYNC240 - nothing else runs yet
        return False  # nothing is made by who is refused
    store = make_store(settings)
    async with opened(store, settings):
        try:
            return await store.any_key()
        except StoreAway:
            return True  # or not: they are asked for in any case


def _key_command(settings: Settings) -> str:
    where = [] if settings.data_dir == Path(".gateway").absolute() else ["--data-dir", str(settings.data_dir)]
    if settings.store:  # which may hold a password
        where = ["--store", "…"]
    return " ".join(["gateway key create admin --role admin", *map(shlex.quote, where)])


@contextlib.contextmanager
def claimed(data_dir: Path) -> Any:
    """The data folder, for this process alone. Yields the id that a gateway on this folder goes by."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(data_dir / "gateway.id", "a+", encoding="ascii") as owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(f"Another gateway uses {data_dir}; give this one its own --data-dir.") from None
        owner.seek(0)
        known = owner.read().strip()
        if not known:
            known = f"gw-{os.urandom(6).hex()}"
            owner.write(known)
            owner.flush()
        yield known


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Gateway]:
    """A gateway that serves until the block is left. Raises `CannotStart`."""
    if settings.exposed and not settings.insecure:
        await _check_guarded(settings)
    _raise_file_limit()
    with claimed(settings.data_dir) as gateway_id:
        if "gateway_id" not in settings.model_fields_set:
            settings = settings.model_copy(update={"gateway_id": gateway_id})
        sockets = _bind(settings)
        store, metrics = make_store(settings), Metrics()
        engine = make_engine(settings)
        intake = Intake(max(_MESSAGE_BYTES, settings.output_limit_bytes + _ENVELOPE_BYTES))
        async with opened(store, settings), _ready(engine), tasks() as background:
            orphans = await engine.end_orphans()
            if orphans:
                log.warning("%d kernels of an earlier gateway were ended", orphans)
            url = _url(settings, sockets)
            recorder = Recorder(store, background.spawn, metrics, settings.holder_timeout_s)
            guardrails, quotas = _guardrails(settings, recorder), QuotaService(settings, store)
            past = PastRuns(settings, store, engine, recorder, guardrails)
            services = _services(
                settings, store, engine, metrics, intake, background, url, past, recorder, guardrails, quotas
            )
            meter = Meter(services.live, services.sessions, services.executions, quotas, background.spawn)
            supervisor = Supervisor(
                settings, store, engine, services.live, services.executions, past, services.recorder
            )
            saver = Saver(settings, services.live, background.spawn)
            reaper = Reaper(settings, store, services.live, services.sessions, background.spawn)
            sweeper = WindowSweeper(services.live, services.sessions, services.windows, background.spawn)
            await supervisor.look_for_kept()
            await supervisor.beat()
            background.spawn(services.snapshots.clear_unborn())
            background.spawn(services.sessions.make_ready())
            server = Server(
                _application(services), xheaders=settings.behind_tls, max_buffer_size=64 * 2**20,
                max_header_size=2**18, most=settings.connections_limit, patience_s=settings.connection_patience_s,
            )  # fmt: skip
            server.add_sockets(sockets)
            background.spawn(every(settings.heartbeat_interval_s, supervisor.beat))
            background.spawn(every(settings.reaper_interval_s, reaper.sweep))
            background.spawn(every(settings.reaper_interval_s, sweeper.sweep))
            background.spawn(every(_SLOW_S, server.sweep))
            background.spawn(every(_METERED_S, meter.sweep))
            background.spawn(every(_RECHECK_S, services.access.recheck))
            if settings.autosave:
                background.spawn(every(settings.reaper_interval_s, saver.sweep))
            background.spawn(every(30 * settings.reaper_interval_s, reaper.sweep_unheld))
            gateway = Gateway(services, engine, server, url)
            try:
                yield gateway
            finally:
                await gateway.stop()


def _services(
    settings: Settings, store: Store, engine: LocalEngine, metrics: Metrics, intake: Intake,
    background: Tasks, url: str, past: PastRuns, recorder: Recorder, guardrails: Guardrails,
    quotas: QuotaService,
) -> Services:  # fmt: skip
    vault = Vault(settings, store, engine)
    live = Live(
        Tools(
            settings=settings, store=store, engine=engine, intake=intake, recorder=recorder, spawn=background.spawn,
            metrics=metrics, starting=asyncio.Semaphore(settings.start_concurrency), base_url=lambda: url,
            vault=vault, guardrails=guardrails, quotas=quotas,
        )
    )  # fmt: skip
    sessions = SessionService(settings, store, engine, live, recorder, background.spawn, guardrails, quotas)
    limits = Limits(settings)
    beside = BesideService(settings, engine, recorder, background.spawn)
    executions = ExecutionService(
        settings, store, live, sessions, recorder, background.spawn, metrics, engine, past, beside, limits,
        guardrails, quotas,
    )  # fmt: skip
    snapshots = SnapshotService(settings, store, engine, live, sessions, vault, recorder, background.spawn, quotas)
    series = SeriesService(settings, executions, recorder, background.spawn)
    channels = ChannelService(settings, sessions, executions, beside, recorder, background.spawn)
    agents, recaller = AgentService(store), Recaller(store)
    keys = KeyService(store, background.spawn)
    access = Access(settings, store, live, keys, guardrails)
    return Services(
        settings=settings,
        store=store,
        live=live,
        keys=keys,
        access=access,
        limits=limits,
        sessions=sessions,
        executions=executions,
        channels=channels,
        jupyter=JupyterService(store, live, sessions, channels, access),
        contents=ContentsService(sessions, background.spawn),
        series=series,
        notebooks=NotebookService(settings, store, sessions, series),
        replays=ReplayService(store, sessions, snapshots, series),
        introspection=IntrospectionService(settings, sessions),
        snapshots=snapshots,
        agents=agents,
        windows=WindowService(settings, store, agents, _window_keys(settings)),
        memories=MemoryService(store),
        recaller=recaller,
        answers=AnswerService(settings, recaller),
        idempotency=IdempotencyService(settings, recorder),
        recorder=recorder,
        audit=AuditService(store),
        metrics=metrics,
    )


def _guardrails(settings: Settings, recorder: Recorder) -> Guardrails:
    """Raises `CannotStart` if the settings name one that is not there."""
    try:
        return Guardrails(settings, recorder.note)
    except GatewayError as error:
        raise CannotStart(f"GATEWAY_GUARDRAILS: {error.sentence}") from None


def _window_keys(settings: Settings) -> WindowKeys:
    """The keys that sign tokens, made if there are none. Raises `CannotStart`."""
    keys = WindowKeys(settings.window_key_file)
    try:
        keys.prepare()
    except GatewayError as error:
        raise CannotStart(f"--window-keys: {error.sentence}") from None
    except OSError as error:
        raise CannotStart(f"--window-keys: {settings.window_key_file} can't be used: {error.strerror}") from None
    return keys


def _application(services: Services) -> Application:
    return Application(
        [(route.pattern, route.handler, {"services": services, "route": route.path}) for route in ROUTES],
        default_handler_class=NoSuchRoute,
        default_handler_args={"services": services},
        openapi=document(ROUTES),
        websocket_ping_interval=_PING_S,
        websocket_ping_timeout=_PING_S,
        websocket_max_message_size=services.settings.body_limit_bytes,
        log_function=lambda handler: None,
    )


def _bind(settings: Settings) -> list[socket.socket]:
    try:
        return bind_sockets(settings.port, settings.host, reuse_port=False, backlog=1024)
    except OSError as error:
        raise CannotStart(f"{settings.host}:{settings.port} can't be used: {error.strerror or error}") from None


def _url(settings: Settings, sockets: list[socket.socket]) -> str:
    port = sockets[0].getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{port}"


def _raise_file_limit() -> None:
    """Each kernel takes some, here and in the keeper, which inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, MOST_FILES) if hard != resource.RLIM_INFINITY else MOST_FILES
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends it at once. Raises `CannotStart`."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()

    async with running(settings) as gateway:

        def stop() -> None:
            if stopped.is_set():
                gateway.end_at_once()
            stopped.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        announce(f"Listening on {gateway.url}")
        await stopped.wait()
