"""Jupyter's own shapes: kernelspecs, kernels, sessions. What a client sends beside what is read here is left aside."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, StringConstraints

from gateway.models.base import Answer, Text, Utc

ExecutionState = Literal["starting", "idle", "busy", "restarting", "dead"]
Path = Annotated[Text, StringConstraints(max_length=4096)]
Short = Annotated[Text, StringConstraints(max_length=256)]


class Lenient(BaseModel):
    """What Jupyter's clients send, each a little more than the others."""

    model_config = ConfigDict(extra="ignore")


class ApiVersion(Answer):
    """`version` is that of Jupyter Server whose API this is."""

    version: str


class ServerStatus(Answer):
    started: Utc
    last_activity: Utc
    connections: int
    kernels: int


class Identity(BaseModel):
    username: str
    name: str
    display_name: str
    initials: str
    avatar_url: str | None = None
    color: str | None = None


class Me(Answer):
    identity: Identity
    permissions: dict[str, list[str]] = {}


class KernelspecFile(BaseModel):
    """`kernel.json`."""

    argv: list[str]
    env: dict[str, str]
    display_name: str
    language: str
    interrupt_mode: str
    metadata: dict[str, Any]


class KernelspecModel(Answer):
    name: str
    spec: KernelspecFile
    resources: dict[str, str]


class KernelspecsModel(Answer):
    default: str
    kernelspecs: dict[str, KernelspecModel]


class StartKernel(Lenient):
    """`path` is where the notebook is; `env` goes to the kernel."""

    name: Short | None = None
    path: Path | None = None
    env: dict[str, Any] = Field(default={}, max_length=256)


class KernelModel(Answer):
    """`session_id` is what the gateway's own API calls it by."""

    id: str
    name: str
    last_activity: Utc
    execution_state: ExecutionState
    connections: int
    session_id: str


class KernelChoice(Lenient):
    """A kernel that is there, by `id`, or a new one by `name`."""

    id: Short | None = None
    name: Short | None = None


class StartSession(Lenient):
    path: Path = ""
    name: Path | None = None
    type: Short = "notebook"
    kernel: KernelChoice = KernelChoice()
    notebook: dict[str, Any] | None = None  # an older way to give `path`


class ChangeSession(Lenient):
    path: Path | None = None
    name: Path | None = None
    type: Short | None = None
    kernel: KernelChoice | None = None


class SessionModel(Answer):
    """A notebook (or console) and the kernel that it is open on; `notebook` repeats its path for older clients."""

    id: str
    path: str
    name: str
    type: str
    kernel: KernelModel
    notebook: dict[str, str]


class KernelList(RootModel[list[KernelModel]]):
    """Kernels, newest session first."""


class SessionModelList(RootModel[list[SessionModel]]):
    """What is open."""


class ChannelsQuery(BaseModel):
    """`session_id` is what a client goes by when it comes back; `token` stands for an `Authorization` header."""

    session_id: str | None = None
    token: str | None = None
