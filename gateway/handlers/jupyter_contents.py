"""Jupyter's contents API: sessions as folders, their workspaces below."""

from urllib.parse import quote

from pydantic import RootModel

from gateway.handlers.base import Operation
from gateway.handlers.jupyter import JupyterHandler
from gateway.models.contents import (
    Checkpoint,
    Contents,
    ContentsQuery,
    NewContents,
    RenameContents,
    SaveContents,
)  # fmt: skip

_ROOT = "/jupyter/api/contents"


class CheckpointList(RootModel[list[Checkpoint]]):
    """The checkpoints of a file."""


class _ContentsHandler(JupyterHandler):
    @property
    def audited_session_id(self) -> str | None:
        return self.named_in_path.get("path", "").strip("/").partition("/")[0] or None

    def send_contents(self, made: Contents, status: int = 200) -> None:
        self.set_header("Location", f"{_ROOT}/{quote(made.path)}")
        self.send(made, status)


class ContentsHandler(_ContentsHandler):
    """/jupyter/api/contents/{path}"""

    operations = {
        "GET": Operation("A file, a notebook or a folder, as Jupyter's contents API has it", Contents,
                         query=ContentsQuery),
        "PUT": Operation("Save; a file may come in chunks, and the old one stays until the last", Contents,
                         body=SaveContents, also={201: "It is new"}, also_answers={201: Contents}),
        "POST": Operation("Something new without a name, or a copy", Contents, 201, NewContents, body_required=False),
        "PATCH": Operation("Rename or move", Contents, body=RenameContents),
        "DELETE": Operation("Delete a file, or a folder with all in it", status=204),
    }  # fmt: skip

    async def get(self, path: str = "") -> None:
        self.send(await self.services.contents.get(path, self.query(ContentsQuery)))

    async def put(self, path: str) -> None:
        saved, is_new = await self.services.contents.save(path, self.body(SaveContents), self.caller)
        self.send_contents(saved, 201 if is_new else 200)

    async def post(self, path: str = "") -> None:
        self.send_contents(await self.services.contents.new(path, self.body(NewContents), self.caller), 201)

    async def patch(self, path: str) -> None:
        self.send_contents(await self.services.contents.rename(path, self.body(RenameContents).path))

    async def delete(self, path: str) -> None:
        await self.services.contents.delete(path)
        self.set_status(204)


class RootContentsHandler(ContentsHandler):
    """/jupyter/api/contents: the sessions."""

    operations = {
        "GET": Operation("All sessions, as folders", Contents, query=ContentsQuery),
        "POST": Operation("A new session; what is asked for is made in it", Contents, 201, NewContents,
                          body_required=False),
    }  # fmt: skip


class CheckpointsHandler(_ContentsHandler):
    """/jupyter/api/contents/{path}/checkpoints"""

    operations = {
        "GET": Operation("The checkpoints of a file: one, or none", CheckpointList),
        "POST": Operation("Keep a file as it is now", Checkpoint, 201),
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
        "POST": Operation("The file becomes what its checkpoint holds", status=204),
        "DELETE": Operation("Delete a checkpoint", status=204),
    }

    async def post(self, path: str, checkpoint_id: str) -> None:
        await self.services.contents.restore_checkpoint(path, checkpoint_id)
        self.set_status(204)

    async def delete(self, path: str, checkpoint_id: str) -> None:
        await self.services.contents.delete_checkpoint(path, checkpoint_id)
        self.set_status(204)
