"""Who calls, what each role and grant allows, and the API keys that tell one caller from another."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, RootModel, StringConstraints, WithJsonSchema, model_validator

from gateway.models.base import Answer, Moment, Request, Utc
from gateway.models.guardrails import GuardrailNames
from gateway.models.quotas import CpuSeconds, DiskBytes, MostKernels

AGENT = "agent:"  # before the id of an agent, where a name may stand: no key can be called so

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.@+\-]{0,127}"
_AGENT = r"[A-Za-z0-9][A-Za-z0-9_.:\-]{0,127}"  # an id, as sessions have them
_GRANTEE = rf"(?:{_NAME}|{AGENT}{_AGENT})"
_LONGEST_OVERLAP_S = 30 * 24 * 3600


class Role(StrEnum):
    """What a key is for. `user`: sessions of its own, and those granted to it. `agent`: those that its agent is
    assigned to or made. `viewer`: reads what its name may see, changes nothing. `admin`: everything."""

    ADMIN = "admin"
    USER = "user"
    AGENT = "agent"
    VIEWER = "viewer"


class Level(IntEnum):
    """What may be done with a session; each includes those before it.

    READ looks. RUN does what code in the session could do itself: run, files, variables, interrupt, sleep, wake.
    WRITE changes its document and its snapshots, and takes it back to one. OWN deletes it, and grants.
    """

    NONE = 0
    READ = 1
    RUN = 2
    WRITE = 3
    OWN = 4


class Need(StrEnum):
    """What an operation needs of its caller. Those with a level need it on the session that the request names."""

    OPEN = "open"  # nobody is asked for a key
    KEY = "key"  # any key; lists hold what its holder may see
    MONITOR = "monitor"  # an admin, or a viewer: what the gateway counts
    MAKE = "make"  # whoever may have sessions
    READ = "read"
    RUN = "run"
    RUN_OR_MAKE = "run_or_make"  # a session that nobody has is made
    COPY = "copy"  # run in the one, make another
    WRITE = "write"
    OWN = "own"
    UNDELETE = "undelete"  # own the one that was deleted
    AGENT_READ = "agent_read"  # see the agent
    AGENT = "agent"  # have made the agent, or be it
    AGENT_OR_MAKE = "agent_or_make"  # an agent that nobody has is made
    AGENT_UNDELETE = "agent_undelete"  # have made the agent that was deleted
    ADMIN = "admin"

    @property
    def level(self) -> Level:
        """The level on the session of the request; NONE when it names none that is there."""
        return _LEVELS.get(self, Level.NONE)


_LEVELS = {
    Need.READ: Level.READ,
    Need.RUN: Level.RUN,
    Need.RUN_OR_MAKE: Level.RUN,
    Need.COPY: Level.RUN,
    Need.WRITE: Level.WRITE,
    Need.OWN: Level.OWN,
}


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key has of its own; None is the gateway's setting."""

    requests_per_second: float | None = None
    burst: int | None = None
    sessions: int | None = None
    kernels: int | None = None
    cpu_seconds_per_day: float | None = None
    disk_bytes: int | None = None
    guardrails: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking: a key, and the agent on whose behalf, inside a window when `window_id` is given."""

    name: str
    role: Role
    key_id: str | None = None
    agent_id: str | None = None
    window_id: str | None = None
    limits: KeyLimits = KeyLimits()

    @property
    def acts_as(self) -> str:
        """What sessions that it makes are owned by, and what it sees sessions by."""
        return self.name if self.agent_id is None else f"{AGENT}{self.agent_id}"

    @property
    def is_admin(self) -> bool:
        """May do everything; inside the window of an agent nobody may."""
        return self.role is Role.ADMIN and self.agent_id is None

    @property
    def sees_only(self) -> str | None:
        """Lists hold only what this may see (`SessionFilter.seen_by`); None sees all."""
        return None if self.is_admin else self.acts_as


LOCAL = Caller("local", Role.ADMIN)  # of a gateway without keys
NOBODY = Caller("nobody", Role.VIEWER)  # whose key was not looked at, or refused: sees nothing

KeyName = Annotated[
    str,
    StringConstraints(pattern=rf"^{_NAME}\z"),
    WithJsonSchema({"type": "string", "pattern": rf"^{_NAME}$"}),
]
AgentId = Annotated[
    str,
    StringConstraints(pattern=rf"^{_AGENT}\z"),
    WithJsonSchema({"type": "string", "pattern": rf"^{_AGENT}$"}),
]
Grantee = Annotated[
    str,
    StringConstraints(pattern=rf"^{_GRANTEE}\z"),
    WithJsonSchema({"type": "string", "pattern": rf"^{_GRANTEE}$"}),
]
GrantLevel = Literal["read", "run", "write"]


class Grants(RootModel[Annotated[dict[Grantee, GrantLevel], Field(max_length=256)]]):
    """Who may do what in a session: the name of a key, or `agent:ID` → `read`, `run` or `write`.

    `read` looks at everything in it. `run` also does what code in it could do: runs, files, variables, sleep and wake.
    `write` also changes the document, takes and deletes snapshots, and restores them. Deleting and granting stay its
    owner's.
    """


class ApiKey(BaseModel):
    """The stored key. Of its secrets only SHA-256 digests are kept, in hex.

    `former_hash` is that of the secret before the last rotation, which is good until `former_until`.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    name: str
    role: Role
    agent_id: str | None = None
    secret_hash: str
    former_hash: str | None = None
    former_until: Utc | None = None
    created_at: Utc
    created_by: str
    expires_at: Utc | None = None
    rotated_at: Utc | None = None
    revoked_at: Utc | None = None
    last_used_at: Utc | None = None
    requests_per_second: float | None = None
    burst: int | None = None
    most_sessions: int | None = None
    most_kernels: int | None = None
    cpu_seconds_per_day: float | None = None
    disk_bytes: int | None = None
    guardrails: list[str] = []

    @property
    def caller(self) -> Caller:
        limits = KeyLimits(
            self.requests_per_second, self.burst, self.most_sessions, self.most_kernels, self.cpu_seconds_per_day,
            self.disk_bytes, tuple(self.guardrails),
        )  # fmt: skip
        return Caller(self.name, self.role, self.id, self.agent_id, limits=limits)

    def is_expired(self, at: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= at


class CreateKey(Request):
    """`name` is who it is for: keys of one name are one caller, with the same sessions. `agent_id` goes with the role
    `agent`, and is the name when it is left out.

    `requests_per_second`, after a `burst`: of this key. `most_sessions`: that its name may own at once, as far as they
    are made with this key; likewise `most_kernels` that run, `cpu_seconds_per_day` (UTC) that they use, and
    `disk_bytes` of files. `guardrails`: for all that it does. Left out, the gateway's settings hold.
    """

    name: KeyName
    role: Role = Role.USER
    agent_id: AgentId | None = None
    expires_at: Moment | None = None
    expires_in_seconds: Annotated[float, Field(gt=0, le=10 * 31_536_000)] | None = None
    requests_per_second: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    most_sessions: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    most_kernels: MostKernels = None
    cpu_seconds_per_day: CpuSeconds = None
    disk_bytes: DiskBytes = None
    guardrails: GuardrailNames = []

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.agent_id is not None and self.role is not Role.AGENT:
            raise ValueError("agent_id goes with the role agent only")
        if self.expires_at is not None and self.expires_in_seconds is not None:
            raise ValueError("expires_at and expires_in_seconds are two answers to one question")
        if self.guardrails and self.role is Role.ADMIN:
            raise ValueError("an admin may do everything, without guardrails")
        return self

    def expiry(self, at: datetime) -> datetime | None:
        if self.expires_in_seconds is not None:
            return at + timedelta(seconds=self.expires_in_seconds)
        return self.expires_at


class RotateKey(Request):
    """For how long the secret that is replaced stays good beside the new one."""

    overlap_seconds: Annotated[float, Field(ge=0, le=_LONGEST_OVERLAP_S)] = 3600


class KeyView(Answer):
    """A key without its secret, which is shown only when it is made or rotated."""

    id: str
    name: str
    role: Role
    agent_id: str | None
    created_at: Utc
    created_by: str
    expires_at: Utc | None
    rotated_at: Utc | None
    former_until: Utc | None
    revoked_at: Utc | None
    last_used_at: Utc | None
    requests_per_second: float | None
    burst: int | None
    most_sessions: int | None
    most_kernels: int | None
    cpu_seconds_per_day: float | None
    disk_bytes: int | None
    guardrails: list[str]

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        return cls(**key.model_dump())


class KeyMade(KeyView):
    """A key with its secret, `key`, shown this once."""

    key: str


class KeyList(Answer):
    keys: list[KeyView]
    count: int
    total_count: int
    next_token: str | None


class KeyRevoked(Answer):
    success: bool = True
    id: str
    revoked_at: Utc
