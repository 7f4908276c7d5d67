"""Replays over HTTP: a history run again, and what came out otherwise."""

from gateway.handlers.base import Operation
from gateway.handlers.series import SeriesHandler
from gateway.models.access import Need
from gateway.models.replays import Replay, ReplayRequest


class _ReplayHandler(SeriesHandler):
    async def past(self, session_id: str, series_id: str) -> Replay:
        return await self.services.replays.past(self.session_id(session_id), series_id)


class ReplaysHandler(_ReplayHandler):
    """/api/sessions/{session_id}/replay"""

    operations = {
        "POST": Operation("Run the history again in a new session and compare, run by run", Replay, body=ReplayRequest,
                          body_required=False, also={202: "Begun in the background", 409: "The id is taken"},
                          also_answers={202: Replay}, needs=Need.COPY),
    }  # fmt: skip

    async def post(self, session_id: str) -> None:
        session_id, request = self.session_id(session_id), self.body(ReplayRequest)
        series = await self.services.replays.begin(session_id, request, self.caller)
        await self.answer(series, stream=request.stream)


class ReplayHandler(_ReplayHandler):
    """/api/sessions/{session_id}/replay/{replay_id}"""

    operations = {
        "GET": Operation("A replay that is under way, or was lately", Replay, needs=Need.READ),
        "DELETE": Operation("Stop it; the new session stays", Replay, needs=Need.RUN),
    }

    async def get(self, session_id: str, replay_id: str) -> None:
        await self.tell(session_id, replay_id)

    async def delete(self, session_id: str, replay_id: str) -> None:
        await self.stop(session_id, replay_id)


class ReplayEventsHandler(_ReplayHandler):
    """/api/sessions/{session_id}/replay/{replay_id}/events"""

    operations = {"GET": Operation("Stream the events of a replay", "text/event-stream", needs=Need.READ)}

    async def get(self, session_id: str, replay_id: str) -> None:
        await self.resume(session_id, replay_id)
