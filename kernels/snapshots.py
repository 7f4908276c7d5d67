"""Snapshots of a place: its files and, where there is one, a checkpoint; what two of them share is kept once.

A snapshot exists if its manifest does, which is written last; packs that no manifest names are left over from a
crash and deleted when the place is used next. All that is read is checked before anything is changed.
"""

import asyncio
import errno
import fcntl
import json
import os
import re
import shutil
import threading
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)  # fmt: skip
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

from kernels import portable, swaps
from kernels.blobs import Blobs, FolderBlobs
from kernels.engine import SnapshotInfo, Usage
from kernels.errors import (
    DamagedSnapshot,
    FileConflict,
    NoSpace,
    NoSuchSnapshot,
    QuotaExceeded,
    SnapshotError,
)  # fmt: skip
from kernels.exchanges import Exchanges
from kernels.manifests import Entry, Key, Location, Manifest, Stored, decode, encode
from kernels.packs import Packer, Packs, workers, write_all
from kernels.paths import Parts, Root, open_root, show
from kernels.state_files import read_state
from kernels.threads import in_thread, outcome
from kernels.trees import Tree, chosen, link_tree, read_tree, usage, write_tree
from kernels.workspace import LocalWorkspace

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_MANIFEST, _PACK = ".snapshot", ".pack"
_SETTLED_S = 60.0
_SPOOL_SPARE_BYTES = 64 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

New = list[tuple[str, Path]]  # packs on their way: their names, and where they are


class LocalSnapshots:
    """Snapshots of workspaces on this machine, kept in `blobs`; what is on its way is under `folder`.

    `on_stage` is told how far a change has come.
    """

    def __init__(
        self,
        folder: Path,
        workspace: Callable[[str], Awaitable[LocalWorkspace]],
        blobs: Blobs | None = None,
        *,
        exchanges: Exchanges | None = None,
        settled_s: float = _SETTLED_S,
        on_stage: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._workspace = workspace
        self._blobs = blobs or FolderBlobs(folder)
        self._exchanges = exchanges or Exchanges(folder / ".exchange")
        self._lent: dict[str, int] = {}
        self._settled_s = settled_s
        self._on_stage = on_stage
        self._desk: Path | None = None
        self._desk_lock = threading.Lock()
        self._places: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._swept: set[str] = set()

    @asynccontextmanager
    async def state_folder(self, place: str) -> AsyncIterator[str]:
        async with _left_in_thread() as stack:
            path, fd = await in_thread(stack.enter_context, self._exchanges.lent(place, "out"))
            self._lent[str(path)] = fd
            try:
                yield str(path)
            finally:
                del self._lent[str(path)]

    async def save(
        self, place: str, snapshot_id: str, *, facts: Mapping[str, Any], files: bool = True,
        state: str | None = None, state_of: str | None = None,
    ) -> SnapshotInfo:  # fmt: skip
        workspace = await self._workspace(place)
        stopped = threading.Event()
        async with self._alone(place):
            save = partial(
                self._save, place, snapshot_id, workspace.root if files else None, state, state_of, facts, stopped
            )
            return await outcome(asyncio.get_running_loop().run_in_executor(None, save), stopped.set)

    async def info(self, place: str, snapshot_id: str) -> SnapshotInfo:
        return await in_thread(lambda: self._stored(place, snapshot_id).manifest().info())

    async def ids(self, place: str) -> list[str]:
        return sorted(await in_thread(self._ids, place))

    async def verify(self, place: str, snapshot_id: str) -> None:
        def check() -> None:
            with (
                self._pinned(place, snapshot_id) as (manifest, folder),
                self._packs(manifest, folder) as packs,
                workers() as pool,
            ):
                packs.check(pool, manifest.locations.items())

        await in_thread(check)

    async def restore_files(self, place: str, snapshot_id: str, *, paths: Collection[str] | None = None) -> Usage:
        workspace = await self._workspace(place)
        with ExitStack() as stack:
            manifest, folder = await in_thread(stack.enter_context, self._pinned(place, snapshot_id, state=False))
            self._on_stage("pinned")
            build = partial(self._build, manifest, folder, paths)
            with _space():
                return await workspace.exchange(build, over=paths is not None, on_stage=self._on_stage)

    @asynccontextmanager
    async def state(self, place: str, snapshot_id: str) -> AsyncIterator[str | None]:
        async with _left_in_thread() as stack:
            folder, _ = await in_thread(stack.enter_context, self._exchanges.lent(place, "in"))
            pinned = await in_thread(stack.enter_context, self._pinned(place, snapshot_id, files=False, into=folder))
            yield await in_thread(self._lay_out, *pinned)

    async def copy(self, source_place: str, snapshot_id: str, target_place: str, new_id: str) -> SnapshotInfo:
        async with self._alone(target_place):
            return await in_thread(self._copy, source_place, snapshot_id, target_place, new_id)

    async def export(self, place: str, snapshot_id: str) -> AsyncGenerator[bytes, None]:
        with closing(self._export(place, snapshot_id)) as pieces:
            while (piece := await in_thread(partial(next, pieces, None))) is not None:
                if piece:
                    yield piece

    async def take_in(
        self, place: str, snapshot_id: str, pieces: AsyncIterator[bytes], *, limit_bytes: int, max_files: int
    ) -> SnapshotInfo:
        workspace = await self._workspace(place)
        stopped = threading.Event()
        with ExitStack() as stack:
            work = await in_thread(stack.enter_context, self._work())
            with _space():
                await self._spool(work / "spool", pieces, limit_bytes)
            take_in = partial(
                self._take_in, place, snapshot_id, work, workspace.root, stopped,
                limit_bytes=limit_bytes, max_files=max_files,
            )  # fmt: skip
            async with self._alone(place):
                return await outcome(asyncio.get_running_loop().run_in_executor(None, take_in), stopped.set)

    async def delete(self, place: str, snapshot_id: str) -> None:
        async with self._alone(place):
            await in_thread(self._delete, place, snapshot_id)

    async def remove(self, place: str) -> None:
        async with self._alone(place):
            await in_thread(self._remove, place)

    async def usage(self, place: str) -> int:
        async with self._alone(place):
            return await in_thread(self._usage, place)

    @asynccontextmanager
    async def _alone(self, place: str) -> AsyncIterator[None]:
        """A block that changes what is kept of a place, one at a time."""
        lock = self._places.get(place)
        if lock is None:
            lock = self._places[place] = asyncio.Lock()
        async with lock:
            yield

    # What is kept

    @contextmanager
    def _changing(self, place: str) -> Iterator[None]:
        with _space(), self._blobs.locked(place):
            if place not in self._swept:
                self._sweep(place)
                self._swept.add(place)
            yield

    def _sweep(self, place: str) -> None:
        """Delete packs that no snapshot needs; none while there is a snapshot that can't be read."""
        try:
            needed = {pack for snapshot_id in self._ids(place) for pack in self._stored(place, snapshot_id).packs}
        except SnapshotError:
            return
        for name in self._blobs.sizes(place):
            if name.endswith(_PACK) and name not in needed:
                self._blobs.delete(f"{place}/{name}")
                self._on_stage("a pack deleted")

    def _ids(self, place: str) -> list[str]:
        return [name.removesuffix(_MANIFEST) for name in self._blobs.sizes(place) if name.endswith(_MANIFEST)]

    def _stored(self, place: str, snapshot_id: str) -> Stored:
        if _ID.fullmatch(snapshot_id) is None:
            raise NoSuchSnapshot(snapshot_id)
        try:
            return decode(self._blobs.get(f"{place}/{snapshot_id}{_MANIFEST}"), snapshot_id)
        except FileNotFoundError:
            raise NoSuchSnapshot(snapshot_id) from None

    def _all_stored(self, place: str) -> list[Stored]:
        """Those that can be read, oldest first."""
        found = []
        for snapshot_id in self._ids(place):
            with suppress(SnapshotError):
                found.append(self._stored(place, snapshot_id))
        return sorted(found, key=lambda stored: stored.created_at)

    def _known(self, place: str, stored: Iterable[Stored]) -> dict[Key, Location]:
        there = self._blobs.sizes(place)
        return {key: at for one in stored for key, at in one.locations() if at.pack in there}

    def _check_new(self, place: str, snapshot_id: str) -> None:
        if _ID.fullmatch(snapshot_id) is None:
            raise SnapshotError(f"{snapshot_id!r} can't be the id of a snapshot.")
        if snapshot_id in self._ids(place):
            raise SnapshotError(f"There is a snapshot {snapshot_id!r} already.")

    def _save(
        self, place: str, snapshot_id: str, path: Path | None, state: str | None, state_of: str | None,
        facts: Mapping[str, Any], stopped: threading.Event,
    ) -> SnapshotInfo:  # fmt: skip
        with self._changing(place), self._work() as work, workers() as pool:
            self._check_new(place, snapshot_id)
            self._on_stage("opened")
            stored = self._all_stored(place)
            known = self._known(place, stored)
            before = _unchanged(stored, known) if path is not None else {}
            name = token_hex(16) + _PACK
            created_at = datetime.now(UTC)
            with Packer(work / name, name, known, pool, stopped) as packer:
                tree = Tree()
                if path is not None:
                    with open_root(path) as root:
                        tree = read_tree(root, packer, before, self._settled_s)
                self._on_stage("files read")
                files, adopted = read_state(self._lent[state], work, packer, pool) if state is not None else ({}, [])
                packer.finish()
            kept = self._state_of(place, state_of) if state_of is not None else None
            self._on_stage("packed")
            manifest = Manifest(
                id=snapshot_id,
                created_at=created_at,
                entries=tree.entries(),
                state={name: file() for name, file in files.items()} if kept is None else kept.state,
                facts=facts,
                skipped=tuple(tree.skipped),
                changed=tuple(tree.changed),
                locations={**packer.locations, **(kept.locations if kept is not None else {})},
            )
            return self._keep(place, manifest, packer, adopted)

    def _state_of(self, place: str, snapshot_id: str) -> Manifest:
        """A snapshot, of which only the state is wanted."""
        manifest = self._stored(place, snapshot_id).manifest()
        return replace(manifest, locations={key: at for key, at in manifest.locations.items() if key[1]})

    def _keep(self, place: str, manifest: Manifest, packer: Packer, adopted: New) -> SnapshotInfo:
        """Packs first, then what makes them a snapshot. If that fails none of them stays."""
        added_bytes = packer.size_bytes + sum(path.stat().st_size for _, path in adopted)
        manifest = replace(manifest, added_bytes=added_bytes)
        encoded = encode(manifest)
        packer.synced()
        with self._undone(place) as put:
            for name, path in [*_filled(packer), *adopted]:
                put.append(name)
                self._blobs.put_file(f"{place}/{name}", path)
                self._on_stage("a pack kept")
            info = self._put_manifest(place, manifest, *encoded)
        self._on_stage("kept")
        return info

    def _put_manifest(self, place: str, manifest: Manifest, data: bytes, digest: str) -> SnapshotInfo:
        self._blobs.put(f"{place}/{manifest.id}{_MANIFEST}", data)
        return replace(manifest, added_bytes=manifest.added_bytes + len(data)).info(digest)

    @contextmanager
    def _undone(self, place: str) -> Iterator[list[str]]:
        """What is named in the list is deleted again if the block fails."""
        put: list[str] = []
        try:
            yield put
        except BaseException:
            for name in put:
                with suppress(OSError):
                    self._blobs.delete(f"{place}/{name}")
            raise

    def _copy(self, source: str, snapshot_id: str, target: str, new_id: str) -> SnapshotInfo:
        with self._changing(target):
            self._check_new(target, new_id)
            self._on_stage("opened")
            manifest = replace(self._stored(source, snapshot_id).manifest(), id=new_id)
            there = self._blobs.sizes(target)
            with self._undone(target) as put:
                for pack in sorted(manifest.packs - there.keys()):
                    put.append(pack)
                    with self._reading(source, snapshot_id, pack):
                        self._blobs.copy(f"{source}/{pack}", f"{target}/{pack}")
                    self._on_stage("a pack kept")
                sizes = self._blobs.sizes(target)
                manifest = replace(manifest, added_bytes=sum(sizes[pack] for pack in put))
                info = self._put_manifest(target, manifest, *encode(manifest))
            self._on_stage("kept")
            return info

    def _delete(self, place: str, snapshot_id: str) -> None:
        with self._changing(place):
            if snapshot_id not in self._ids(place):
                raise NoSuchSnapshot(snapshot_id)
            self._on_stage("opened")
            self._blobs.delete(f"{place}/{snapshot_id}{_MANIFEST}")
            self._on_stage("deleted")
            self._sweep(place)

    def _remove(self, place: str) -> None:
        for snapshot_id in self._ids(place):
            self._blobs.delete(f"{place}/{snapshot_id}{_MANIFEST}")
        self._blobs.remove(place)
        self._swept.discard(place)

    def _usage(self, place: str) -> int:
        sizes = self._blobs.sizes(place)
        if not sizes:
            return 0
        with self._changing(place):
            return sum(self._blobs.sizes(place).values())

    # What is taken out

    @contextmanager
    def _pinned(
        self, place: str, snapshot_id: str, *, files: bool = True, state: bool = True, into: Path | None = None
    ) -> Iterator[tuple[Manifest, Path]]:
        """A snapshot, and a folder with its packs, which stay there even when it is deleted meanwhile."""
        with _space(), nullcontext(into) if into is not None else self._work() as work:
            manifest = self._stored(place, snapshot_id).manifest()
            wanted = {
                key: at for key, at in manifest.locations.items() if (state if key[1] else files)
            }  # fmt: skip
            manifest = replace(manifest, locations=wanted)
            for pack in manifest.packs:
                with self._reading(place, snapshot_id, pack):
                    self._blobs.fetch(f"{place}/{pack}", work / pack)
            yield manifest, work

    @contextmanager
    def _reading(self, place: str, snapshot_id: str, pack: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            self._stored(place, snapshot_id)  # it may be gone altogether
            raise DamagedSnapshot(snapshot_id, f"its pack {pack} is missing") from None

    def _packs(self, manifest: Manifest, folder: Path) -> Packs:
        return Packs(folder, manifest.packs, manifest.id, partial(_named, manifest))

    def _build(
        self, manifest: Manifest, folder: Path, paths: Collection[str] | None, old: Root, into: int
    ) -> Usage | None:
        """What it wrote, if nothing else is in the folder."""
        folders: list[Entry] = []
        if paths is None:
            entries = list(manifest.entries)
        else:
            entries, tops = chosen(manifest, paths)
            folders = link_tree(old, into, set(tops).__contains__)
            there = {entry.parts for entry in folders}
            entries = [entry for entry in entries if entry.kind != "folder" or entry.parts not in there]
        with self._packs(manifest, folder) as packs, workers() as pool:
            try:
                write_tree(entries, folders, manifest, packs, pool, into)
            except (NotADirectoryError, FileExistsError) as error:
                raise FileConflict(
                    show(()), "a file is where the snapshot has a folder that leads to a path"
                ) from error
        return usage(entries) if paths is None else None

    def _lay_out(self, manifest: Manifest, folder: Path) -> str | None:
        """What a kernel loads from: small files as they are, the others as extents of packs."""
        if not manifest.state:
            return None
        with self._packs(manifest, folder) as packs, workers() as pool:
            packs.check(pool, manifest.locations.items())
            with open(folder / "state.json", "xb") as file:
                for chunk in manifest.state["state.json"].chunks:
                    key = chunk.digest, True
                    file.write(packs.chunk(key, manifest.locations[key]))
        (folder / "extents.json").write_text(
            json.dumps({name: _extents(manifest, name) for name in ("segments.bin", "buffers.bin")})
        )
        return str(folder)

    def _export(self, place: str, snapshot_id: str) -> Generator[bytes, None, None]:
        with self._pinned(place, snapshot_id) as (manifest, folder), self._packs(manifest, folder) as packs:
            yield from portable.export(manifest, packs)

    # What is brought in

    async def _spool(self, path: Path, pieces: AsyncIterator[bytes], limit_bytes: int) -> None:
        size = written = 0
        waiting = bytearray()
        fd = await in_thread(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            async for piece in pieces:
                waiting += piece
                size += len(piece)
                if size > limit_bytes + _SPOOL_SPARE_BYTES:
                    raise QuotaExceeded("", f"the archive is larger than a snapshot of {limit_bytes} bytes can be")
                if len(waiting) >= 1 << 20:
                    await in_thread(write_all, fd, bytes(waiting), written)
                    written = size
                    waiting.clear()
            await in_thread(write_all, fd, bytes(waiting), written)
        finally:
            await in_thread(os.close, fd)

    def _take_in(
        self, place: str, snapshot_id: str, work: Path, path: Path, stopped: threading.Event,
        *, limit_bytes: int, max_files: int,
    ) -> SnapshotInfo:  # fmt: skip
        with self._changing(place), workers() as pool:
            self._check_new(place, snapshot_id)
            self._on_stage("opened")
            name = token_hex(16) + _PACK
            known = self._known(place, self._all_stored(place))
            with Packer(work / name, name, known, pool, stopped) as packer, open(work / "spool", "rb") as spool:
                manifest = portable.read(
                    spool, packer, snapshot_id, Root(path, -1), stopped, limit_bytes=limit_bytes, max_files=max_files
                )
            self._on_stage("packed")
            return self._keep(place, replace(manifest, locations=packer.locations), packer, [])

    # Where it is worked at

    @contextmanager
    def _work(self) -> Iterator[Path]:
        """A folder for something on its way, gone after the block."""
        with self._desk_lock:
            if self._desk is None:
                self._desk = self._opened_desk()
        folder = self._desk / token_hex(8)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _opened_desk(self) -> Path:
        """A folder of this process's own, locked while it lives; those of processes that are gone are deleted."""
        desks = self._folder / ".working"
        desks.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(desks, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # nobody takes a new one for a left one before it is locked
            for entry in list(os.scandir(desks)):
                with suppress(OSError):
                    if swaps.is_free(os.fsencode(entry.name), fd):
                        shutil.rmtree(entry.path, ignore_errors=True)
            desk = desks / token_hex(8)
            desk.mkdir(mode=0o700)
            lock = os.open(desk, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            weakref.finalize(self, os.close, lock)
        finally:
            os.close(fd)
        return desk


def _unchanged(stored: list[Stored], known: Mapping[Key, Location]) -> dict[Parts, Entry]:
    """The files of the newest snapshot that has any, which need not be read again if their stamps are the same."""
    for one in reversed(stored):
        if one.stamp_count:
            with suppress(DamagedSnapshot):
                return {
                    entry.parts: entry
                    for entry in one.manifest().entries
                    if entry.stamp is not None and all((it.digest, False) in known for it in entry.chunks)
                }
    return {}


def _filled(packer: Packer) -> New:
    return [(packer.name, packer.path)] if packer.size_bytes else []


def _extents(manifest: Manifest, name: str) -> list[tuple[str, int, int]]:
    """Where a state's file is, in packs: as few stretches as there can be."""
    extents: list[tuple[str, int, int]] = []
    for chunk in manifest.state[name].chunks:
        at = manifest.locations[chunk.digest, True]
        if extents and (extents[-1][0], extents[-1][1] + extents[-1][2]) == (at.pack, at.offset):
            extents[-1] = at.pack, extents[-1][1], extents[-1][2] + at.length
        else:
            extents.append((at.pack, at.offset, at.length))
    return extents


def _named(manifest: Manifest, key: Key) -> str:
    """What a chunk belongs to."""
    for entry in manifest.entries:
        if not key[1] and any(chunk.digest == key[0] for chunk in entry.chunks):
            return f"files/{show(entry.parts)}"
    for name, file in manifest.state.items():
        if key[1] and any(chunk.digest == key[0] for chunk in file.chunks):
            return f"state/{name}"
    return "something"


@asynccontextmanager
async def _left_in_thread() -> AsyncIterator[ExitStack]:
    """Also what is undone at its end may take long: a kernel can fill a folder that was lent to it."""
    stack = ExitStack()
    try:
        yield stack
    finally:
        await in_thread(stack.close)


@contextmanager
def _space() -> Iterator[None]:
    """A full disk, told as one of our errors."""
    try:
        yield
    except QuotaExceeded as error:
        if isinstance(error.__cause__, OSError):
            raise NoSpace(f"There is no room for the snapshot's files: {error.__cause__.strerror}.") from error
        raise
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NoSpace(f"There is no room for the snapshot's files: {error.strerror}.") from error
        raise
