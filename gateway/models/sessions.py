"""A session: the document that is stored, what may be asked of it, and what is shown of it."""

import json
import re
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    StringConstraints,
    WithJsonSchema,
)  # fmt: skip

from gateway.errors import TooLarge
from gateway.models.access import AGENT, GrantLevel
from gateway.models.base import Answer, JsonMap, Request, Text, Utc
from gateway.models.guardrails import GuardrailNames
from gateway.models.labels import LabelChanges, Labels
from gateway.models.quotas import Quotas
from gateway.models.unsaved import Woken
from gateway.states import State
from kernels.engine import Walls

SessionId = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:\-]{0,127}\z"),
    WithJsonSchema({"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.:\-]{0,127}$"}),  # where `\z` is not known
]
Name = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
KernelName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,127}\z"),
    WithJsonSchema({"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,127}$"}),
]
PositiveSeconds = Annotated[float, Field(gt=0, le=31_536_000)]

_MOST_MAP_BYTES = 1_000_000
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_SIZE = re.compile(r"(\d{1,12})\s*(|[kKMGT]i?)B?")
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    "ki": 2**10, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def _env_names(env: dict[str, str]) -> dict[str, str]:
    for name in env:
        if not ENV_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name for an environment variable")
    return env


def _whole_size(size: int | str) -> int | str:
    size_bytes(size)
    return size


def size_bytes(size: int | str) -> int:
    """Bytes of `4Gi`, `512M` or a plain number. Raises `ValueError`."""
    if isinstance(size, str):
        match = _SIZE.fullmatch(size.strip())
        if not match:
            raise ValueError("must be a number of bytes, or one with a unit such as 512M or 4Gi")
        size = int(match[1]) * _UNITS[match[2]]
    if not 0 < size < 2**63:
        raise ValueError("must be more than nothing, and fit into 63 bits")
    return size


Env = Annotated[
    dict[str, Text],
    AfterValidator(_env_names),
    Field(max_length=256, json_schema_extra={"propertyNames": {"pattern": f"^{ENV_NAME.pattern}$"}}),
]
Size = Annotated[int | str, AfterValidator(_whole_size)]
SetupStatus = Literal["pending", "running", "done", "failed"]


class Resources(Request):
    """What a session's kernel may use; a field left out takes the gateway's setting."""

    cpu: Annotated[float, Field(gt=0, le=1024)] | None = None
    memory: Size | None = None
    pids: Annotated[int, Field(ge=16, le=1_000_000)] | None = None
    disk: Size | None = None
    network: Literal["none", "host"] | None = None


class Setup(Request):
    """What is installed and run in a session's own environment before its first cell."""

    pip: list[Annotated[Text, StringConstraints(min_length=1, max_length=512)]] = Field(default=[], max_length=256)
    npm: list[Annotated[Text, StringConstraints(min_length=1, max_length=512)]] = Field(default=[], max_length=256)
    commands: list[Annotated[Text, StringConstraints(min_length=1, max_length=65_536)]] = Field(
        default=[], max_length=256
    )


class SessionAgent(BaseModel):
    id: str
    name: str | None = None
    model: str | None = None


class CreateSession(Request):
    session_id: SessionId | None = Field(default=None, validation_alias=AliasChoices("session_id", "id", "new_id"))
    name: Name | None = None
    language: Annotated[Text, StringConstraints(min_length=1, max_length=64)] | None = None
    kernel: KernelName | None = None
    image_id: Annotated[Text, StringConstraints(min_length=1, max_length=256)] | None = None
    persistent: bool = True
    labels: Labels = {}
    data: JsonMap = {}
    metadata: JsonMap = {}
    starting_prompt: Text | None = None
    agent_ids: list[Annotated[Text, StringConstraints(min_length=1, max_length=256)]] = Field(default=[], max_length=64)
    waiting_timeout_seconds: PositiveSeconds | None = None
    default_timeout: PositiveSeconds | None = None
    env: Env = Field(default={}, validation_alias=AliasChoices("env", "envs"))
    setup: Setup | None = None
    resources: Resources = Resources()
    template: Annotated[Text, StringConstraints(min_length=1, max_length=256)] | None = None
    workspace: Annotated[Text, StringConstraints(min_length=1, max_length=256)] | None = None
    guardrails: GuardrailNames = []
    allow_internet_access: bool | None = Field(default=None, alias="allowInternetAccess")
    allow_public_access: bool | None = Field(default=None, alias="allowPublicAccess")


class UpdateSession(Request):
    """PUT replaces the maps that it names."""

    name: Name | None = None
    waiting_timeout_seconds: PositiveSeconds | None = None
    default_timeout: PositiveSeconds | None = None
    metadata: JsonMap | None = None
    data: JsonMap | None = None
    labels: Labels | None = None


class MergeSession(UpdateSession):
    """PATCH merges the maps that it names; a null in one of them removes its key."""

    labels: LabelChanges | None = None  # type: ignore[assignment]


class LabelMap(RootModel[Labels]):
    """The labels of a session, the map itself."""


class StoredCode(Request):
    """The code that a run without `code` uses."""

    code: Text


class Session(BaseModel):
    """The stored document. `uid` never changes and is never reused; `id` is free again after a delete.

    `saved_snapshot_id`: the snapshot whose variables the next kernel loads, of them only `state_only` if it is given.
    `files_from`: the snapshot whose files must be in the workspace before anything else: a restore is unfinished.
    `changes` counts runs that began, and variables that were set from outside; `saved_changes` of them are saved.
    `woken`: how the last kernel began, until a run has told it.
    `source`: who started it, `jupyter` if a front end asked for a kernel. `notebooks`: what front ends have open on its
    kernel: `id`, `path`, `name`, `type` of each. `kernel_ended`: one of them has ended it, and nothing has run since.
    """

    model_config = ConfigDict(extra="ignore")

    uid: str
    id: str
    name: str
    state: State = State.INIT
    state_reason: str | None = None
    language: str = "python"
    kernel: str = "python3"
    image_id: str | None = None
    image_found: bool | None = None
    persistent: bool = True
    labels: dict[str, str] = {}
    data: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    starting_prompt: str | None = None
    agents: list[SessionAgent] = []
    parent_id: str | None = None
    template: str | None = None
    workspace: str | None = None
    guardrails: list[str] = []
    allow_internet_access: bool | None = None
    allow_public_access: bool | None = None
    waiting_timeout_seconds: float = 300
    default_timeout: float | None = None
    resources: Resources = Resources()
    env: dict[str, str] = {}
    setup: Setup | None = None
    setup_status: SetupStatus | None = None
    code: str | None = None
    source: Literal["api", "jupyter"] = "api"
    notebooks: list[dict[str, str]] = []
    kernel_ended: bool = False
    created_by: str = "local"
    grants: dict[str, GrantLevel] = {}
    quotas: Quotas = Quotas()
    created_at: Utc
    updated_at: Utc
    last_run_at: Utc | None = None
    expires_at: Utc | None = None
    deleted_at: Utc | None = None
    run_count: int = 0
    file_count: int = 0
    total_size_bytes: int = 0
    saved_snapshot_id: str | None = None
    state_only: list[str] | None = None
    files_from: str | None = None
    unloaded_snapshot_id: str | None = None  # it could not be brought back: it is kept
    changes: int = 0
    saved_changes: int = 0
    woken: Woken | None = None
    saved_at: Utc | None = None
    save_problem: str | None = None
    holder: str | None = None
    version: int = 0

    @property
    def kernel_id(self) -> str:
        """What its kernel is called by Jupyter's clients: the same through restarts and sleep."""
        return str(UUID(self.uid))

    @property
    def readers(self) -> list[str]:
        """Who may see it: its owner, those it is granted to, its agents. Lists go by these."""
        return sorted({self.created_by, *self.grants, *(f"{AGENT}{agent.id}" for agent in self.agents)})

    @property
    def network(self) -> Literal["none", "host"] | None:
        """What its kernel may reach; None is whatever the gateway's setting says."""
        if self.resources.network is not None or self.allow_internet_access is None:
            return self.resources.network
        return "host" if self.allow_internet_access else "none"


def check_size(session: Session) -> None:
    """Raises `TooLarge` when its maps have grown past what every store can hold."""
    for name in ("data", "metadata"):
        if len(json.dumps(getattr(session, name))) > _MOST_MAP_BYTES:
            raise TooLarge(f"{name}: would hold more than {_MOST_MAP_BYTES:,} bytes of JSON.", field=name)


class JupyterAddress(BaseModel):
    kernel_id: str
    url: str


class MissingWall(Answer):
    wall: str
    reason: str


class Isolation(Answer):
    """What stands between a session's kernel and all that is not its own, and what does not."""

    walls: list[str]
    missing: list[MissingWall]

    @classmethod
    def of(cls, walls: Walls) -> Self:
        missing = [MissingWall(wall=wall, reason=reason) for wall, reason in walls.missing.items()]
        return cls(walls=list(walls.standing), missing=missing)


class SessionView(Answer):
    """The session document as callers see it. `isolation` is there while its kernel runs.

    `saved_at`: as of when its variables would come back; `save_problem`: why saving them failed after that.
    """

    id: str
    session_id: str
    name: str
    state: State
    state_reason: str | None
    language: str
    kernel: str
    image_id: str | None
    image_found: bool | None
    persistent: bool
    labels: dict[str, str]
    data: dict[str, Any]
    metadata: dict[str, Any]
    starting_prompt: str | None
    agents: list[SessionAgent]
    parent_id: str | None
    source: str
    template: str | None
    workspace: str | None
    guardrails: list[str]
    allow_internet_access: bool | None = Field(
        validation_alias=AliasChoices("allow_internet_access", "allowInternetAccess"),
        serialization_alias="allowInternetAccess",
    )
    allow_public_access: bool | None = Field(
        validation_alias=AliasChoices("allow_public_access", "allowPublicAccess"),
        serialization_alias="allowPublicAccess",
    )
    waiting_timeout_seconds: float
    default_timeout: float | None
    resources: dict[str, Any]
    created_by: str
    created_at: Utc
    updated_at: Utc
    last_run_at: Utc | None
    expires_at: Utc | None
    deleted_at: Utc | None
    run_count: int
    file_count: int
    total_size_bytes: int
    setup_status: SetupStatus | None
    saved_snapshot_id: str | None
    saved_at: Utc | None
    save_problem: str | None
    resource_url: str
    isolation: Isolation | None
    jupyter: JupyterAddress

    @classmethod
    def of(cls, session: Session, base_url: str, walls: Walls | None = None, **more: Any) -> Self:
        """The view of `session`, with addresses under `base_url` (scheme and host)."""
        fields = session.model_dump(exclude={"resources", "agents"})
        return cls(
            **fields,
            session_id=session.id,
            agents=session.agents,
            resources=session.resources.model_dump(exclude_none=True),
            isolation=Isolation.of(walls) if walls is not None else None,
            **more,
            resource_url=f"{base_url}/api/sessions/{session.id}",
            jupyter=JupyterAddress(
                kernel_id=session.kernel_id, url=f"{base_url}/jupyter/api/kernels/{session.kernel_id}"
            ),
        )


class SessionList(Answer):
    sessions: list[SessionView]
    count: int
    total_count: int
    next_token: str | None


class Deleted(Answer):
    success: bool = True
    id: str
    deleted_at: Utc


class DeletedMany(Answer):
    success: bool = True
    deleted_count: int
    deleted_sessions: list[str]


class Move(Answer):
    """One state move, as `GET …/states` tells it."""

    before: State | None
    after: State
    reason: str | None = None
    at: Utc


class MoveList(Answer):
    states: list[Move]
    count: int
    total_count: int
    next_token: str | None


class CodeView(Answer):
    code: str
