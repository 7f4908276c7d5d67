"""A session's history as a notebook, and notebooks that are run in a session cell by cell."""

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from gateway.config import MEBI, Settings
from gateway.errors import Invalid, SessionNotFound, TooLarge
from gateway.models.base import iso
from gateway.models.executions import Execution, ExecutionView, RunRequest, Status
from gateway.models.notebooks import (
    CellRun,
    Notebook,
    NotebookFormat,
    NotebookRun,
    RunNotebookQuery,
    SeriesStatus,
)  # fmt: skip
from gateway.models.sessions import CreateSession, Session
from gateway.services import ipynb
from gateway.services.history import ended_runs
from gateway.services.rendering import Rendered, Renderer
from gateway.services.series import Series, SeriesService
from gateway.services.sessions import SessionService
from gateway.stores.base import Store
from kernels.engine import Kernelspec

_MOST_BYTES = 32 * MEBI  # of outputs in one notebook
_LEFT_OUT = "<the outputs of this run are left out: the notebook would be too large; {where} has them>\n"
_SKIPPING_TAG = "skip-execution"
_FAILING_TAG = "raises-exception"
_JSON_MEDIA_TYPE = re.compile(r"application/(.*\+)?json")
_FILE_NAMES = {"python": (".py", "text/x-python"), "bash": (".sh", "text/x-sh")}


@dataclass(slots=True)
class _Under:
    """A notebook that is run: what came out so far."""

    session_id: str
    notebook: dict[str, Any]
    requests: dict[int, RunRequest]
    cells: list[CellRun]
    series: Series
    truncated: bool = False
    by_index: dict[int, CellRun] = field(default_factory=dict)

    def view(self) -> NotebookRun:
        series = self.series
        return NotebookRun(
            run_id=series.id, session_id=self.session_id, status=series.status,
            success=series.status is SeriesStatus.OK, reason=series.reason, truncated=self.truncated,
            started_at=series.started_at, finished_at=series.finished_at, cells=self.cells, notebook=self.notebook,
        )  # fmt: skip


class NotebookService:
    def __init__(self, settings: Settings, store: Store, sessions: SessionService, series: SeriesService) -> None:
        self._settings = settings
        self._store = store
        self._sessions = sessions
        self._series = series
        self._renderer = Renderer()

    # Out

    async def render(self, session_id: str, format_: NotebookFormat) -> Rendered:
        """The history as a notebook, or as what nbconvert makes of it: every run that began, oldest first."""
        uid = await self._sessions.uid_of(session_id)
        session = await self._sessions.get(session_id)
        spec = self._sessions.kernelspecs().get(session.kernel)
        cells, size_bytes, code_size = [], 0, 0
        async for run in ended_runs(self._store, uid):
            code_size += len(run.code)
            if code_size > _MOST_BYTES:
                raise TooLarge(f"The history holds more code than the {_MOST_BYTES:,} bytes of a notebook.")
            size_bytes += len(to_json(run.outputs))
            cells.append(_cell_of(run, with_outputs=size_bytes <= _MOST_BYTES))
        cells.reverse()
        notebook = {**ipynb.empty(), "cells": cells, "metadata": _metadata(session, spec)}
        return await self._renderer.render(notebook, format_, session.name)

    # In

    async def begin(self, session_id: str, notebook: Notebook, query: RunNotebookQuery, caller: str) -> Series:
        """Begin to run a notebook's code cells, one after another. Raises `NotANotebook`, `Invalid`.

        A session that does not exist is made, with the notebook's kernel if there is one. The tags `skip-execution`
        and `raises-exception` mean what they mean to nbclient.
        """
        content, flaw = await asyncio.to_thread(ipynb.taken, notebook.model_dump(exclude_unset=True))
        if flaw is not None:
            raise Invalid(flaw, field="notebook")
        requests = _requests(content, query)
        await self._hold(session_id, content, caller)
        series = self._series.new(await self._sessions.uid_of(session_id), interactive=query.stream or query.background)
        series.keep_on = query.background
        by_index = {index: CellRun(index=index, cell_id=content["cells"][index].get("id")) for index in requests}
        under = _Under(session_id, content, requests, list(by_index.values()), series, by_index=by_index)
        for index in requests:
            content["cells"][index] |= {"outputs": [], "execution_count": None}
        series.view = under.view
        asked = {"notebook": content, "indexes": list(requests), "stop_on_error": query.stop_on_error}
        await self._series.begin(series, "notebook", asked, lambda: self._run(under, query, caller))
        return series

    async def past(self, session_id: str, run_id: str) -> NotebookRun:
        """One that ended, or whose gateway did: as far as it came. Raises `SeriesNotFound`."""
        uid = await self._sessions.uid_of(session_id)
        series, kept = await self._series.past(uid, "notebook", run_id)
        content, indexes = kept.asked["notebook"], kept.asked["indexes"]
        by_index = {index: CellRun(index=index, cell_id=content["cells"][index].get("id")) for index in indexes}
        under = _Under(session_id, content, {}, list(by_index.values()), series, by_index=by_index)
        fine, all_ended = True, True
        for index in indexes:
            if (run := await self._series.past_run(uid, run_id, index)) is not None:
                self._take(under, index, run)
            cell = by_index[index]
            all_ended = all_ended and cell.status not in (None, Status.QUEUED, Status.RUNNING)
            fine = fine and self._went_well(under, index)
        if all_ended and kept.finished_at is None:  # it ended with its gateway, or the like
            series.status, series.reason = (SeriesStatus.OK if fine else SeriesStatus.ERROR), None
        return under.view()

    async def _hold(self, session_id: str, notebook: dict[str, Any], caller: str) -> None:
        try:
            await self._sessions.hold(session_id, caller, create=False)
        except SessionNotFound:
            if not self._settings.auto_create:
                raise
            kernel, language = self._kernel_for(notebook)
            request = CreateSession(session_id=session_id, kernel=kernel, language=language)
            await self._sessions.create(request, caller, start=False)

    def _kernel_for(self, notebook: dict[str, Any]) -> tuple[str | None, str | None]:
        """The kernelspec that a notebook names, if it is installed, else its language."""
        spec, told = (notebook["metadata"].get(name) or {} for name in ("kernelspec", "language_info"))
        if spec.get("name") in self._sessions.kernelspecs():
            return spec["name"], None
        language = spec.get("language") or told.get("name")
        return None, language if isinstance(language, str) else None

    async def _run(self, under: _Under, query: RunNotebookQuery, caller: str) -> bool:
        fine, series = True, under.series
        for index, request in under.requests.items():
            if not series.goes_on:
                break
            cell_id = under.by_index[index].cell_id
            answer = await self._series.run(series, under.session_id, request, caller, index=index, cell_id=cell_id)
            self._take(under, index, answer)
            if self._went_well(under, index):
                continue
            fine = False
            if query.stop_on_error:
                series.reason = series.reason or f"Cell {index} ended with {answer.status}; later cells were not run."
                break
        return fine

    def _went_well(self, under: _Under, index: int) -> bool:
        status = under.by_index[index].status
        allowed = _FAILING_TAG in _tags(under.notebook["cells"][index]) and status is Status.ERROR
        return status is Status.OK or allowed

    def _take(self, under: _Under, index: int, answer: ExecutionView) -> None:
        """Put what a cell gave into the notebook, unless that gets too large."""
        size_bytes = len(to_json(answer.outputs))
        fits = under.series.size_bytes + size_bytes <= _MOST_BYTES
        under.series.size_bytes += size_bytes if fits else 0
        under.truncated |= not fits
        where = f"/api/sessions/{under.session_id}/executions/{answer.execution_id}"
        outputs = [_valid(output) for output in answer.outputs] if fits else [_note(where)]
        under.notebook["cells"][index] |= {"outputs": outputs, "execution_count": answer.execution_count}
        cell = under.by_index[index]
        cell.execution_id, cell.execution_count = answer.execution_id, answer.execution_count
        cell.status, cell.error, cell.duration_ms = answer.status, answer.error, answer.duration_ms
        cell.truncated = answer.truncated or not fits
        under.series.journal.add("cell_done", cell.model_copy())


def _requests(notebook: dict[str, Any], query: RunNotebookQuery) -> dict[int, RunRequest]:
    """What is to be run, by its place among all cells. Raises `Invalid`."""
    requests = {}
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code" or not cell["source"].strip() or _SKIPPING_TAG in _tags(cell):
            continue
        try:
            requests[index] = RunRequest(code=cell["source"], timeout=query.timeout)
        except ValidationError as error:
            why = str(error.errors()[0]["ctx"]["error"])
            raise Invalid(f"cells.{index}.source: {why}", field=f"cells.{index}.source") from None
    return requests


def _tags(cell: dict[str, Any]) -> list[str]:
    tags: list[str] = cell["metadata"].get("tags", [])
    return tags


def _cell_of(run: Execution, *, with_outputs: bool) -> dict[str, Any]:
    outputs = [_valid(output) for output in run.outputs] if with_outputs else []
    if not with_outputs and run.outputs:
        outputs = [_note(f"/api/sessions/{run.session_id}/executions/{run.id}")]
    if run.error is not None and not any(output["output_type"] == "error" for output in outputs):
        outputs.append({"output_type": "error", **run.error.model_dump()})
    begun_ended = {"iopub.execute_input": run.started_at, "shell.execute_reply": run.finished_at}
    times = {name: iso(moment) for name, moment in begun_ended.items() if moment is not None}  # as JupyterLab has them
    return {
        "cell_type": "code", "id": run.id[:64], "metadata": {"execution": times}, "source": run.code,
        "execution_count": run.execution_count, "outputs": outputs,
    }  # fmt: skip


def _note(where: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stderr", "text": _LEFT_OUT.format(where=where)}


def _valid(output: dict[str, Any]) -> dict[str, Any]:
    """An output as nbformat allows it: what is neither text nor under a JSON media type becomes text."""
    if "data" not in output:
        return output
    data = {
        name: value if isinstance(value, str) or _JSON_MEDIA_TYPE.fullmatch(name) else json.dumps(value)
        for name, value in output["data"].items()
    }
    kept = ("output_type", "metadata", "execution_count")
    return {"data": data, **{name: output[name] for name in kept if name in output}}


def _metadata(session: Session, spec: Kernelspec | None) -> dict[str, Any]:
    ending, media_type = _FILE_NAMES.get(session.language, (".txt", "text/plain"))
    display_name = spec.display_name if spec is not None else session.kernel
    return {
        "kernelspec": {"name": session.kernel, "display_name": display_name, "language": session.language},
        "language_info": {"name": session.language, "file_extension": ending, "mimetype": media_type},
    }
