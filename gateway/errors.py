"""Everything that the gateway refuses, by kind.

The kind tells a caller what to do, `code` is part of the API for ever, and only
`handlers/base.py` knows which HTTP status a kind becomes.
"""

from typing import Any, ClassVar


class GatewayError(Exception):
    """A refusal: a sentence for people, a code and details for programs."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, sentence: str, *, retry_after_s: int | None = None, **details: Any) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.details = details
        self.retry_after_s = retry_after_s


class Malformed(GatewayError):
    """What was sent can't be read at all."""

    code = "malformed"


class Invalid(GatewayError):
    """It can be read, but a field does not hold what it must."""

    code = "invalid"


class Unauthenticated(GatewayError):
    """Nobody knows who is asking."""

    code = "unauthenticated"


class Denied(GatewayError):
    """It is known who asks, and they may not."""

    code = "denied"


class NotFound(GatewayError):
    """There is no such thing, or not for this caller."""

    code = "not_found"


class NotAllowed(GatewayError):
    """The path exists, the method does not."""

    code = "method_not_allowed"


class Conflict(GatewayError):
    """Right in itself, but not as things stand."""

    code = "conflict"


class Gone(GatewayError):
    """It was here, and was removed for good."""

    code = "gone"


class TooLarge(GatewayError):
    """More bytes than are taken."""

    code = "too_large"


class Unsupported(GatewayError):
    """Not a content type that is read here."""

    code = "unsupported_media_type"


class Exhausted(GatewayError):
    """Too much at once; later it may work."""

    code = "exhausted"


class TimedOut(GatewayError):
    """It took longer than it may."""

    code = "timed_out"


class Unavailable(GatewayError):
    """Something that is needed is away; later it may work."""

    code = "unavailable"


class SessionNotFound(NotFound):
    code = "session_not_found"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"No session {session_id!r}.", session_id=session_id)


class SessionExists(Conflict):
    code = "session_exists"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"A session {session_id!r} exists already.", session_id=session_id)


class SessionPurged(Gone):
    code = "session_purged"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"Session {session_id!r} was purged and can't come back.", session_id=session_id)


class SessionHeld(Conflict):
    code = "session_held"

    def __init__(self, session_id: str, holder: str) -> None:
        super().__init__(
            f"Session {session_id!r} is running on another gateway.",
            retry_after_s=5,
            session_id=session_id,
            holder=holder,
        )


class QuotaExceeded(Exhausted):
    """`details` name the quota and its limit; `owner` is whose it is."""

    code = "quota_exceeded"

    def __init__(self, sentence: str, quota: str, limit: float, retry_after_s: int = 10) -> None:
        super().__init__(sentence, retry_after_s=retry_after_s, quota=quota, limit=limit)

    @classmethod
    def of_sessions(cls, owner: str, most: int) -> "QuotaExceeded":
        return cls(f"{owner!r} may have {most} sessions at once.", "sessions", most)

    @classmethod
    def of_kernels(cls, owner: str, most: int) -> "QuotaExceeded":
        return cls(f"{owner!r} may have {most} kernels at once: one has to sleep first.", "kernels", most)

    @classmethod
    def of_cpu(cls, owner: str, most: float, *, seconds_left: int) -> "QuotaExceeded":
        sentence = f"{owner!r} has used the {most:g} seconds of processors that it may use in a day (UTC)."
        return cls(sentence, "cpu_seconds_per_day", most, seconds_left)

    @classmethod
    def of_disk(cls, owner: str, most: int) -> "QuotaExceeded":
        return cls(f"{owner!r} may keep {most:,} bytes of files: some have to go first.", "disk_bytes", most)


class ExecutionNotFound(NotFound):
    code = "execution_not_found"

    def __init__(self, execution_id: str) -> None:
        super().__init__(f"No execution {execution_id!r}.", execution_id=execution_id)


class SnapshotNotFound(NotFound):
    code = "snapshot_not_found"

    def __init__(self, snapshot_id: str) -> None:
        super().__init__(f"No snapshot {snapshot_id!r}.", snapshot_id=snapshot_id)


class AgentNotFound(NotFound):
    code = "agent_not_found"

    def __init__(self, agent_id: str) -> None:
        super().__init__(f"No agent {agent_id!r}.", agent_id=agent_id)


class AgentExists(Conflict):
    code = "agent_exists"

    def __init__(self, agent_id: str) -> None:
        super().__init__(f"An agent {agent_id!r} exists already.", agent_id=agent_id)


class MemoryNotFound(NotFound):
    code = "memory_not_found"

    def __init__(self, memory_id: str) -> None:
        super().__init__(f"No memory {memory_id!r}.", memory_id=memory_id)


class KeyNotFound(NotFound):
    code = "key_not_found"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"No key {key_id[:64]!r}.", key_id=key_id[:64])


class IllegalMove(Conflict):
    code = "illegal_state_move"

    def __init__(self, before: str, after: str) -> None:
        super().__init__(f"A session can't go from {before} to {after}.", before=before, after=after)


class StoreAway(Unavailable):
    code = "store_unavailable"

    def __init__(self, what: str) -> None:
        super().__init__(f"The store can't be reached: {what}.", retry_after_s=2)


class NoRoom(Unavailable):
    code = "no_room"

    def __init__(self, limit: int) -> None:
        super().__init__(f"All {limit} places for kernels are taken.", retry_after_s=5, limit=limit)


class Stopping(Unavailable):
    code = "stopping"

    def __init__(self) -> None:
        super().__init__("The gateway is stopping; it takes no new work.", retry_after_s=5)


class BadPageToken(Malformed):
    code = "bad_page_token"

    def __init__(self, why: str) -> None:
        super().__init__(f"page_token: {why}", field="page_token")
