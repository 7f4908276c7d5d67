"""Notebooks over HTTP: the history as one, and one that is run cell by cell."""

from urllib.parse import quote

from gateway.handlers.base import Operation
from gateway.handlers.series import SeriesHandler
from gateway.models.access import Need
from gateway.models.notebooks import Notebook, NotebookQuery, NotebookRun, RunNotebookQuery

# A page shows what a session wrote: it runs no script, and asks no other host for anything.
_PAGE_POLICY = "sandbox; default-src 'none'; img-src data:; media-src data:; font-src data:; style-src 'unsafe-inline'"


class _NotebookHandler(SeriesHandler):
    async def past(self, session_id: str, series_id: str) -> NotebookRun:
        return await self.services.notebooks.past(self.session_id(session_id), series_id)


class NotebookHandler(_NotebookHandler):
    """/api/sessions/{session_id}/notebook"""

    operations = {
        "GET": Operation("The history as a notebook, or as a page, a script or Markdown",
                         ("application/x-ipynb+json", "text/html", "text/markdown", "text/plain"),
                         query=NotebookQuery, needs=Need.READ),
        "POST": Operation("Run a notebook cell by cell; failing cells are a result, not an error", NotebookRun,
                          body=Notebook, query=RunNotebookQuery, also={202: "Begun in the background"},
                          also_answers={202: NotebookRun}, needs=Need.RUN_OR_MAKE),
    }  # fmt: skip

    async def get(self, session_id: str) -> None:
        session_id = self.session_id(session_id)
        rendered = await self.services.notebooks.render(session_id, self.query(NotebookQuery).format)
        self.set_header("Content-Type", rendered.media_type)
        self.set_header("Content-Security-Policy", _PAGE_POLICY)
        kind = "inline" if rendered.media_type.startswith("text/html") else "attachment"
        name = quote(f"{session_id}{rendered.ending}", safe="")
        self.set_header("Content-Disposition", f"{kind}; filename*=UTF-8''{name}")
        await self.finish(rendered.content)

    async def post(self, session_id: str) -> None:
        session_id, query = self.session_id(session_id), self.query(RunNotebookQuery)
        series = await self.services.notebooks.begin(session_id, self.body(Notebook), query, self.caller)
        await self.answer(series, stream=query.stream)


class NotebookRunHandler(_NotebookHandler):
    """/api/sessions/{session_id}/notebook/{run_id}"""

    operations = {
        "GET": Operation(
            "A notebook that runs, or has run lately, with its outputs so far", NotebookRun, needs=Need.READ
        ),
        "DELETE": Operation(
            "Stop it: the cell under way is interrupted, and no later one begins", NotebookRun, needs=Need.RUN
        ),
    }

    async def get(self, session_id: str, run_id: str) -> None:
        await self.tell(session_id, run_id)

    async def delete(self, session_id: str, run_id: str) -> None:
        await self.stop(session_id, run_id)


class NotebookEventsHandler(_NotebookHandler):
    """/api/sessions/{session_id}/notebook/{run_id}/events"""

    operations = {"GET": Operation("Stream the events of a notebook that runs", "text/event-stream", needs=Need.READ)}

    async def get(self, session_id: str, run_id: str) -> None:
        await self.resume(session_id, run_id)
