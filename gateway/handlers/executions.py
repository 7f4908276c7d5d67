"""Running code over HTTP."""

from gateway.handlers.base import ApiHandler, Operation
from gateway.models.access import Need
from gateway.models.executions import (
    Accepted,
    ExecuteRequest,
    ExecutionList,
    ExecutionView,
    HistoryList,
    InputRequest,
    Interrupted,
    RunAnswer,
    RunRequest,
)  # fmt: skip
from gateway.models.queries import NoQuery, PageQuery, Success


class RunHandler(ApiHandler):
    """POST /api/sessions/{session_id}/run: run code, answer with all of its outputs."""

    operations = {
        "POST": Operation(
            "Run code; failing code is a result, not an error",
            RunAnswer,
            body=RunRequest,
            body_required=False,
            also={202: "Begun in the background"},
            also_answers={202: Accepted},
            needs=Need.RUN_OR_MAKE,
        ),
    }

    async def post(self, session_id: str) -> None:
        session_id, request = self.session_id(session_id), self.body(RunRequest)
        if request.background:
            started = await self.services.executions.start(session_id, request, self.caller, run_id=self.keyed_id)
            self.send(started, 202)
        else:
            run = await self.services.executions.run(session_id, request, self.caller, run_id=self.keyed_id)
            await self.send_run(run)


class ExecuteHandler(ApiHandler):
    """POST /api/execute: a fresh session, one run, gone afterwards."""

    operations = {
        "POST": Operation("Run code once, in a session of its own", RunAnswer, body=ExecuteRequest, needs=Need.MAKE)
    }

    async def post(self) -> None:
        await self.send_run(await self.services.executions.execute(self.body(ExecuteRequest), self.caller))


class ExecutionsHandler(ApiHandler):
    """/api/sessions/{session_id}/executions"""

    operations = {"GET": Operation("Runs, newest first", ExecutionList, query=PageQuery, needs=Need.READ)}

    async def get(self, session_id: str) -> None:
        page = self.query(PageQuery).page_request
        self.send(await self.services.executions.list(self.session_id(session_id), page))


class HistoryHandler(ApiHandler):
    """/api/sessions/{session_id}/history"""

    operations = {
        "GET": Operation("Every run: code, outputs, times, who", HistoryList, query=PageQuery, needs=Need.READ)
    }

    async def get(self, session_id: str) -> None:
        page = self.query(PageQuery).page_request
        self.send(await self.services.executions.history(self.session_id(session_id), page))


class ExecutionHandler(ApiHandler):
    """/api/sessions/{session_id}/executions/{execution_id}"""

    operations = {
        "GET": Operation("One run, also while it is queued or under way", ExecutionView, needs=Need.READ),
        "DELETE": Operation("Cancel a run", ExecutionView, needs=Need.RUN),
    }

    async def get(self, session_id: str, execution_id: str) -> None:
        await self.send_run(await self.services.executions.get(self.session_id(session_id), execution_id))

    async def delete(self, session_id: str, execution_id: str) -> None:
        self.send(await self.services.executions.cancel(self.session_id(session_id), execution_id))


class InterruptHandler(ApiHandler):
    """POST /api/sessions/{session_id}/interrupt"""

    operations = {"POST": Operation("Interrupt the run under way", Interrupted, needs=Need.RUN)}

    async def post(self, session_id: str) -> None:
        self.body(NoQuery)
        self.send(await self.services.executions.interrupt(self.session_id(session_id)))


class InputHandler(ApiHandler):
    """POST /api/sessions/{session_id}/input: answer a cell that waits in `input()`."""

    operations = {"POST": Operation("Answer a cell that waits for input", Success, body=InputRequest,
                                    also={409: "No cell waits"}, needs=Need.RUN)}  # fmt: skip

    async def post(self, session_id: str) -> None:
        await self.services.executions.give_input(self.session_id(session_id), self.body(InputRequest).text)
        self.send(Success())
