"""Looking inside a session over HTTP."""

import json

from gateway.handlers.base import ApiHandler, Operation
from gateway.models.access import Need
from gateway.models.queries import (
    CompleteRequest,
    InspectRequest,
    IsCompleteRequest,
    KernelReply,
    SetVariable,
    VariableQuery,
    VariablesQuery,
)  # fmt: skip


class VariablesHandler(ApiHandler):
    """/api/sessions/{session_id}/variables"""

    operations = {"GET": Operation("The session's variables", KernelReply, query=VariablesQuery, needs=Need.READ)}

    async def get(self, session_id: str) -> None:
        query = self.query(VariablesQuery)
        found = await self.services.introspection.list_variables(self.session_id(session_id), query.offset, query.limit)
        self.send_json(json.dumps(found))


class VariableHandler(ApiHandler):
    """/api/sessions/{session_id}/variables/{name}"""

    operations = {
        "GET": Operation(
            "One variable as JSON; a table comes in pages", KernelReply, query=VariableQuery, needs=Need.READ
        ),
        "PUT": Operation("Set a variable", KernelReply, body=SetVariable, needs=Need.RUN),
        "DELETE": Operation("Delete a variable", KernelReply, needs=Need.RUN),
    }

    async def get(self, session_id: str, name: str) -> None:
        query = self.query(VariableQuery)
        found = await self.services.introspection.get_variable(
            self.session_id(session_id), name, query.offset, query.limit
        )
        self.send_json(json.dumps(found))

    async def put(self, session_id: str, name: str) -> None:
        value = self.body(SetVariable).value
        found = await self.services.introspection.set_variable(self.session_id(session_id), name, value)
        self.send_json(json.dumps(found))

    async def delete(self, session_id: str, name: str) -> None:
        found = await self.services.introspection.delete_variable(self.session_id(session_id), name)
        self.send_json(json.dumps(found))


class CompleteHandler(ApiHandler):
    """POST /api/sessions/{session_id}/complete"""

    operations = {"POST": Operation("Complete code at the cursor", KernelReply, body=CompleteRequest, needs=Need.RUN)}

    async def post(self, session_id: str) -> None:
        request = self.body(CompleteRequest)
        self.send_json(json.dumps(await self.services.introspection.complete(
            self.session_id(session_id), request.code, request.cursor_pos
        )))  # fmt: skip


class InspectHandler(ApiHandler):
    """POST /api/sessions/{session_id}/inspect"""

    operations = {
        "POST": Operation("Tell about the name at the cursor", KernelReply, body=InspectRequest, needs=Need.RUN)
    }

    async def post(self, session_id: str) -> None:
        request = self.body(InspectRequest)
        self.send_json(json.dumps(await self.services.introspection.inspect(
            self.session_id(session_id), request.code, request.cursor_pos, request.detail_level
        )))  # fmt: skip


class IsCompleteHandler(ApiHandler):
    """POST /api/sessions/{session_id}/is_complete"""

    operations = {
        "POST": Operation("Tell whether code can be run as it is", KernelReply, body=IsCompleteRequest, needs=Need.RUN)
    }

    async def post(self, session_id: str) -> None:
        code = self.body(IsCompleteRequest).code
        self.send_json(json.dumps(await self.services.introspection.is_complete(self.session_id(session_id), code)))
