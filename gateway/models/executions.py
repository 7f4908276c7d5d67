"""Executions: what may be run, the record that is kept, and the answer that is given."""

import base64
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, Field, StringConstraints, ValidationInfo, field_validator

from gateway.models.base import Answer, JsonMap, Request, Text, Utc
from gateway.models.guardrails import GuardrailAct
from gateway.models.sessions import Env, KernelName, PositiveSeconds
from gateway.models.unsaved import Unsaved, UnsavedVariable, Woken
from gateway.states import State


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    OK = "ok"
    ERROR = "error"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    DIED = "died"


EXIT_CODES = {Status.OK: 0, Status.ERROR: 1, Status.TIMEOUT: 124, Status.INTERRUPTED: 130, Status.DIED: 137}


class _Timed(Request):
    timeout: PositiveSeconds | None = None
    timeout_ms: Annotated[float, Field(gt=0, le=31_536_000_000)] | None = None

    @property
    def timeout_s(self) -> float | None:
        return self.timeout_ms / 1000 if self.timeout_ms is not None else self.timeout

    @field_validator("timeout_ms")
    @classmethod
    def _one_timeout(cls, timeout_ms: float | None, info: ValidationInfo) -> float | None:
        if timeout_ms is not None and info.data.get("timeout") is not None:
            raise ValueError("give timeout or timeout_ms, not both")
        return timeout_ms


class RunRequest(_Timed):
    """A run; without `code` the session's stored code is used."""

    code: Text | None = None
    update_data: JsonMap | None = None
    env: Env = Field(default={}, validation_alias=AliasChoices("env", "envs"))
    stdin: Text | None = None
    store_history: bool = True
    background: bool = False


class FileContent(Request):
    encoding: Literal["utf-8", "base64"] = "utf-8"
    content: Text

    @field_validator("content")
    @classmethod
    def _decodable(cls, content: str, info: ValidationInfo) -> str:
        if info.data.get("encoding") == "base64":
            try:
                base64.b64decode(content, validate=True)
            except ValueError as error:
                raise ValueError(f"is not base64: {error}") from None
        return content


class ExecuteRequest(_Timed):
    """One run in a fresh session that is gone afterwards."""

    code: Text
    language: Annotated[Text, StringConstraints(min_length=1, max_length=64)] | None = None
    kernel: KernelName | None = None
    stdin: Text | None = None
    files: dict[Text, Text | FileContent] = Field(default={}, max_length=1000)
    env: Env = Field(default={}, validation_alias=AliasChoices("env", "envs"))


class RestartRequest(Request):
    state: Literal["saved", "fresh"] = "saved"


class InputRequest(Request):
    """A line for a cell that waits in `input()`."""

    text: Text


class RunError(BaseModel):
    ename: str
    evalue: str
    traceback: list[str] = []


class Execution(BaseModel):
    """The stored record of one run. `stdout`, `stderr` and `result` are derived from `outputs`.

    `asked_by`: the `session` of the front end that sent it.
    """

    id: str
    session_uid: str
    session_id: str
    source: str = "api"
    asked_by: str | None = None
    created_by: str = "local"
    code: str
    status: Status = Status.QUEUED
    execution_count: int | None = None
    outputs: list[dict[str, Any]] = []
    error: RunError | None = None
    truncated: bool = False
    state_kept: bool = True
    fresh_start: bool = False
    timeout_s: float = 300
    resumed: bool = False
    not_carried: Unsaved = []
    guardrails: list[GuardrailAct] = []
    queued_at: Utc
    started_at: Utc | None = None
    finished_at: Utc | None = None
    duration_ms: float | None = None

    def tell(self, woken: Woken | None) -> None:
        """Be the run that tells how its kernel began."""
        if woken is not None:
            self.fresh_start, self.resumed, self.not_carried = woken.fresh_start, woken.resumed, woken.not_carried


class ExecutionView(Answer):
    """A run as callers see it; everything is there from the moment it is queued.

    `fresh_start`: the kernel was started for this run, and variables of earlier runs are not there.
    `resumed`: the session was woken for this run, with its saved variables; `not_carried` names those that are missing.
    `guardrails`: what they replaced in its outputs, or left out.
    """

    execution_id: str
    session_id: str
    source: str
    created_by: str
    code: str
    execution_count: int | None
    status: Status
    success: bool
    exit_code: int | None
    stdout: str
    stderr: str
    result: str | None
    outputs: list[dict[str, Any]]
    error: RunError | None
    truncated: bool
    state_kept: bool
    fresh_start: bool
    resumed: bool
    not_carried: list[UnsavedVariable]
    guardrails: list[GuardrailAct]
    queued_at: Utc
    started_at: Utc | None
    finished_at: Utc | None
    duration: str | None
    duration_ms: float | None

    @classmethod
    def of(cls, execution: Execution) -> Self:
        return cls.model_construct(**view_fields(execution))


class RunAnswer(ExecutionView):
    """A finished run, with the session's data and state as it left them."""

    data: dict[str, Any]
    state: State

    @classmethod
    def after(cls, execution: Execution, data: dict[str, Any], state: State) -> Self:
        return cls.model_construct(**view_fields(execution), data=data, state=state)


class ExecutionList(Answer):
    executions: list[ExecutionView]
    count: int
    total_count: int
    next_token: str | None


class HistoryList(Answer):
    history: list[ExecutionView]
    count: int
    total_count: int
    next_token: str | None


class Accepted(Answer):
    execution_id: str
    session_id: str
    status: Status


class Interrupted(Answer):
    """`interrupted` tells whether a run was there to interrupt, `ended` whether it has stopped by now."""

    success: bool = True
    interrupted: bool
    ended: bool
    execution_id: str | None
    state: State


def view_fields(execution: Execution) -> dict[str, Any]:
    duration_ms = execution.duration_ms
    return {
        "execution_id": execution.id,
        "session_id": execution.session_id,
        "source": execution.source,
        "created_by": execution.created_by,
        "code": execution.code,
        "execution_count": execution.execution_count,
        "status": execution.status,
        "success": execution.status == Status.OK,
        "exit_code": EXIT_CODES.get(execution.status),
        "stdout": stream_text(execution.outputs, "stdout"),
        "stderr": stream_text(execution.outputs, "stderr"),
        "result": result_text(execution.outputs),
        "outputs": execution.outputs,
        "error": execution.error,
        "truncated": execution.truncated,
        "state_kept": execution.state_kept,
        "fresh_start": execution.fresh_start,
        "resumed": execution.resumed,
        "not_carried": execution.not_carried,
        "guardrails": execution.guardrails,
        "queued_at": execution.queued_at,
        "started_at": execution.started_at,
        "finished_at": execution.finished_at,
        "duration": None if duration_ms is None else f"{duration_ms / 1000:.3f}s",
        "duration_ms": duration_ms,
    }


def stream_text(outputs: list[dict[str, Any]], name: str) -> str:
    """All that was written to one stream, in order."""
    return "".join(o["text"] for o in outputs if o["output_type"] == "stream" and o["name"] == name)


def result_text(outputs: list[dict[str, Any]]) -> str | None:
    """The plain text of the cell's last value, None when it had none."""
    for output in reversed(outputs):
        if output["output_type"] == "execute_result":
            text = output["data"].get("text/plain")
            return text if isinstance(text, str) else None
    return None
