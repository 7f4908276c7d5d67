"""Sessions over HTTP."""

from dataclasses import replace

from gateway.handlers.base import ApiHandler, Operation
from gateway.models.access import Grants, Need
from gateway.models.executions import RestartRequest
from gateway.models.pages import Page
from gateway.models.queries import DeleteManyQuery, DeleteQuery, NoQuery, PageQuery, SessionQuery
from gateway.models.sessions import (
    CodeView,
    CreateSession,
    Deleted,
    DeletedMany,
    LabelMap,
    MergeSession,
    MoveList,
    Session,
    SessionList,
    SessionView,
    StoredCode,
    UpdateSession,
)  # fmt: skip


def _list(handler: ApiHandler, found: Page[Session]) -> SessionList:
    views = [handler.view(session) for session in found.items]
    return SessionList(sessions=views, count=len(views), total_count=found.total_count, next_token=found.next_token)


class SessionsHandler(ApiHandler):
    """/api/sessions"""

    operations = {
        "POST": Operation(
            "Create a session",
            SessionView,
            201,
            CreateSession,
            body_required=False,
            also={409: "The id is taken"},
            needs=Need.MAKE,
        ),
        "GET": Operation("List live sessions, newest first", SessionList, query=SessionQuery, needs=Need.KEY),
        "DELETE": Operation(
            "Delete all of the caller's own sessions that match", DeletedMany, query=DeleteManyQuery, needs=Need.MAKE
        ),
    }

    async def post(self) -> None:
        session = await self.services.sessions.create(self.body(CreateSession), self.caller)
        self.send(self.view(session), 201)

    async def get(self) -> None:
        query = self.query(SessionQuery)
        seen = replace(query.filter, seen_by=self.who.sees_only)
        found = await self.services.sessions.list(seen, query.page_request)
        self.send(_list(self, found))

    async def delete(self) -> None:
        own = replace(self.query(DeleteManyQuery).filter, created_by=self.who.sees_only)
        self.send(await self.services.sessions.delete_many(own))


class SessionHandler(ApiHandler):
    """/api/sessions/{session_id}"""

    operations = {
        "GET": Operation("The session document", SessionView, needs=Need.READ),
        "PUT": Operation(
            "Change a session; maps that are named are replaced", SessionView, body=UpdateSession, needs=Need.WRITE
        ),
        "PATCH": Operation(
            "Change a session; maps that are named are merged", SessionView, body=MergeSession, needs=Need.WRITE
        ),
        "DELETE": Operation(
            "Stop and delete a session; `purge` removes it for good", Deleted, query=DeleteQuery, needs=Need.OWN
        ),
    }

    async def get(self, session_id: str) -> None:
        self.send(self.view(await self.services.sessions.get(self.session_id(session_id))))

    async def put(self, session_id: str) -> None:
        await self._update(session_id, self.body(UpdateSession), replace_maps=True)

    async def patch(self, session_id: str) -> None:
        await self._update(session_id, self.body(MergeSession), replace_maps=False)

    async def _update(self, session_id: str, request: UpdateSession, *, replace_maps: bool) -> None:
        session = await self.services.sessions.update(self.session_id(session_id), request, replace_maps=replace_maps)
        self.send(self.view(session))

    async def delete(self, session_id: str) -> None:
        purge = self.query(DeleteQuery).purge
        self.send(await self.services.sessions.delete(self.session_id(session_id), purge=purge))


class UndeleteHandler(ApiHandler):
    """/api/sessions/{session_id}/undelete"""

    operations = {
        "POST": Operation(
            "Bring a deleted session back", SessionView, also={409: "Taken", 410: "Purged"}, needs=Need.UNDELETE
        )
    }

    async def post(self, session_id: str) -> None:
        self.body(NoQuery)
        own = self.who.sees_only
        self.send(self.view(await self.services.sessions.undelete(self.session_id(session_id), own)))


class ChildrenHandler(ApiHandler):
    """/api/sessions/{session_id}/children"""

    operations = {"GET": Operation("Sessions that were duplicated or remixed from this one", SessionList,
                                   query=PageQuery, needs=Need.READ)}  # fmt: skip

    async def get(self, session_id: str) -> None:
        page = self.query(PageQuery).page_request
        found = await self.services.sessions.list_children(self.session_id(session_id), page, self.who.sees_only)
        self.send(_list(self, found))


class GrantsHandler(ApiHandler):
    """/api/sessions/{session_id}/grants"""

    operations = {
        "GET": Operation("Who else may do what in a session", Grants, needs=Need.OWN),
        "PUT": Operation("Replace the map of grants", Grants, body=Grants, needs=Need.OWN),
    }

    async def get(self, session_id: str) -> None:
        self.send(Grants((await self.services.sessions.find(self.session_id(session_id))).grants))

    async def put(self, session_id: str) -> None:
        grants = self.body(Grants).root
        self.send(Grants(await self.services.sessions.set_grants(self.session_id(session_id), grants)))


class LabelsHandler(ApiHandler):
    """/api/sessions/{session_id}/labels"""

    operations = {
        "GET": Operation("The label map", LabelMap, needs=Need.READ),
        "PUT": Operation("Replace the label map", LabelMap, body=LabelMap, needs=Need.WRITE),
    }

    async def get(self, session_id: str) -> None:
        self.send(LabelMap((await self.services.sessions.get(self.session_id(session_id))).labels))

    async def put(self, session_id: str) -> None:
        labels = self.body(LabelMap).root
        self.send(LabelMap(await self.services.sessions.set_labels(self.session_id(session_id), labels)))


class StatesHandler(ApiHandler):
    """/api/sessions/{session_id}/states"""

    operations = {"GET": Operation("Every state move, newest first", MoveList, query=PageQuery, needs=Need.READ)}

    async def get(self, session_id: str) -> None:
        page = self.query(PageQuery).page_request
        found = await self.services.sessions.list_moves(self.session_id(session_id), page)
        self.send(MoveList(
            states=found.items, count=len(found.items), total_count=found.total_count, next_token=found.next_token
        ))  # fmt: skip


class CodeHandler(ApiHandler):
    """/api/sessions/{session_id}/code: what a run without `code` uses."""

    operations = {
        "GET": Operation("The stored code", CodeView, also={404: "None is stored"}, needs=Need.READ),
        "PUT": Operation("Store code", CodeView, body=StoredCode, needs=Need.WRITE),
    }

    async def get(self, session_id: str) -> None:
        self.send(CodeView(code=await self.services.sessions.get_code(self.session_id(session_id))))

    async def put(self, session_id: str) -> None:
        code = self.body(StoredCode).code
        await self.services.sessions.set_code(self.session_id(session_id), code)
        self.send(CodeView(code=code))


class RestartHandler(ApiHandler):
    """/api/sessions/{session_id}/restart"""

    operations = {
        "POST": Operation("Restart the kernel, with its saved variables or without any; files are kept", SessionView,
                          body=RestartRequest, body_required=False, needs=Need.RUN)
    }  # fmt: skip

    async def post(self, session_id: str) -> None:
        fresh = self.body(RestartRequest).state == "fresh"
        self.send(self.view(await self.services.sessions.restart(self.session_id(session_id), fresh=fresh)))


class WakeHandler(ApiHandler):
    """/api/sessions/{session_id}/wake"""

    operations = {"POST": Operation("Have the kernel running, with the saved variables", SessionView, needs=Need.RUN)}

    async def post(self, session_id: str) -> None:
        self.body(NoQuery)
        self.send(self.view(await self.services.sessions.wake(self.session_id(session_id))))


class HibernateHandler(ApiHandler):
    """/api/sessions/{session_id}/hibernate"""

    operations = {
        "POST": Operation(
            "Save the variables of an idle session and end its kernel",
            SessionView,
            also={409: "It runs code"},
            needs=Need.RUN,
        )
    }

    async def post(self, session_id: str) -> None:
        self.body(NoQuery)
        self.send(self.view(await self.services.sessions.hibernate(self.session_id(session_id))))
