"""What follows one another, over HTTP: waited for, streamed, or in the background."""

from tornado.iostream import StreamClosedError

from gateway.handlers.events import EventHandler
from gateway.services.series import Series


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

    async def series(self, session_id: str, series_id: str) -> Series:
        uid = await self.services.sessions.uid_of(self.session_id(session_id))
        return self.services.series.find(uid, series_id)

    async def resume(self, session_id: str, series_id: str) -> None:
        """All events of a series, or those after the one that the client has seen last."""
        series, last = await self.series(session_id, series_id), self.last_event()
        with self.services.series.following(series):
            await self.follow_series(series, last[1] if last is not None and last[0] == series.id else 0)

    async def stop(self, session_id: str, series_id: str) -> None:
        series = await self.series(session_id, series_id)
        await self.services.series.stop(series)
        self.send(series.view())
