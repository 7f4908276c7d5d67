"""Snapshots beside `tar | zstd -1` of the same data, in one run.

    python -m tests.bench.bench_snapshots [--rounds N] [--dir FOLDER]

Prints a table of medians: saving and restoring 10 MB in 1,000 files, and a state of 1 GB. Ours ends on disk (fsync);
`tar | zstd` leaves it to the system, and is also shown with a `sync` of what it wrote.
"""

import argparse
import asyncio
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from kernels.snapshots import LocalSnapshots
from kernels.swaps import sync_all
from kernels.workspace import LocalWorkspace

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MB = 1_000_000
FILE_COUNT = 1000
STATE_BYTES = 1 << 30
PROGRAMS = bool(shutil.which("tar") and shutil.which("zstd"))
CHANGED = 0.01


class Times:
    """Seconds of each step, round by round."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.sizes: dict[str, int] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - start)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])


def tar(folder: Path, archive: Path) -> None:
    if PROGRAMS:
        command = f"tar -C {folder} -cf - . | zstd -1 -q -f -o {archive}"
        subprocess.run(command, shell=True, check=True)  # noqa: S602 - our own paths
        return
    with zstd.open(archive, "wb", level=1) as compressed, tarfile.open(fileobj=compressed, mode="w|") as made:
        made.add(folder, ".")


def untar(archive: Path, folder: Path) -> None:
    folder.mkdir()
    if PROGRAMS:
        command = f"zstd -dcq {archive} | tar -C {folder} -xf -"
        subprocess.run(command, shell=True, check=True)  # noqa: S602 - our own paths
        return
    with zstd.open(archive, "rb") as compressed, tarfile.open(fileobj=compressed, mode="r|") as made:
        made.extractall(folder, filter="tar")


def synced(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    sync_all(fd)
    os.close(fd)


def fill(root: Path) -> None:
    """Half noise, half text: compresses to about a half, as a project's files do."""
    for number in range(FILE_COUNT):
        path = root / f"folder-{number % 20}" / f"file-{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(5000) + (b"%d some words again and again\n" % number * 200)[:5000])


def write_state(folder: Path, pieces: list[bytes]) -> None:
    (folder / "state.json").write_text("{}")
    (folder / "segments.bin").write_bytes(os.urandom(10_000))
    with open(folder / "buffers.bin", "wb") as file:
        file.writelines(pieces)


class Bench:
    """One round, in a folder of its own. Small files are not deleted before the end: ext4 gives out no inode that was
    freed a minute ago, and searches long for another.
    """

    def __init__(self, base: Path, times: Times) -> None:
        self.base = base
        self.root = base / "sessions" / "one" / "workspace"
        self.root.mkdir(parents=True)
        self.workspace = LocalWorkspace(self.root, None)
        self.snapshots = LocalSnapshots(base / "snapshots", self._workspace)
        self.times = times

    async def _workspace(self, place: str) -> LocalWorkspace:
        return self.workspace

    async def files(self) -> None:
        fill(self.root)
        synced(self.base)
        archive = self.base / "files.tar.zst"
        await self._in_any_order(lambda: self._tar("files", self.root, archive), lambda: self._save_files())
        changed = random.sample(sorted(self.root.rglob("*.txt")), round(FILE_COUNT * CHANGED))
        for path in changed:
            path.write_bytes(os.urandom(10_000))
        synced(self.base)
        with self.times.step("files: second save"):
            second = await self.snapshots.save("one", "second", state=None, facts={})
        self.times.sizes["files: second snapshot"] = second.stored_bytes
        synced(self.base)
        await self._in_any_order(lambda: self._untar("files", archive), lambda: self._restore_files())

    async def _save_files(self) -> None:
        with self.times.step("files: save"):
            info = await self.snapshots.save("one", "first", state=None, facts={})
        self.times.sizes["files: first snapshot"] = info.stored_bytes

    async def _restore_files(self) -> None:
        with self.times.step("files: restore"):
            await self.snapshots.restore_files("one", "first")

    async def state(self) -> None:
        pieces = [os.urandom(STATE_BYTES // 1024) for _ in range(1024)]
        alone = self.base / f"state-{uuid4().hex}"
        alone.mkdir()
        write_state(alone, pieces)
        archive = self.base / "state.tar.zst"

        async def save() -> None:
            async with self.snapshots.state_folder("one") as folder:
                write_state(Path(folder), pieces)
                with self.times.step("state: save"):
                    info = await self.snapshots.save("one", "state", state=folder, facts={})
            self.times.sizes["state: first snapshot"] = info.stored_bytes

        await self._in_any_order(lambda: self._tar("state", alone, archive), save)
        for number in random.sample(range(1024), round(1024 * CHANGED)):
            pieces[number] = os.urandom(len(pieces[number]))
        async with self.snapshots.state_folder("one") as folder:
            write_state(Path(folder), pieces)
            with self.times.step("state: second save"):
                info = await self.snapshots.save("one", "second-state", state=folder, facts={})
        self.times.sizes["state: second snapshot"] = info.stored_bytes
        shutil.rmtree(alone)
        synced(self.base)

        async def load() -> None:
            with self.times.step("state: restore"):
                async with self.snapshots.state("one", "state"):
                    pass

        await self._in_any_order(lambda: self._untar("state", archive), load)
        await self.snapshots.remove("one")

    async def _in_any_order(self, *steps: Callable[[], Awaitable[None]]) -> None:
        """Who comes first is cast anew each time: the second one meets what the first left to be written."""
        for step in random.sample(steps, len(steps)):
            await step()
            synced(self.base)

    async def _tar(self, what: str, folder: Path, archive: Path) -> None:
        with self.times.step(f"{what}: tar, synced"):
            with self.times.step(f"{what}: tar"):
                await asyncio.to_thread(tar, folder, archive)
            synced(self.base)
        self.times.sizes[f"{what}: tar"] = os.path.getsize(archive)  # noqa: ASYNC240

    async def _untar(self, what: str, archive: Path) -> None:
        out = self.base / f"out-{uuid4().hex}"
        with self.times.step(f"{what}: untar, synced"):
            with self.times.step(f"{what}: untar"):
                await asyncio.to_thread(untar, archive, out)
            synced(self.base)
        if what == "state":
            shutil.rmtree(out)


def report(times: Times) -> None:
    peer = "tar | zstd -1" if PROGRAMS else "Python's tarfile and zstd, level 1"
    print(f"\nMedians, beside {peer}; % is its time divided by ours\n")
    print(f"{'':34}{'ours':>18}{'peer':>18}{'':7}{'peer + sync':>18}")
    for what, size, names in (
        ("10 MB in 1,000 files", 10 * MB, ("files: save", "files: tar", "files: restore", "files: untar")),
        ("state of 1 GB", STATE_BYTES, ("state: save", "state: tar", "state: restore", "state: untar")),
    ):
        for step, ours, theirs in (("save", *names[:2]), ("restore", *names[2:])):
            cells = []
            for name in (ours, theirs, f"{theirs}, synced"):
                seconds = times.median(name)
                share = "" if name == ours else f"{seconds / times.median(ours):7.0%}"
                cells.append(f"{seconds:.3f} s {size / MB / seconds:6.0f} MB/s{share}")
            print(f"{step + ' ' + what:34}{cells[0]:>18}{cells[1]:>25}{cells[2]:>25}")
    print()
    for what in ("files", "state"):
        first, second = (times.sizes[f"{what}: {which} snapshot"] for which in ("first", "second"))
        peer_size = times.sizes[f"{what}: tar"]
        print(
            f"{what}: first snapshot {first / MB:.2f} MB (tar.zst {peer_size / MB:.2f}), second after "
            f"{CHANGED:.0%} changed {second / MB:.3f} MB = {second / first:.1%}, "
            f"{times.median(f'{what}: second save'):.3f} s"
        )


async def run(rounds: int, folder: str | None) -> None:
    base = Path(tempfile.mkdtemp(dir=folder))
    try:
        times = Times()
        for number in range(rounds):
            bench = Bench(base / str(number), times)
            await bench.files()
            await bench.state()
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
        report(times)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.rounds, arguments.dir))
