"""Query parameters, and the small requests and answers of looking around."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from gateway.models.base import Answer, Json, Request, Text, Utc
from gateway.models.labels import parse_json_filter, parse_selector
from gateway.models.pages import PageRequest, SessionFilter
from gateway.models.sessions import KernelName
from gateway.states import State

_LONGEST_FILTER = 5000  # percent-encoded it must go into a request's first line

Limit = Annotated[int, Field(ge=1, le=1000)]
Offset = Annotated[int, Field(ge=0, le=2**53)]


class NoQuery(Request):
    """A call without parameters."""


class PageQuery(Request):
    limit: Limit = 100
    page_token: Annotated[str, Field(max_length=2000)] | None = None
    page: Annotated[int, Field(ge=1, le=1_000_000)] | None = None

    @property
    def page_request(self) -> PageRequest:
        return PageRequest(self.limit, self.page_token, self.page)


class _LabelQuery(Request):
    label_selector: Annotated[Text, Field(max_length=_LONGEST_FILTER)] | None = None
    labels: Annotated[Text, Field(max_length=_LONGEST_FILTER)] | None = None

    def _requirements(self) -> Any:
        by_selector = parse_selector(self.label_selector) if self.label_selector else ()
        return by_selector + (parse_json_filter(self.labels) if self.labels else ())


class SessionQuery(PageQuery, _LabelQuery):
    state: State | None = None
    language: Text | None = None
    created_by: Text | None = None
    parent_id: Text | None = None
    name: Text | None = None
    include_deleted: bool = False

    @property
    def filter(self) -> SessionFilter:
        """Raises `Invalid` for a selector that can't be read."""
        plain = self.model_dump(include={"state", "language", "created_by", "parent_id", "name", "include_deleted"})
        return SessionFilter(labels=self._requirements(), **plain)


class DeleteManyQuery(_LabelQuery):
    @property
    def filter(self) -> SessionFilter:
        return SessionFilter(labels=self._requirements())


class KeysQuery(PageQuery):
    include_revoked: bool = False


class DeleteQuery(Request):
    purge: bool = False


class FilesQuery(Request):
    path: Text = ""
    recursive: bool = False


class MoveFile(Request):
    source: Text
    target: Text
    overwrite: bool = False


class FileView(Answer):
    path: str
    size: int
    modified_at: Utc
    type: Literal["file", "directory", "link", "other"]
    mode: str


class FileList(Answer):
    files: list[FileView]
    count: int


class FileDeleted(Answer):
    success: bool = True
    path: str


class ArchiveUnpacked(Answer):
    success: bool = True
    file_count: int
    total_size_bytes: int


class VariablesQuery(Request):
    offset: Offset = 0
    limit: Limit = 1000


class VariableQuery(Request):
    offset: Offset = 0
    limit: Limit = 100


class SetVariable(Request):
    value: Json


class CompleteRequest(Request):
    code: Text
    cursor_pos: Annotated[int, Field(ge=0)] | None = None

    @field_validator("cursor_pos")
    @classmethod
    def _in_the_code(cls, cursor_pos: int | None, info: ValidationInfo) -> int | None:
        if cursor_pos is not None and cursor_pos > len(info.data.get("code", "")):
            raise ValueError("is beyond the end of the code")
        return cursor_pos


class InspectRequest(CompleteRequest):
    detail_level: Literal[0, 1] = 0


class IsCompleteRequest(Request):
    code: Text


class KernelReply(BaseModel):
    """What the kernel answered, as the Jupyter messaging protocol has it."""

    model_config = {"extra": "allow"}


class LogsQuery(Request):
    source: Literal["kernel", "setup"] = "kernel"
    limit_bytes: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000


class LogView(Answer):
    source: str
    text: str
    setup_status: str | None


class SessionMetrics(Answer):
    cpu_seconds: float
    memory_bytes: int
    process_count: int
    disk_bytes: int
    state_bytes: int
    uptime_s: float
    run_count: int


class Health(Answer):
    status: Literal["ok"] = "ok"
    version: str


class Ready(Answer):
    status: Literal["ready", "not_ready"]
    store: str
    kernels: str
    live_kernels: int


class KernelsAnswer(Answer):
    default: KernelName
    kernels: dict[str, dict[str, str]]


class Success(Answer):
    success: bool = True
