"""The audit log over HTTP, for admins."""

from gateway.handlers.base import ApiHandler, Operation
from gateway.models.access import Need
from gateway.models.audit import AuditList, AuditQuery

_LINES = "application/jsonl"
_ALSO_LINES = (_LINES, "application/x-ndjson", "application/json-lines")
_FLUSHED_CHARACTERS = 256 * 1024


class AuditHandler(ApiHandler):
    """/api/audit"""

    operations = {
        "GET": Operation(
            "Who did what, newest first; with `format=jsonl`, or asked for by Accept, all of it as JSON lines, oldest "
            "first",
            (AuditList, _LINES), query=AuditQuery, needs=Need.ADMIN,
        )
    }  # fmt: skip

    async def get(self) -> None:
        query = self.query(AuditQuery)
        await self.services.recorder.audit_written()
        if self._wants_lines(query):
            await self._stream(query)
        else:
            self.send(await self.services.audit.list(query.filter, query.page_request))

    def _wants_lines(self, query: AuditQuery) -> bool:
        if query.format is not None:
            return query.format == "jsonl"
        accepted = [one.split(";")[0].strip().lower() for one in self.request.headers.get("Accept", "").split(",")]
        return any(one in _ALSO_LINES for one in accepted)

    async def _stream(self, query: AuditQuery) -> None:
        """As fast as the client takes it."""
        self.set_header("Content-Type", _LINES)
        waiting = 0
        async for line in self.services.audit.export(query.filter):
            self.write(line)
            waiting += len(line)
            if waiting >= _FLUSHED_CHARACTERS:
                waiting = 0
                await self.flush()
        await self.finish()
