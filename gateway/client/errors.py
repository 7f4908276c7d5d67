"""What a gateway refuses, as exceptions: a kind for each HTTP status, below it a class for each code.

A code that is not known here (of a newer gateway) is raised as its kind; `error.code` names it all the same.
"""

import json
from typing import Any, ClassVar

from gateway.client.documents import Run


class ClientError(Exception):
    """Whatever goes wrong between this client and its gateway."""


class Unreachable(ClientError):
    """No gateway answered, or none went on answering, for as long as there was patience."""


class Unreadable(ClientError):
    """Something answered that is no gateway."""


class Incomplete(ClientError):
    """What was sent or received is not whole."""


class RunFailed(ClientError):
    """A run that was to succeed did not; `run` tells everything about it."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.error_message or f"The run ended as {run.status}.")
        self.run = run


class GatewayError(ClientError):
    """A refusal.

    `code` tells programs what it is, `details` name fields and ids, `status` is that of HTTP, and `request_id` is what
    the gateway's log and audit know the request by.
    """

    code: str = "internal_error"
    of_code: ClassVar[str | None] = None

    def __init__(
        self, sentence: str, *, code: str | None = None, status: int = 500, details: dict[str, Any] | None = None,
        request_id: str | None = None, retry_after_s: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code or self.of_code or type(self).code
        self.status = status
        self.details = details or {}
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sentence!r}, code={self.code!r}, status={self.status})"


class Malformed(GatewayError):
    """What was sent can't be read at all."""


class Invalid(GatewayError):
    """A field does not hold what it must; `details` names it."""


class Unauthenticated(GatewayError):
    """The key is missing or no good."""


class Denied(GatewayError):
    """The key is good, and does not allow this."""


class NotFound(GatewayError):
    """There is no such thing, or not for this key."""


class NotAllowed(GatewayError):
    """The path exists, the method does not."""


class Conflict(GatewayError):
    """Right in itself, but not as things stand."""


class Gone(GatewayError):
    """It was here, and was removed for good."""


class TooLarge(GatewayError):
    """More bytes than are taken."""


class Unsupported(GatewayError):
    """Not a content type that is read."""


class Exhausted(GatewayError):
    """Too much at once, also after all retries."""


class Unavailable(GatewayError):
    """Something that is needed is away, also after all retries."""


class TimedOut(GatewayError):
    """It took longer than it may."""


class BadPageToken(Malformed):
    of_code = "bad_page_token"


class KernelCannot(Invalid):
    of_code = "not_offered_by_kernel"


class KeyReused(Invalid):
    of_code = "idempotency_key_reused"


class NotANotebook(Malformed):
    of_code = "not_a_notebook"


class SnapshotDamaged(Invalid):
    of_code = "snapshot_damaged"


class SnapshotNewer(Invalid):
    of_code = "snapshot_newer"


class NoSuchPart(Invalid):
    of_code = "no_such_part"


class KeyRevoked(Unauthenticated):
    of_code = "key_revoked"


class KeyExpired(Unauthenticated):
    of_code = "key_expired"


class WindowRequired(Unauthenticated):
    of_code = "window_required"


class WindowInvalid(Unauthenticated):
    of_code = "window_invalid"


class WindowExpired(Unauthenticated):
    of_code = "window_expired"


class WindowOfAnotherAgent(Denied):
    of_code = "window_of_another_agent"


class GuardrailRefused(Denied):
    of_code = "guardrail"


class HostRefused(Denied):
    of_code = "host_refused"


class OriginRefused(Denied):
    of_code = "origin_refused"


class SessionNotFound(NotFound):
    of_code = "session_not_found"


class ExecutionNotFound(NotFound):
    of_code = "execution_not_found"


class SnapshotNotFound(NotFound):
    of_code = "snapshot_not_found"


class AgentNotFound(NotFound):
    of_code = "agent_not_found"


class MemoryNotFound(NotFound):
    of_code = "memory_not_found"


class KeyNotFound(NotFound):
    of_code = "key_not_found"


class VariableNotFound(NotFound):
    of_code = "variable_not_found"


class SeriesNotFound(NotFound):
    of_code = "series_not_found"


class SessionExists(Conflict):
    of_code = "session_exists"


class SessionHeld(Conflict):
    of_code = "session_held"


class SessionBusy(Conflict):
    of_code = "session_busy"


class AgentExists(Conflict):
    of_code = "agent_exists"


class IllegalMove(Conflict):
    of_code = "illegal_state_move"


class SaveFailed(Conflict):
    of_code = "save_failed"


class FilesStay(Conflict):
    of_code = "files_stay"


class SnapshotInUse(Conflict):
    of_code = "snapshot_in_use"


class WindowBusy(Conflict):
    of_code = "window_busy"


class InProgress(Conflict):
    of_code = "idempotency_in_progress"


class SessionPurged(Gone):
    of_code = "session_purged"


class QuotaExceeded(Exhausted):
    of_code = "quota_exceeded"


class RateLimited(Exhausted):
    of_code = "rate_limited"


class TooManyGuesses(Exhausted):
    of_code = "too_many_guesses"


class StoreAway(Unavailable):
    of_code = "store_unavailable"


class NoRoom(Unavailable):
    of_code = "no_room"


class Stopping(Unavailable):
    of_code = "stopping"


class KernelAway(Unavailable):
    of_code = "kernel_unavailable"


class ObjectStoreAway(Unavailable):
    of_code = "object_store_unavailable"


_KINDS: dict[int, type[GatewayError]] = {
    400: Malformed, 401: Unauthenticated, 403: Denied, 404: NotFound, 405: NotAllowed, 409: Conflict, 410: Gone,
    413: TooLarge, 415: Unsupported, 416: NoSuchPart, 422: Invalid, 429: Exhausted, 503: Unavailable, 504: TimedOut,
}  # fmt: skip
CODES: dict[str, type[GatewayError]] = {
    kind.of_code: kind
    for parent in GatewayError.__subclasses__()
    for kind in parent.__subclasses__()
    if kind.of_code is not None
}


def refusal(status: int, body: bytes, retry_after: str | None) -> GatewayError:
    """The exception for an answer; also for one that a proxy has sent in place of the gateway."""
    told = _envelope(body)
    kind = CODES.get(told.get("code", ""))
    by_status = _KINDS.get(status, GatewayError)
    return (kind if kind is not None and issubclass(kind, by_status) else by_status)(
        told.get("error") or f"HTTP status {status}.",
        code=told.get("code"),
        status=status,
        details=told.get("details"),
        request_id=told.get("request_id"),
        retry_after_s=seconds(retry_after),
    )


def envelope_refusal(told: dict[str, Any]) -> GatewayError:
    """The exception for a refusal that comes within a stream, without a status of its own."""
    kind = CODES.get(told.get("code", ""), GatewayError)
    status = next((status for status, parent in _KINDS.items() if issubclass(kind, parent)), 500)
    return kind(
        told.get("error", ""), code=told.get("code"), status=status, details=told.get("details"),
        request_id=told.get("request_id"),
    )  # fmt: skip


def seconds(retry_after: str | None) -> float | None:
    """Of a `Retry-After` in seconds; a date is as good as none."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None


def _envelope(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(told, dict):
        return {}
    kinds = {"error": str, "code": str, "details": dict, "request_id": str}
    return {name: value for name, value in told.items() if isinstance(value, kinds.get(name, ()))}
