"""Checkpoints of files: where Jupyter itself keeps them, in a hidden folder beside the file, one of each.

So they go wherever the files go: into snapshots, copies and archives.
"""

from collections.abc import AsyncIterator
from contextlib import suppress

from gateway.errors import NotFound
from gateway.models.contents import Checkpoint
from gateway.services.places import CHECKPOINT, Place
from kernels.engine import Workspace
from kernels.errors import NoSuchFile, WorkspaceError


class NoSuchCheckpoint(NotFound):
    code = "no_such_checkpoint"


async def list_checkpoints(workspace: Workspace, place: Place) -> list[Checkpoint]:
    try:
        info = await workspace.info(place.checkpoint)
    except NoSuchFile:
        return []
    return [Checkpoint(id=CHECKPOINT, last_modified=info.modified_at)]


async def create_checkpoint(workspace: Workspace, place: Place) -> Checkpoint:
    """Keep the file as it is now; it takes the place of the one checkpoint that was."""
    info = await workspace.write(place.checkpoint, workspace.read(place.path))
    return Checkpoint(id=CHECKPOINT, last_modified=info.modified_at)


async def restore_checkpoint(workspace: Workspace, place: Place, checkpoint_id: str) -> None:
    """Raises `NoSuchCheckpoint`, as `delete_checkpoint` does."""
    await workspace.write(place.path, await _pieces(workspace, place, checkpoint_id))


async def delete_checkpoint(workspace: Workspace, place: Place, checkpoint_id: str) -> None:
    await _pieces(workspace, place, checkpoint_id)
    await workspace.delete(place.checkpoint)


async def take_along(workspace: Workspace, old: Place, new: Place) -> None:
    """A file has moved: so does its checkpoint, if it can; the file itself is what counts."""
    with suppress(WorkspaceError):
        await workspace.move(old.checkpoint, new.checkpoint, overwrite=True)


async def forget(workspace: Workspace, place: Place) -> None:
    """A file was deleted: so is its checkpoint, if there is one."""
    with suppress(WorkspaceError):
        await workspace.delete(place.checkpoint)


async def _pieces(workspace: Workspace, place: Place, checkpoint_id: str) -> AsyncIterator[bytes]:
    with suppress(NoSuchFile):
        if checkpoint_id == CHECKPOINT and place.path:
            await workspace.info(place.checkpoint)
            return workspace.read(place.checkpoint)
    raise NoSuchCheckpoint(f"Checkpoint does not exist: {place.whole}@{checkpoint_id}")
