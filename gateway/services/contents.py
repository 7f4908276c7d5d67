"""Sessions and their files as Jupyter's contents API shows them.

The top level holds the sessions as folders, below each is its workspace; what begins with a dot is not shown. A
notebook or folder that is made at the top level makes a session.
"""

import asyncio
import mimetypes
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from gateway.errors import Denied, Malformed, SessionNotFound
from gateway.models.base import now
from gateway.models.contents import (
    Checkpoint,
    Contents,
    ContentsQuery,
    ContentType,
    NewContents,
    SaveContents,
)  # fmt: skip
from gateway.models.sessions import CreateSession, Session
from gateway.services import file_checkpoints, ipynb
from gateway.services.file_content import bytes_of, digest_of, with_content
from gateway.services.places import NoSuchContents, Place, copied_name, free_name, info_of, info_or_none
from gateway.services.recorder import Spawn
from gateway.services.sessions import SessionService, once
from gateway.services.uploads import LAST, Uploads
from kernels.engine import FileInfo, Workspace
from kernels.errors import FileConflict, NoSuchFile, WorkspaceError
from kernels.paths import parse

_UNTITLED = {"notebook": ("Untitled", ".ipynb", ""), "directory": ("Untitled Folder", "", " ")}


class BadType(Malformed):
    code = "bad_type"


class ContentsService:
    def __init__(self, sessions: SessionService, spawn: Spawn) -> None:
        self._sessions = sessions
        self._uploads = Uploads(spawn)
        self._naming: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # Looking

    async def get(self, path: str, query: ContentsQuery, seen_by: str | None = None) -> Contents:
        """What is at a path, with its content if that is asked for; of sessions those that `seen_by` may see.

        Raises `BadType`, `BadFormat`, `TooLarge`.
        """
        place = Place.of(path)
        if not place.path:
            _check_type(place, "directory", query.type)
            return await self._top(query, seen_by) if not place.session_id else await self._session_folder(place, query)
        workspace = await self._workspace(place)
        info = await info_of(workspace, place)
        kind = _kind(info)
        _check_type(place, kind, query.type)
        kind = query.type or kind
        found = _contents(place, info, kind)
        if kind == "directory":
            return await self._listed(found, place, workspace) if query.content else found
        if query.hash and not query.content:
            digest = await digest_of(workspace.read(place.path))
            return found.model_copy(update={"hash": digest, "hash_algorithm": "sha256"})
        return await with_content(found, place, workspace, query) if query.content else found

    async def _top(self, query: ContentsQuery, seen_by: str | None) -> Contents:
        visible = self._sessions.all(seen_by)
        sessions = [_session_contents(one) async for one in visible] if query.content else []
        moment = max((one.last_modified for one in sessions), default=now())
        found = Contents(name="", path="", type="directory", writable=True, created=moment, last_modified=moment)
        return found.model_copy(update={"content": sessions, "format": "json"}) if query.content else found

    async def _session_folder(self, place: Place, query: ContentsQuery) -> Contents:
        found = _session_contents(await self._sessions.get(place.session_id))
        return await self._listed(found, place, await self._workspace(place)) if query.content else found

    async def _listed(self, folder: Contents, place: Place, workspace: Workspace) -> Contents:
        entries = [entry async for entry in _entries(workspace, place)]
        return folder.model_copy(update={"content": entries, "format": "json"})

    # Changing

    async def save(self, path: str, request: SaveContents, caller: str) -> tuple[Contents, bool]:
        """What was saved, and whether it is new. A session that does not exist is created if the settings allow it."""
        place = Place.of(path)
        if not place.path:
            return await self._save_top(place, request, caller)
        if request.chunk is not None and request.type != "file":
            raise BadType("Only files of type 'file' come in chunks.", reason="bad type")
        parse(place.path)  # before a session is created for it
        content, flaw = await bytes_of(request)
        workspace = await self._workspace(place, caller, create=True)
        old = await info_or_none(workspace, place)
        if old is not None:
            _check_type(place, _kind(old), request.type)
        if request.type == "directory":
            info = old or await workspace.make_folder(place.path)
        elif request.chunk is not None:
            uid = await self._sessions.uid_of(place.session_id)
            written = await self._uploads.add(uid, workspace, place.path, request.chunk, content)
            info = written or FileInfo(place.path, len(content), now(), "file", 0o644, "")
        else:
            info = await workspace.write(place.path, once(content))
        if request.chunk in (None, LAST):
            await self._sessions.files_changed(place.session_id)
        return _contents(place, info, _kind(info)).model_copy(update={"message": flaw}), old is None

    async def _save_top(self, place: Place, request: SaveContents, caller: str) -> tuple[Contents, bool]:
        if not place.session_id or request.type != "directory":
            raise Malformed("The top level holds sessions: files are saved in one of them.")
        try:
            return _session_contents(await self._sessions.get(place.session_id)), False
        except SessionNotFound:
            return await self._new_session(place.session_id, caller), True

    async def new(self, path: str, request: NewContents, caller: str) -> Contents:
        """Something under a name that is free in a folder. At the top level that makes a session, which holds it."""
        folder = Place.of(path)
        if not folder.session_id:
            made = await self._new_session(None, caller)
            if request.copy_from is None and request.type in (None, "directory"):
                return made
            folder = Place(made.name)
        elif folder.path:
            workspace = await self._workspace(folder)
            if (await info_of(workspace, folder)).type != "directory":
                raise Malformed("Cannot POST to files, use PUT instead.")
        if request.copy_from is not None:
            return await self._copy(Place.of(request.copy_from), folder)
        kind = request.type or ("notebook" if request.ext == ".ipynb" else "file")
        stem, end, gap = _UNTITLED.get(kind, ("untitled", request.ext, ""))
        async with self._lock(folder):
            workspace = await self._workspace(folder)
            place = await free_name(workspace, folder, stem, end, gap)
            if kind == "directory":
                info = await workspace.make_folder(place.path)
            else:
                content = ipynb.write(ipynb.empty()) if kind == "notebook" else b""
                info = await workspace.write(place.path, once(content))
        await self._sessions.files_changed(folder.session_id)
        return _contents(place, info, kind)

    async def _copy(self, source: Place, folder: Place) -> Contents:
        workspace = await self._workspace(source)
        found = await info_of(workspace, source)
        if found.type != "file":
            raise Malformed("Only files can be copied.")
        stem, end = copied_name(source.name)
        async with self._lock(folder):
            target = await self._workspace(folder)
            place = await free_name(target, folder, stem, end, "-Copy")
            info = await target.write(place.path, workspace.read(source.path))
        await self._sessions.files_changed(folder.session_id)
        return _contents(place, info, _kind(info))

    async def _new_session(self, session_id: str | None, caller: str) -> Contents:
        request = CreateSession(session_id=session_id)
        return _session_contents(await self._sessions.create(request, caller, start=False))

    async def rename(self, path: str, new_path: str) -> Contents:
        """Move a file, with its checkpoint, or a folder; only files go to another session."""
        old, new = Place.of(path), Place.of(new_path)
        if not old.path or not new.path:
            raise Denied("A session keeps its id; its name is changed at /api/sessions.")
        source = await self._workspace(old)
        found = await info_of(source, old)
        if old == new:
            return _contents(new, found, _kind(found))
        if old.session_id == new.session_id:
            info = await source.move(old.path, new.path)
        else:
            info = await self._move_over(source, old, found, new)
        if old.session_id == new.session_id:
            await file_checkpoints.take_along(source, old, new)
        for session_id in {old.session_id, new.session_id}:
            await self._sessions.files_changed(session_id)
        return _contents(new, info, _kind(info))

    async def _move_over(self, source: Workspace, old: Place, found: FileInfo, new: Place) -> FileInfo:
        if found.type != "file":
            raise Malformed("Only files can be moved to another session.")
        async with self._lock(new.folder):
            target = await self._workspace(new)
            if await info_or_none(target, new) is not None:
                raise FileConflict(new.path, "it is there already")
            info = await target.write(new.path, source.read(old.path))
        await source.delete(old.path)
        return info

    async def delete(self, path: str) -> None:
        """Delete a file with its checkpoint, or a folder with all in it; not a session."""
        place = Place.of(path)
        if not place.path:
            raise Denied("A session is deleted at /api/sessions, or with its kernel, not as a folder.")
        workspace = await self._workspace(place)
        try:
            await workspace.delete(place.path)
        except NoSuchFile:
            raise NoSuchContents(place.whole) from None
        await file_checkpoints.forget(workspace, place)
        await self._sessions.files_changed(place.session_id)

    # Checkpoints

    async def list_checkpoints(self, path: str) -> list[Checkpoint]:
        return await file_checkpoints.list_checkpoints(*await self._file(path))

    async def create_checkpoint(self, path: str) -> Checkpoint:
        workspace, place = await self._file(path)
        made = await file_checkpoints.create_checkpoint(workspace, place)
        await self._sessions.files_changed(place.session_id)
        return made

    async def restore_checkpoint(self, path: str, checkpoint_id: str) -> None:
        place = Place.of(path)
        await file_checkpoints.restore_checkpoint(await self._workspace(place), place, checkpoint_id)
        await self._sessions.files_changed(place.session_id)

    async def delete_checkpoint(self, path: str, checkpoint_id: str) -> None:
        place = Place.of(path)
        await file_checkpoints.delete_checkpoint(await self._workspace(place), place, checkpoint_id)
        await self._sessions.files_changed(place.session_id)

    async def _file(self, path: str) -> tuple[Workspace, Place]:
        place = Place.of(path)
        workspace = await self._workspace(place)
        if not place.path or (await info_of(workspace, place)).type != "file":
            raise BadType(f"{place.whole} is a directory, not a file", reason="bad type")
        return workspace, place

    async def _workspace(self, place: Place, caller: str = "", *, create: bool = False) -> Workspace:
        if not place.session_id:
            raise NoSuchContents(place.whole)
        return await self._sessions.files(place.session_id, caller, create=create)

    def _lock(self, folder: Place) -> asyncio.Lock:
        """Held by who looks for a free name until something has it."""
        return self._naming.setdefault(folder.session_id, asyncio.Lock())


def _kind(info: FileInfo) -> ContentType:
    if info.type == "directory":
        return "directory"
    return "notebook" if info.path.endswith(".ipynb") else "file"


def _check_type(place: Place, kind: ContentType, wanted: ContentType | None) -> None:
    if wanted is None or (wanted == "directory") == (kind == "directory"):
        return
    is_, not_ = ("a directory", "a file") if kind == "directory" else ("a file", "a directory")
    raise BadType(f"{place.whole} is {is_}, not {not_}", reason="bad type")


def _session_contents(session: Session) -> Contents:
    return Contents(
        name=session.id, path=session.id, type="directory", writable=True,
        created=session.created_at, last_modified=session.updated_at,
    )  # fmt: skip


def _contents(place: Place, info: FileInfo, kind: ContentType) -> Contents:
    return Contents(
        name=place.name, path=place.whole, type=kind, writable=bool(info.mode & 0o200),
        created=info.modified_at, last_modified=info.modified_at,
        size=None if kind == "directory" else info.size,
        mimetype=mimetypes.guess_type(place.name)[0] if kind == "file" else None,
    )  # fmt: skip


async def _entries(workspace: Workspace, folder: Place) -> AsyncIterator[Contents]:
    """What is in a folder; links are shown as what they lead to, if that is in the workspace."""
    for info in await workspace.list(folder.path):
        place = Place(folder.session_id, info.path)
        if place.name.startswith("."):
            continue
        if info.type == "link":
            try:
                info = await workspace.info(info.path)
            except WorkspaceError:
                continue
        if info.type in ("file", "directory"):
            yield _contents(place, info, _kind(info))
