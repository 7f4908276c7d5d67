"""Paths of Jupyter's contents API: which session, and what in its workspace."""

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from gateway.errors import NotFound
from gateway.models.sessions import SessionId
from kernels.engine import FileInfo, Workspace
from kernels.errors import NoSuchFile

CHECKPOINT = "checkpoint"
_CHECKPOINTS = ".ipynb_checkpoints"
_SESSION_ID: TypeAdapter[str] = TypeAdapter(SessionId)


class NoSuchContents(NotFound):
    code = "no_such_contents"

    def __init__(self, path: str) -> None:
        super().__init__(f"No such file or directory: {path}")


@dataclass(frozen=True, slots=True)
class Place:
    """A path of the contents API: the session, and the path in its workspace; neither for the top level."""

    session_id: str = ""
    path: str = ""

    @classmethod
    def of(cls, path: str) -> "Place":
        """Raises `NoSuchContents` for what nothing can be called, or is hidden."""
        session_id, _, inside = path.strip("/").partition("/")
        if any(part.startswith(".") for part in inside.split("/")):
            raise NoSuchContents(path)
        try:
            return cls(_SESSION_ID.validate_python(session_id) if session_id else "", inside)
        except ValidationError:
            raise NoSuchContents(path) from None

    @property
    def whole(self) -> str:
        return f"{self.session_id}/{self.path}".rstrip("/")

    @property
    def name(self) -> str:
        return self.whole.rpartition("/")[2]

    @property
    def folder(self) -> "Place":
        return Place(self.session_id, self.path.rpartition("/")[0])

    @property
    def checkpoint(self) -> str:
        """Where in the workspace its checkpoint is."""
        stem, dot, end = self.name.rpartition(".")
        name = f"{stem}-{CHECKPOINT}{dot}{end}" if stem else f"{self.name}-{CHECKPOINT}"
        return "/".join(filter(None, (self.folder.path, _CHECKPOINTS, name)))

    def below(self, name: str) -> "Place":
        if not self.session_id:
            return Place(name)
        return Place(self.session_id, f"{self.path}/{name}" if self.path else name)


async def info_of(workspace: Workspace, place: Place) -> FileInfo:
    try:
        return await workspace.info(place.path)
    except NoSuchFile:
        raise NoSuchContents(place.whole) from None


async def info_or_none(workspace: Workspace, place: Place) -> FileInfo | None:
    try:
        return await workspace.info(place.path)
    except NoSuchFile:
        return None


async def free_name(workspace: Workspace, folder: Place, stem: str, end: str, gap: str) -> Place:
    """A name that nothing has: `stem`, or with a number; `gap` goes before that."""
    taken = {info.path.rpartition("/")[2] for info in await workspace.list(folder.path)}
    number = 0
    while (name := f"{stem}{gap}{number}{end}" if number else f"{stem}{end}") in taken:
        number += 1
    return folder.below(name)


def _split(name: str) -> tuple[str, str]:
    """Stem and ending, which may have several dots (`.tar.gz`) but for a notebook."""
    if name.endswith(".ipynb"):
        return name.removesuffix(".ipynb"), ".ipynb"
    stem, dot, end = name.partition(".")
    return stem, dot + end


def copied_name(name: str) -> tuple[str, str]:
    """Stem and ending of what a copy is called; a copy of a copy is numbered as a copy."""
    stem, end = _split(name)
    head, dash, number = stem.rpartition("-Copy")
    return (head, end) if dash and head and (number.isdecimal() or not number) else (stem, end)
