"""Where kernels run: a process and the workspace that belongs to it.

Nothing here may assume that the process is a child of ours, or even on this machine.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from kernels.journal import Entry


@dataclass(frozen=True, slots=True)
class Kernelspec:
    """An installed kernel: `name` finds it, `language` is lower case."""

    name: str
    display_name: str
    language: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    interrupt_mode: Literal["signal", "message"]
    metadata: Mapping[str, Any]
    resource_dir: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What one kernel may use; None is without limit."""

    memory_bytes: int | None = None
    cpu: float | None = None
    pids: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Walls:
    """What stands between a kernel and everything that is not its own; `missing` says of each other wall why."""

    standing: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """All that is needed to start a kernel. `place` names its workspace and overlay, and outlives the kernel.

    With network `none` it reaches nothing but itself. `preloads` are modules that it finds imported, where they exist.
    """

    kernel_id: str
    place: str
    spec: Kernelspec
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = Limits()
    network: Literal["none", "host"] = "host"
    preloads: tuple[str, ...] = ()  # modules that it need not import itself, if that can be had


@dataclass(frozen=True, slots=True)
class Exit:
    """How a kernel ended. `code` is what it exited with, or None with `signal` that ended it."""

    code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """A kernel that outlived who started it. `exit` is how it ended, if it has ended meanwhile."""

    kernel_id: str
    place: str
    spec: Kernelspec
    started_at: float  # unix time, seconds
    limits: Limits
    exit: Exit | None = None


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """Of a kernel and everything that it started."""

    cpu_seconds: float
    memory_bytes: int
    process_count: int


class KernelProcess(Protocol):
    """A started kernel: how to reach it, how to end it."""

    kernel_id: str
    connection: Mapping[str, Any]  # as in a Jupyter connection file
    started_at: float  # unix time, seconds
    walls: Walls

    async def ended(self) -> Exit:
        """Wait until it has ended by itself or by `kill`."""
        ...

    async def journaling(self) -> None:
        """Wait until whatever it publishes from now on is in its journal."""
        ...

    async def interrupt(self, since: float) -> None:
        """Send SIGINT to the kernel, and to what its process group has started after unix time `since`."""
        ...

    async def kill(self, reason: str) -> None:
        """End it and everything that it started, at once; `reason` goes into its `Exit`."""
        ...

    async def kill_children(self, since: float) -> int:
        """End what the kernel started after unix time `since`; returns how many processes that were."""
        ...

    async def printed(self, limit_bytes: int) -> str:
        """The end of what it has printed outside of cells since its start."""
        ...

    async def usage(self) -> ProcessUsage: ...


FileType = Literal["file", "directory", "link", "other"]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """`path` is relative to the workspace, with `/` between its parts; `mode` are the permission bits.

    `version` differs whenever the file was written anew, in place or as another file.
    """

    path: str
    size: int
    modified_at: datetime
    type: FileType
    mode: int
    version: str

    @property
    def etag(self) -> str:
        return f'"{self.version}"'


@dataclass(frozen=True, slots=True)
class Usage:
    file_count: int
    total_bytes: int


class Workspace(Protocol):
    """Where a session's files are, wherever that is. Methods raise `WorkspaceError`s."""

    async def usage(self) -> Usage:
        """Files (not folders) and their bytes, holes included, hard links once; measured at most one second ago."""
        ...

    async def list(self, path: str = "", *, recursive: bool = False) -> list[FileInfo]:
        """What is in a folder, sorted by path; a file alone lists itself."""
        ...

    async def info(self, path: str) -> FileInfo:
        """Of what `read` would read: links are followed."""
        ...

    def read(self, path: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end`, in pieces of at most 1 MiB."""
        ...

    async def write(self, path: str, pieces: AsyncIterator[bytes]) -> FileInfo:
        """Write a whole file, making its folders. Until the last byte is on disk the old file stays.

        A link is written through, to what it points to. An existing file keeps its permissions.
        """
        ...

    async def make_folder(self, path: str) -> FileInfo:
        """Make an empty folder and those above it. Raises `FileConflict` if something is there."""
        ...

    async def delete(self, path: str) -> None:
        """Delete a file, a link (not what it points to), or a folder with all in it."""
        ...

    async def move(self, source: str, target: str, *, overwrite: bool = False) -> FileInfo:
        """Move a file, link or folder, making the target's folders. A folder is never overwritten."""
        ...

    def archive(self) -> AsyncIterator[bytes]:
        """A tar.zst of everything; sockets and devices are left out."""
        ...

    async def unpack(self, pieces: AsyncIterator[bytes], *, ours: bool = False) -> Usage:
        """Unpack a tar.zst (or .tar, .tar.gz) over what is there. Nothing is written if any entry is refused.

        With `ours`, for what `archive` gave and nobody else could touch, links may lead out, as a venv's `python`
        does, and names may look like Windows paths. They come back as they were, and are still never followed.
        """
        ...

    async def remove(self) -> None:
        """Remove the workspace and everything in it."""
        ...


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that a snapshot does not hold, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """What is known of a snapshot without reading what it holds.

    `digest` (blake3, of facts and files and state) stays the same in a copy and in a tarball. `size_bytes` are those
    of files, holes included, and state; `stored_bytes` what this snapshot added to those before it. `changed` are
    files that were written to while they were read, twice: what is kept of them may never have been there at once.
    """

    id: str
    digest: str
    created_at: datetime
    size_bytes: int
    stored_bytes: int
    file_count: int
    has_state: bool
    facts: Mapping[str, Any]
    skipped: tuple[Skipped, ...]
    changed: tuple[str, ...]


class Snapshots(Protocol):
    """The files of places, and checkpoints, as they were. Methods raise `SnapshotError`s.

    A snapshot is there whole or not at all, whenever the process ends, and is checked before it is used.
    """

    def state_folder(self, place: str) -> AbstractAsyncContextManager[str]:
        """An empty folder for a checkpoint that `save` is then given; gone after the block."""
        ...

    async def save(
        self, place: str, snapshot_id: str, *, facts: Mapping[str, Any], files: bool = True,
        state: str | None = None, state_of: str | None = None,
    ) -> SnapshotInfo:  # fmt: skip
        """Keep the files of a place, and a checkpoint: in the folder `state`, which is used up, or that of a snapshot.

        `facts` are JSON.
        """
        ...

    async def info(self, place: str, snapshot_id: str) -> SnapshotInfo:
        """Raises `NoSuchSnapshot`, `DamagedSnapshot`, `NewerSnapshot`, as everything does that reads one."""
        ...

    async def ids(self, place: str) -> list[str]: ...

    async def verify(self, place: str, snapshot_id: str) -> None:
        """Read all of it. Raises `DamagedSnapshot`, which names what is damaged."""
        ...

    async def restore_files(self, place: str, snapshot_id: str, *, paths: Collection[str] | None = None) -> Usage:
        """The workspace becomes what the snapshot held, at once; files on their way in arrive in it afterwards.

        With `paths` (files, or folders with all in them; `NoSuchFile` for what it does not hold) only those are
        replaced. The workspace's folder is another one then: a process in the old one does not see the new files.
        """
        ...

    def state(self, place: str, snapshot_id: str) -> AbstractAsyncContextManager[str | None]:
        """A folder for a kernel to load from, checked; None if there is no state. What it has mapped stays mapped."""
        ...

    async def copy(self, source_place: str, snapshot_id: str, target_place: str, new_id: str) -> SnapshotInfo:
        """The same snapshot at another place, independent of the first; costs no space where files can be linked."""
        ...

    def export(self, place: str, snapshot_id: str) -> AsyncIterator[bytes]:
        """A tar.zst to take elsewhere: `manifest.json`, then `files/…`, then `state/…`."""
        ...

    async def take_in(
        self, place: str, snapshot_id: str, pieces: AsyncIterator[bytes], *, limit_bytes: int, max_files: int
    ) -> SnapshotInfo:
        """Keep what `export` gave, whoever had it since.

        Raises `BadArchive`, `OutsideWorkspace`, `QuotaExceeded`, `NewerSnapshot`; then nothing is kept.
        """
        ...

    async def delete(self, place: str, snapshot_id: str) -> None: ...

    async def remove(self, place: str) -> None:
        """Delete all snapshots of a place."""
        ...

    async def usage(self, place: str) -> int:
        """Bytes on disk."""
        ...


class Engine(Protocol):
    """Starts kernels and keeps the places where their files are, and their snapshots."""

    @property
    def snapshots(self) -> Snapshots: ...

    def kernelspecs(self) -> Mapping[str, Kernelspec]: ...

    def start(self, launch: Launch) -> AbstractAsyncContextManager[KernelProcess]:
        """A started kernel; leaving the block ends it and all that it started. Raises `StartFailed`."""
        ...

    def duplicate(
        self, source: str, launch: Launch, fork: Callable[[str], Awaitable[object]]
    ) -> AbstractAsyncContextManager[KernelProcess]:
        """A kernel that carries on where the kernel `source` stands, as `start` gives it.

        `fork` is given an address: it has the source make a copy of itself that reports there, and gives the place
        its files. Raises `StartFailed`, and what `fork` raises; the source goes on in any case.
        """
        ...

    async def prepare(
        self, spec: Kernelspec, network: Literal["none", "host"] = "host", preloads: tuple[str, ...] = ()
    ) -> None:
        """Have whatever makes starting such kernels fast made ready, in its own time; what fails fails then."""
        ...

    async def kept(self) -> list[Kept]:
        """Kernels that are there, or have ended meanwhile, and that this engine has neither started nor adopted."""
        ...

    def adopt(self, kernel_id: str) -> AbstractAsyncContextManager[KernelProcess]:
        """A kernel that was kept, as `start` gives it: leaving the block ends it. One that has ended has its `Exit`.

        From now on nobody else commands it. Raises `KernelGone` if it is not there, `Refused` if a later one has it.
        """
        ...

    def journal(self, kernel_id: str, after: int = 0) -> AsyncIterator[Entry]:
        """What it has published so far, in order, after the message of that number; it is there until a block ends it.

        Not the last words of the very moment: what was published is journaled within milliseconds.
        """
        ...

    async def workspace(self, place: str, disk_bytes: int | None) -> Workspace:
        """The files at a place, which is made if it is not there."""
        ...

    async def copy_environment(self, source: str, target: str) -> None:
        """Give a new place what is installed at another one, and the files of its home. Raises `WorkspaceError`."""
        ...

    async def copy_files(self, source: str, target: str) -> "list[Skipped]":
        """Copy the workspace of a place to another one, whose is empty; what could not be copied."""
        ...

    async def remove(self, place: str) -> None:
        """Remove a place with all that is kept of it. Raises `OSError`, `WorkspaceError` if something stays."""
        ...

    async def log(self, place: str, name: Literal["kernel", "setup"], limit_bytes: int) -> str:
        """The end of a place's log: the kernel's own output, or what its setup printed."""
        ...

    async def run_setup(self, launch: Launch, steps: "list[SetupStep]") -> Exit:
        """Run steps one after another in the place's own environment, printing into its setup log, until one fails."""
        ...

    async def end_orphans(self) -> int:
        """End what an earlier process left behind and nobody keeps, setups among it; returns how many."""
        ...

    def abandon(self) -> None:
        """End every kernel and setup without waiting for anything: the caller is about to end too."""
        ...


@dataclass(frozen=True, slots=True)
class SetupStep:
    kind: Literal["pip", "npm", "command"]
    arguments: tuple[str, ...]
