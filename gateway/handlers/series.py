"""What follows one another, over HTTP: waited for, streamed, or in the background."""

from pydantic import BaseModel
from tornado.iostream import StreamClosedError

from gateway.handlers.events import EventHandler
from gateway.services.journal import Journal
from gateway.services.series import Series, SeriesNotFound

_DONE_BYTES = 1000


class SeriesHandler(EventHandler):
    """Answers with a whole series, or with its events."""

    answers_once = True

    async def answer(self, series: Series, *, stream: bool) -> None:
        """The document of a series that was just begun: now if nobody is to follow it, else once it is over."""
        if series.keep_on:
            return self.send(series.view(), 202)
        series.keep_on = "Idempotency-Key" in self.request.headers
        with self.services.series.following(series):
            if stream:
                return await self._stream(series)
            await series.finished.wait()
        return self.send(series.view())

    async def _stream(self, series: Series) -> None:
        """Its events; who asks again under the same key gets the document, also if the stream was cut off."""
        self.set_header("X-Series-Id", series.id)
        try:
            await self.follow_series(series, 0)
        except StreamClosedError:
            if not series.keep_on:
                raise
        if series.keep_on:
            await series.finished.wait()
            self.kept = self.keep(series.view().model_dump_json().encode(), 200, "application/json")

    async def follow_series(self, series: Series, after: int) -> None:
        self._begin()  # at once: nothing may happen until who follows it knows that they do
        await self.flush()
        await self.follow(series.journal, after, series.id)
        await self.finish()

    async def series(self, session_id: str, series_id: str) -> Series | None:
        """One that is under way here, or has ended lately."""
        uid = await self.services.sessions.uid_of(self.session_id(session_id))
        try:
            return self.services.series.find(uid, series_id)
        except SeriesNotFound:
            return None

    async def past(self, session_id: str, series_id: str) -> BaseModel:
        """One of before. Raises `SeriesNotFound`."""
        raise NotImplementedError

    async def tell(self, session_id: str, series_id: str) -> None:
        series = await self.series(session_id, series_id)
        self.send(series.view() if series is not None else await self.past(session_id, series_id))

    async def resume(self, session_id: str, series_id: str) -> None:
        """All events of a series, or those after the one that the client has seen last; of one of before the end."""
        series, last = await self.series(session_id, series_id), self.last_event()
        if series is None:
            events = Journal(_DONE_BYTES)
            events.add("done", await self.past(session_id, series_id), 0)
            events.close()
            self._begin()
            await self.follow(events, 0, series_id)
            return await self.finish()
        with self.services.series.following(series):
            await self.follow_series(series, last[1] if last is not None and last[0] == series.id else 0)
        return None

    async def stop(self, session_id: str, series_id: str) -> None:
        series = await self.series(session_id, series_id)
        if series is not None:
            await self.services.series.stop(series)
        await self.tell(session_id, series_id)
