"""Notebooks: a session's history as one, and one that is run in a session cell by cell."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from gateway.models.base import Answer, Request, Utc
from gateway.models.executions import RunError, Status
from gateway.models.sessions import PositiveSeconds

NotebookFormat = Literal["ipynb", "html", "script", "markdown"]


class NotebookQuery(Request):
    format: NotebookFormat = "ipynb"


class SeriesStatus(StrEnum):
    """How cells that run one after another stand: `error` when one of them failed."""

    RUNNING = "running"
    OK = "ok"
    ERROR = "error"
    INTERRUPTED = "interrupted"


class SeriesQuery(Request):
    """How cells are run: `stream` their outputs, or in the `background`; `timeout` is for each cell, in seconds."""

    stream: bool = False
    background: bool = False
    timeout: PositiveSeconds | None = None


class RunNotebookQuery(SeriesQuery):
    stop_on_error: bool = True


class Notebook(BaseModel):
    """A notebook as it is in an .ipynb file."""

    model_config = ConfigDict(extra="allow")

    nbformat: int
    nbformat_minor: int = 0
    metadata: dict[str, Any] = {}
    cells: list[dict[str, Any]] = []


class CellRun(Answer):
    """A code cell of a notebook: `index` is its place among all cells; one that was not run has no `status`."""

    index: int
    cell_id: str | None
    execution_id: str | None = None
    execution_count: int | None = None
    status: Status | None = None
    error: RunError | None = None
    truncated: bool = False
    duration_ms: float | None = None


class NotebookRun(Answer):
    """A notebook that runs or has run. `notebook` holds the outputs so far; `reason` says why not all cells ran.

    Outputs that would make it too large are left out of it (`truncated`); they are in the history.
    """

    run_id: str
    session_id: str
    status: SeriesStatus
    success: bool
    reason: str | None
    truncated: bool
    started_at: Utc
    finished_at: Utc | None
    cells: list[CellRun]
    notebook: dict[str, Any]
