"""What every handler does alike: read a request strictly, send an answer, turn refusals into the error envelope.

A client that goes away cancels its handler. A refusal is sent once the body was read (and dropped): sent earlier, it
would be lost to a client that still writes, and the connection with it.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, wraps
from http.client import responses
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, MissingArgumentError, RequestHandler, stream_request_body

from gateway import errors
from gateway.config import Settings, is_loopback
from gateway.metrics import Metrics
from gateway.models.access import NOBODY, Caller, Level, Need
from gateway.models.base import now
from gateway.models.executions import ExecutionView
from gateway.models.idempotency import KeptAnswer
from gateway.models.pieces import LARGE_CHARACTERS, text_size, view_pieces
from gateway.models.queries import NoQuery
from gateway.models.sessions import Session, SessionId, SessionView
from gateway.services import origin
from gateway.services.access import Access, Pass
from gateway.services.admitted import admit
from gateway.services.agents import AgentService
from gateway.services.answers import AnswerService
from gateway.services.audit import AuditService
from gateway.services.channels import ChannelService
from gateway.services.contents import ContentsService
from gateway.services.executions import ExecutionService
from gateway.services.idempotency import IdempotencyService, full_key
from gateway.services.introspection import IntrospectionService
from gateway.services.jupyter import JupyterService
from gateway.services.keys import KeyService
from gateway.services.limits import Limits
from gateway.services.live import Live
from gateway.services.memories import MemoryService
from gateway.services.notebooks import NotebookService
from gateway.services.recall import Recaller
from gateway.services.recorder import Recorder
from gateway.services.replays import ReplayService
from gateway.services.series import SeriesService
from gateway.services.sessions import SessionService
from gateway.services.snapshots import SnapshotService
from gateway.services.windows import WindowService
from gateway.stores.base import Store
from kernels import errors as kernel_errors

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)
View = TypeVar("View", bound=SessionView)


class SaveFailed(errors.Conflict):
    """The session could not be saved as it is."""

    code = "save_failed"


class SnapshotDamaged(errors.Invalid):
    code = "snapshot_damaged"


class ObjectStoreAway(errors.Unavailable):
    code = "object_store_unavailable"


class SnapshotNewer(errors.Invalid):
    code = "snapshot_newer"


_STATUS: dict[type[errors.GatewayError], int] = {
    errors.Malformed: 400,
    errors.Unauthenticated: 401,
    errors.Denied: 403,
    errors.NotFound: 404,
    errors.NotAllowed: 405,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.TooLarge: 413,
    errors.Unsupported: 415,
    errors.Invalid: 422,
    errors.Exhausted: 429,
    errors.Unavailable: 503,
    errors.TimedOut: 504,
}

_OF_KERNELS: dict[type[kernel_errors.KernelsError], type[errors.GatewayError]] = {
    kernel_errors.BadPath: errors.Invalid,
    kernel_errors.OutsideWorkspace: errors.Denied,
    kernel_errors.NoSuchFile: errors.NotFound,
    kernel_errors.FileConflict: errors.Conflict,
    kernel_errors.QuotaExceeded: errors.TooLarge,
    kernel_errors.BadArchive: errors.Invalid,
    kernel_errors.StartFailed: errors.Unavailable,
    kernel_errors.KernelGone: errors.Unavailable,
    kernel_errors.NotOffered: errors.Invalid,
    kernel_errors.NoSuchKernelspec: errors.Invalid,
    kernel_errors.KernelBusy: errors.Conflict,
    kernel_errors.CheckpointFailed: SaveFailed,
    kernel_errors.NoSuchSnapshot: errors.NotFound,
    kernel_errors.DamagedSnapshot: SnapshotDamaged,
    kernel_errors.NewerSnapshot: SnapshotNewer,
    kernel_errors.BlobsAway: ObjectStoreAway,
    kernel_errors.NoSpace: errors.TooLarge,
    kernel_errors.SnapshotError: errors.Invalid,
}

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:\-]{1,128}")
_SESSION_ID: TypeAdapter[str] = TypeAdapter(SessionId)
_PLACE = re.compile(r"(.*) at line (\d+) column (\d+)")
_OWN_SITE = ("none", "same-origin")
_CLIENT_LEFT = 499  # as nginx has it
_FLUSHED_BYTES = 4 * 2**20
_DISCARDED_BYTES = 1024 * 2**20


@dataclass(frozen=True, slots=True)
class Services:
    """All that handlers may use."""

    settings: Settings
    store: Store
    live: Live
    keys: KeyService
    access: Access
    limits: Limits
    sessions: SessionService
    executions: ExecutionService
    contents: ContentsService
    series: SeriesService
    notebooks: NotebookService
    replays: ReplayService
    channels: ChannelService
    jupyter: JupyterService
    introspection: IntrospectionService
    snapshots: SnapshotService
    agents: AgentService
    windows: WindowService
    memories: MemoryService
    recaller: Recaller
    answers: AnswerService
    idempotency: IdempotencyService
    recorder: Recorder
    audit: AuditService
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Operation:
    """What a method of a route takes, gives and needs; the OpenAPI document and the table of rights are made of it."""

    summary: str
    # A model, media types, either or, or nothing that has a shape.
    answer: type[BaseModel] | str | tuple[type[BaseModel] | str, ...] | None = None
    status: int = 200
    body: type[BaseModel] | str | None = None
    query: type[BaseModel] | None = None
    body_required: bool = True
    also: dict[int, str] = field(default_factory=dict)
    also_answers: dict[int, type[BaseModel]] = field(default_factory=dict)
    needs: Need = field(kw_only=True)


class ErrorView(BaseModel):
    """The envelope of every refusal."""

    error: str
    code: str
    details: dict[str, Any]
    request_id: str


def _once(post: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Answer a repeated `Idempotency-Key` with the first answer."""

    @wraps(post)
    async def answered_once(self: "ApiHandler", **path: str) -> None:
        key = self.request.headers.get("Idempotency-Key")
        if key is None or not self.answers_once:
            return await post(self, **path)

        async def answer() -> KeptAnswer | None:
            await post(self, **path)
            return self.kept

        kept = await self.services.idempotency.once(self.caller, self.canonical_path, key, self.raw_body, answer)
        if kept is not None:
            self.set_header("Idempotent-Replayed", "true")
            self.set_header("Content-Type", kept.content_type or "application/json")
            self.set_status(kept.status or 200)
            await self.finish(kept.body)
        return None

    return answered_once


@stream_request_body
class ApiHandler(RequestHandler):
    """The base of all handlers. Subclasses parse, call and send."""

    operations: ClassVar[dict[str, Operation]] = {}
    answers_once: ClassVar[bool] = True
    acts_in_window: ClassVar[bool] = True  # as the agent whose `X-Session-Token` comes with the request
    takes_idempotency_key: ClassVar[bool] = True
    takes_any_query: ClassVar[bool] = False
    refusal_model: ClassVar[type[BaseModel]] = ErrorView

    def __init_subclass__(cls) -> None:
        if "post" in cls.__dict__:
            cls.post = _once(cls.post)  # type: ignore[arg-type]

    def initialize(self, services: Services, route: str = "") -> None:
        self.services = services
        self._route = route
        self._chunks: list[bytes] = []
        self._received = 0
        self._began = time.perf_counter()
        self._gone = False
        self._refused = False
        self._task: asyncio.Task[Any] | None = None
        self._pass: Pass | None = None
        self.who: Caller = NOBODY
        self.kept: KeptAnswer | None = None
        self.noted: dict[str, Any] = {}  # more for the audit log: no code, output or secret

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("X-Request-Id", self.request_id)

    def compute_etag(self) -> None:
        """Answers are not cached; files bring an ETag of their own."""

    @cached_property
    def request_id(self) -> str:
        given = self.request.headers.get("X-Request-Id", "")
        return given if _REQUEST_ID.fullmatch(given) else uuid4().hex

    @property
    def caller(self) -> str:
        """Who acts, as sessions and runs keep it: the name of a key, `agent:ID`, or "local" without keys."""
        return self.who.acts_as

    @property
    def base_url(self) -> str:
        return f"{self.request.protocol}://{self.request.host}"

    @property
    def canonical_path(self) -> str:
        """The path under its one name: `/api/v0` and `/api/v2` are `/api`."""
        return re.sub(r"^/api/v[02](?=/)", "/api", self.request.path)

    @property
    def keyed_id(self) -> str | None:
        """The id of what this request makes, the same whenever it is sent again under its `Idempotency-Key`."""
        key = self.request.headers.get("Idempotency-Key")
        return None if key is None else full_key(self.caller, self.canonical_path, key)[:32]

    # Reading

    @property
    def body_limit_bytes(self) -> int:
        return self.services.settings.body_limit_bytes

    async def prepare(self) -> None:
        self._task = asyncio.current_task()
        try:
            self.check()
            await self._admit()
            self._check_query()
        except errors.GatewayError as refusal:
            if self._body_is_not_read():
                raise
            self._refused = True
            setattr(self, str(self.request.method).lower(), partial(_refuse, refusal))

    def _body_is_not_read(self) -> bool:
        """The client waits for a word before it sends its body, or sends more than anybody would read to drop it."""
        waits = self.request.headers.get("Expect", "").lower() == "100-continue"
        return waits or self._declared_bytes > self.body_limit_bytes + _DISCARDED_BYTES

    @property
    def _declared_bytes(self) -> int:
        length = self.request.headers.get("Content-Length", "0")
        return int(length) if length.isdecimal() else 0

    def check(self) -> None:
        """What can be said against a request before its body is read."""
        self.request.connection.set_max_body_size(self.body_limit_bytes + _DISCARDED_BYTES)  # type: ignore[union-attr]
        self._check_origin()
        if self._declared_bytes > self.body_limit_bytes:
            raise self._too_large()
        if self.request.method not in self._allowed_methods():
            raise self._not_allowed()

    def _check_query(self) -> None:
        operation = self._operation
        takes_none = not self.takes_any_query and (operation is None or operation.query is None)
        if takes_none and self.request.query:
            self.query(NoQuery)

    @property
    def _operation(self) -> Operation | None:
        method = self.request.method or ""
        return self.operations.get("GET" if method == "HEAD" else method)

    def _not_allowed(self) -> errors.NotAllowed:
        return errors.NotAllowed(f"{self.request.path[:200]} does not take {self.request.method}.")

    def _too_large(self) -> errors.TooLarge:
        limit = self.body_limit_bytes
        return errors.TooLarge(f"The body is larger than {limit:,} bytes.", limit_bytes=limit)

    def data_received(self, chunk: bytes) -> None:
        self._received += len(chunk)
        if self._received <= self.body_limit_bytes and not self._refused:
            self._chunks.append(chunk)
        else:
            self._chunks.clear()

    def _check_origin(self) -> None:
        """Without keys only this machine may ask: a name that is not loopback, or a page from elsewhere, may not."""
        settings = self.services.settings
        host, name = self.request.host, _host(f"//{self.request.host}", with_port=False)
        if not settings.exposed and not is_loopback(name) and name not in settings.allowed_hosts:
            raise HostRefused(f"This gateway does not answer to the name {host!r}.", host=host)
        origin = self.request.headers.get("Origin")
        reads = self.request.method in ("GET", "HEAD", "OPTIONS")
        if origin is not None and not reads and not self.is_own_page(origin):
            raise OriginRefused(f"A page of {origin!r} may not do this.", origin=origin)
        if origin is None and not reads and self.request.headers.get("Sec-Fetch-Site", "none") not in _OWN_SITE:
            raise OriginRefused("A page from elsewhere may not do this.")

    def is_own_page(self, origin: str) -> bool:
        """Whether a page of this origin is one that this gateway has sent."""
        return _host(origin) == self.request.host.lower()

    # Who asks, and whether they may

    async def _admit(self) -> None:
        """Raises `Unauthenticated`, `Denied`, or what an unknown session raises if this one is not the caller's."""
        operation, access = self._operation, self.services.access
        origin.begin(self._origin)
        if operation is None or operation.needs is Need.OPEN:
            return
        token, need = self.token, operation.needs
        self.who = await self._inside(await access.enter(token, self.request.remote_ip or ""))
        origin.begin(self._origin)
        self.services.limits.check_request(self.who)
        session: Session | None = None
        if not self.who.is_admin:
            missing: errors.GatewayError = errors.NotFound("There is nothing here.")
            if need.level is not Level.NONE:
                missing = self.no_such_session()
                with suppress(errors.NotFound):
                    session = await self.asked_session()
            access.check(self.who, need, session, missing)
            if need.level is not Level.NONE:
                admit(partial(self._still_may, need.level))
        if self.who.key_id is not None or self.who.window_id is not None:
            self._pass = Pass(self._again, need, session.uid if session is not None else None, self.cut_off)
            access.begin(self._pass)

    @property
    def _origin(self) -> origin.Origin:
        return origin.Origin(self.who, self.request_id, self.request.remote_ip)

    async def _inside(self, who: Caller) -> Caller:
        """The caller as the agent of its window, if it shows one: it may do what the agent may, and nothing else."""
        token = self.request.headers.get("X-Session-Token") if self.acts_in_window else None
        if token is None:
            return who
        window = await self.services.windows.opened(token)
        await self.services.access.check_agent(who, Need.AGENT, window.agent_id)
        return replace(who, agent_id=window.agent_id, window_id=window.id)

    async def _again(self) -> Caller:
        return await self._inside(await self.services.access.again(self.token))

    def _still_may(self, level: Level, session: Session) -> None:
        self.services.access.require(self.who, level, session, errors.SessionNotFound(session.id))

    @property
    def token(self) -> str | None:
        """What the caller shows; None if nothing."""
        given = self.request.headers.get("Authorization", "").strip()
        scheme, _, token = given.partition(" ")
        if not given:
            return None
        return token.strip() if scheme.lower() in ("bearer", "token") else given

    async def asked_session(self) -> Session:
        """The session that the path names. Raises `NotFound`."""
        return await self.services.sessions.find(self.session_id(self.path_kwargs["session_id"]))

    def no_such_session(self) -> errors.GatewayError:
        """What is said of a session that is not there, or not for this caller."""
        return errors.SessionNotFound(self.session_id(self.path_kwargs["session_id"]))

    def cut_off(self) -> None:
        """The caller's key, or what it was granted, is good no more: to this end the client has left."""
        self.request.connection.stream.close()  # type: ignore[union-attr]

    def _leave(self) -> None:
        if self._pass is not None:
            self.services.access.end(self._pass)

    @property
    def raw_body(self) -> bytes:
        if self._received > self.body_limit_bytes:
            raise self._too_large()
        return b"".join(self._chunks)

    def body(self, model: type[Model]) -> Model:
        """The request's body. Raises `Unsupported`, `Malformed` (line and column named), `Invalid` (fields named)."""
        body = self.raw_body
        if not body.strip():
            body = b"{}"
        else:
            kind = self.request.headers.get("Content-Type", "").split(";")[0].strip().lower()
            if kind != "application/json" and not kind.endswith("+json"):
                raise errors.Unsupported(f"The body must be application/json, not {kind or 'nothing'}.")
        try:
            return model.model_validate_json(body, strict=True)
        except ValidationError as error:
            raise _refusal(error) from None

    def query(self, model: type[Model]) -> Model:
        """The request's query. Raises `Invalid`; an unknown or repeated parameter is refused like a wrong one."""
        given: dict[str, str] = {}
        for name, values in self.request.query_arguments.items():
            if len(values) > 1:
                raise errors.Invalid(f"{name}: is given {len(values)} times.", field=name)
            try:
                given[name] = values[0].decode()
            except UnicodeDecodeError:
                raise errors.Malformed(f"{name}: is not UTF-8.", field=name) from None
        try:
            return model.model_validate(given, strict=False)
        except ValidationError as error:
            raise _refusal(error) from None

    def session_id(self, given: str) -> str:
        """A session id from the path. Raises `Invalid`."""
        try:
            return _SESSION_ID.validate_python(given)
        except ValidationError:
            raise errors.Invalid(
                "session_id: must be 1 to 128 of A-Z a-z 0-9 _ . : -, and start with a letter or digit.",
                session_id="is not an id",
            ) from None

    # Answering

    def send(self, answer: BaseModel, status: int = 200) -> None:
        self.send_json(answer.model_dump_json(by_alias=True), status)

    def send_json(self, body: str | bytes, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        raw = body.encode() if isinstance(body, str) else body
        self.kept = self.keep(raw, status, "application/json")
        self.finish(raw)

    def keep(self, body: bytes, status: int, content_type: str) -> KeptAnswer:
        """What a repeated `Idempotency-Key` is answered with; key and digest are filled in where it is kept."""
        return KeptAnswer(
            key="", request_digest="", created_at=now(), status=status, content_type=content_type, body=body
        )

    async def send_run(self, run: ExecutionView) -> None:
        """A run's answer; one with much text goes out in pieces, as fast as the client takes them."""
        if text_size(run.outputs) <= LARGE_CHARACTERS or "Idempotency-Key" in self.request.headers:
            return self.send(run)
        pieces = list(view_pieces(run))
        self.set_header("Content-Type", "application/json")
        self.set_header("Content-Length", str(sum(map(len, pieces))))
        written = 0
        for piece in pieces:
            self.write(piece)
            written += len(piece)
            if written >= _FLUSHED_BYTES:
                written = 0
                await self.flush()
        return None

    def view(self, session: Session) -> SessionView:
        return self.view_as(SessionView, session)

    def view_as(self, kind: type[View], session: Session, **more: Any) -> View:
        kernel = self.services.sessions.kernel(session.id)
        if kernel is None:
            return kind.of(session, self.base_url, **more)
        return kind.of(session, self.base_url, kernel.process.walls, **more)

    @property
    def audited_session_id(self) -> str | None:
        return self.named_in_path.get("session_id")

    @property
    def named_in_path(self) -> dict[str, str]:
        """Empty for a path that can't be read."""
        return getattr(self, "path_kwargs", {})

    def _request_summary(self) -> str:
        return f"{self.request.method} {self.request.path}"

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        if error is None:
            error = errors.GatewayError("Something went wrong here.")
        unknown_method = isinstance(error, HTTPError) and error.status_code == 405
        refusal = self._not_allowed() if unknown_method else as_refusal(error)
        self.set_status(_status_of(refusal))
        if isinstance(refusal, errors.NotAllowed):
            self.set_header("Allow", ", ".join(sorted(self._allowed_methods())))
        if isinstance(refusal, errors.Unauthenticated):
            self.set_header("WWW-Authenticate", 'Bearer realm="session-gateway"')
        if refusal.retry_after_s is not None or isinstance(refusal, errors.Exhausted | errors.Unavailable):
            self.set_header("Retry-After", str(refusal.retry_after_s or 1))
        if not self.request._body_future.done():  # Tornado refused it, and will not read on
            self.set_header("Connection", "close")
        self.send_json(self.refusal(refusal).model_dump_json(), _status_of(refusal))

    def refusal(self, error: errors.GatewayError) -> BaseModel:
        """What a refusal is answered with, as `refusal_model` has it."""
        return envelope(error, self.request_id)

    def _allowed_methods(self) -> set[str]:
        methods = set(self.operations)
        return methods | {"HEAD"} if type(self).head is not RequestHandler.head else methods

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        refused = isinstance(value, errors.GatewayError | kernel_errors.KernelsError | HTTPError)
        if not refused or (isinstance(value, errors.GatewayError) and type(value) is errors.GatewayError):
            log.error("%s (%s)", self._request_summary(), self.request_id, exc_info=(typ, value, tb))  # type: ignore[arg-type]

    async def _execute(self, transforms: Any, *args: bytes, **kwargs: bytes) -> None:
        try:
            await super()._execute(transforms, *args, **kwargs)
        except asyncio.CancelledError:
            if not self._gone:
                raise

    def _handle_request_exception(self, error: BaseException) -> None:
        if not isinstance(error, StreamClosedError):  # the client left while it was written to: nobody to tell
            super()._handle_request_exception(error)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        if not self._gone:
            super().send_error(status_code, **kwargs)
        elif not self._finished:  # nobody is there to be told, but it is counted and written down
            self._finished = True
            self.set_status(_CLIENT_LEFT, "Client Closed Request")
            self.on_finish()

    def on_connection_close(self) -> None:
        """The client went away: nobody waits for this answer, unless it is kept for a retry."""
        self._gone = True
        self._leave()
        if self._task is not None and "Idempotency-Key" not in self.request.headers:
            self._task.cancel()

    def on_finish(self) -> None:
        self._leave()
        status, method = self.get_status(), self.request.method or ""
        metrics = self.services.metrics
        counted_as = method if method in self.SUPPORTED_METHODS else "other"  # a client can make up any number of them
        metrics.requests.labels(counted_as, self._route, str(status)).inc()
        metrics.request_seconds.labels(self._route).observe(time.perf_counter() - self._began)
        if method not in ("GET", "HEAD", "OPTIONS") and method in self.operations:
            self.audit(status)

    def audit(self, status: int) -> None:
        """Write down what was asked for, and how it was answered."""
        action, session_id = f"{self.request.method} {self._route}", self.audited_session_id
        try:
            _SESSION_ID.validate_python(session_id)
        except ValidationError:
            session_id = None  # whatever else a path may hold
        self.services.recorder.note(action, session_id, str(status), by=self._origin, **self.noted)


class HostRefused(errors.Denied):
    code = "host_refused"


class OriginRefused(errors.Denied):
    code = "origin_refused"


class NoSuchRoute(ApiHandler):
    """Whatever has no route of its own."""

    def check(self) -> None:
        raise errors.NotFound(f"There is nothing at {self.request.path[:200]!r}.", path=self.request.path[:200])


async def _refuse(refusal: errors.GatewayError, **path: str) -> None:
    raise refusal


def envelope(refusal: errors.GatewayError, request_id: str) -> ErrorView:
    details = {name: value for name, value in refusal.details.items() if value is not None}
    if field_ := details.pop("field", None):
        details.setdefault(field_, refusal.sentence.removeprefix(f"{field_}: "))
    return ErrorView(error=refusal.sentence, code=refusal.code, details=details, request_id=request_id)


def as_refusal(error: BaseException) -> errors.GatewayError:
    """Our error for anything that was raised; what nobody foresaw says nothing of itself."""
    if isinstance(error, errors.GatewayError):
        return error
    if isinstance(error, kernel_errors.KernelsError):
        for kind, ours in _OF_KERNELS.items():
            if isinstance(error, kind):
                path = getattr(error, "path", None)
                field_ = None if path is None else "path"
                return ours(str(error), field=field_, retry_after_s=1 if ours is errors.Unavailable else None)
    if isinstance(error, MissingArgumentError):
        return errors.Invalid(f"{error.arg_name}: is missing.", field=error.arg_name)
    if isinstance(error, HTTPError) and 400 <= error.status_code < 500:
        kinds = {status: kind for kind, status in _STATUS.items()}
        sentence = error.log_message or error.reason or responses.get(error.status_code, "It can't be read")
        return kinds.get(error.status_code, errors.Malformed)(f"{sentence}.")
    return errors.GatewayError("Something went wrong here.")


def _status_of(refusal: errors.GatewayError) -> int:
    return next((status for kind, status in _STATUS.items() if isinstance(refusal, kind)), 500)


def _refusal(error: ValidationError) -> errors.GatewayError:
    found = error.errors(include_url=False, include_context=True, include_input=False)
    first = found[0]
    if first["type"] == "json_invalid":
        return _not_json(first["ctx"]["error"])
    fields = {".".join(str(part) for part in one["loc"]) or "body": _why(one) for one in found[:20]}
    refusal = errors.Invalid("; ".join(f"{name}: {why}" for name, why in fields.items()))
    refusal.details.update(fields)  # a field may be called as an argument is
    return refusal


def _not_json(why: str) -> errors.Malformed:
    place = _PLACE.fullmatch(why)
    what, line, column = (place[1], int(place[2]), int(place[3])) if place else (why, None, None)
    if "hex escape" in what:
        what = "a lone surrogate, or half an escape,"
    where = f" at line {line} column {column}" if place else ""
    return errors.Malformed(f"The body is not JSON: {what}{where}.", line=line, column=column)


def _why(one: ErrorDetails) -> str:
    match one["type"]:
        case "extra_forbidden":
            return "is not known here, or is given under another name as well"
        case "value_error":
            return str(one["ctx"]["error"])
        case _:
            return one["msg"]


def _host(url: str, *, with_port: bool = True) -> str:
    """The host of a URL in small letters, empty if it has none that can be read."""
    try:
        parts = urlsplit(url)
        return parts.netloc.lower() if with_port else parts.hostname or ""
    except ValueError:
        return ""
