"""Jupyter's contents API: sessions as folders, their workspaces below."""

from urllib.parse import quote

from pydantic import RootModel

from gateway.errors import GatewayError, SessionNotFound
from gateway.handlers.base import Operation
from gateway.handlers.jupyter import JupyterHandler
from gateway.models.access import Level, Need
from gateway.models.contents import (
    Checkpoint,
    Contents,
    ContentsQuery,
    NewContents,
    RenameContents,
    SaveContents,
)  # fmt: skip
from gateway.models.sessions import Session
from gateway.services.places import Place

_ROOT = "/jupyter/api/contents"


class CheckpointList(RootModel[list[Checkpoint]]):
    """The checkpoints of a file."""


class _ContentsHandler(JupyterHandler):
    @property
    def audited_session_id(self) -> str | None:
        return self.named_in_path.get("path", "").strip("/").partition("/")[0] or None

    async def asked_session(self) -> Session:
        return await self.services.sessions.find(self._session_id)

    def no_such_session(self) -> GatewayError:
        return SessionNotFound(self._session_id)

    @property
    def _session_id(self) -> str:
        return Place.of(self.path_kwargs["path"]).session_id

    async def check_other(self, path: str, level: Level) -> None:
        """Raise what an unknown session raises, or `Denied`, if a path in the body leads where the caller may not."""
        session_id = Place.of(path).session_id
        if session_id and not self.who.is_admin:
            session = await self.services.sessions.find(session_id)
            self.services.access.require(self.who, level, session, SessionNotFound(session_id))

    def send_contents(self, made: Contents, status: int = 200) -> None:
        self.set_header("Location", f"{_ROOT}/{quote(made.path)}")
        self.send(made, status)


class ContentsHandler(_ContentsHandler):
    """/jupyter/api/contents/{path}"""

    operations = {
        "GET": Operation(
            "A file, a notebook or a folder, as Jupyter's contents API has it",
            Contents,
            query=ContentsQuery,
            needs=Need.READ,
        ),
        "PUT": Operation(
            "Save; a file may come in chunks, and the old one stays until the last",
            Contents,
            body=SaveContents,
            also={201: "It is new"},
            also_answers={201: Contents},
            needs=Need.RUN_OR_MAKE,
        ),
        "POST": Operation(
            "Something new without a name, or a copy", Contents, 201, NewContents, body_required=False, needs=Need.RUN
        ),
        "PATCH": Operation("Rename or move", Contents, body=RenameContents, needs=Need.RUN),
        "DELETE": Operation("Delete a file, or a folder with all in it", status=204, needs=Need.RUN),
    }

    async def get(self, path: str = "") -> None:
        self.send(await self.services.contents.get(path, self.query(ContentsQuery), self.who.sees_only))

    async def put(self, path: str) -> None:
        saved, is_new = await self.services.contents.save(path, self.body(SaveContents), self.caller)
        self.send_contents(saved, 201 if is_new else 200)

    async def post(self, path: str = "") -> None:
        request = self.body(NewContents)
        if request.copy_from is not None:
            await self.check_other(request.copy_from, Level.READ)
        self.send_contents(await self.services.contents.new(path, request, self.caller), 201)

    async def patch(self, path: str) -> None:
        new_path = self.body(RenameContents).path
        await self.check_other(new_path, Level.RUN)
        self.send_contents(await self.services.contents.rename(path, new_path))

    async def delete(self, path: str) -> None:
        await self.services.contents.delete(path)
        self.set_status(204)


class RootContentsHandler(ContentsHandler):
    """/jupyter/api/contents: the sessions."""

    operations = {
        "GET": Operation("All sessions, as folders", Contents, query=ContentsQuery, needs=Need.KEY),
        "POST": Operation("A new session; what is asked for is made in it", Contents, 201, NewContents,
                          body_required=False, needs=Need.MAKE),
    }  # fmt: skip


class CheckpointsHandler(_ContentsHandler):
    """/jupyter/api/contents/{path}/checkpoints"""

    operations = {
        "GET": Operation("The checkpoints of a file: one, or none", CheckpointList, needs=Need.READ),
        "POST": Operation("Keep a file as it is now", Checkpoint, 201, needs=Need.RUN),
    }

    async def get(self, path: str) -> None:
        self.send(CheckpointList(await self.services.contents.list_checkpoints(path)))

    async def post(self, path: str) -> None:
        made = await self.services.contents.create_checkpoint(path)
        self.set_header("Location", f"{_ROOT}/{quote(path)}/checkpoints/{made.id}")
        self.send(made, 201)


class CheckpointHandler(_ContentsHandler):
    """/jupyter/api/contents/{path}/checkpoints/{checkpoint_id}"""

    operations = {
        "POST": Operation("The file becomes what its checkpoint holds", status=204, needs=Need.RUN),
        "DELETE": Operation("Delete a checkpoint", status=204, needs=Need.RUN),
    }

    async def post(self, path: str, checkpoint_id: str) -> None:
        await self.services.contents.restore_checkpoint(path, checkpoint_id)
        self.set_status(204)

    async def delete(self, path: str, checkpoint_id: str) -> None:
        await self.services.contents.delete_checkpoint(path, checkpoint_id)
        self.set_status(204)
