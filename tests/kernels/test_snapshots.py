"""Snapshots of files and checkpoints: kept whole or not at all, whatever happens meanwhile."""

import asyncio
import fcntl
import json
import mmap
import os
import random
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kernels import manifests, swaps, trees
from kernels.engines.local import LocalEngine
from kernels.errors import (
    DamagedSnapshot,
    FileConflict,
    NewerSnapshot,
    NoSpace,
    NoSuchFile,
    NoSuchSnapshot,
    SnapshotError,
)
from tests.kernels.conftest import Vault
from tests.kernels.test_archives import everything

MIB = 1 << 20


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311


async def loaded(vault: Vault, snapshot_id: str) -> dict[str, bytes]:
    """What a kernel would read, put together from extents."""
    async with vault.snapshots.state("one", snapshot_id) as folder:
        assert folder is not None
        found = {"state.json": (Path(folder) / "state.json").read_bytes()}
        for name, extents in json.loads((Path(folder) / "extents.json").read_text()).items():
            assert all(at % 4096 == 0 for _, at, _ in extents)
            assert all(length % 4096 == 0 for _, _, length in extents[:-1])
            found[name] = b"".join((Path(folder) / pack).read_bytes()[at : at + size] for pack, at, size in extents)
    return found


async def test_everything_in_a_workspace_comes_back_as_it_was(vault: Vault) -> None:
    root = vault.root()
    (root / "folder" / "empty").mkdir(parents=True)
    (root / "folder" / "nothing").touch()
    (root / "folder" / "large").write_bytes(noise(3 * MIB + 17))
    (root / "link").symlink_to("folder/large")
    (root / "broken").symlink_to("/nowhere/at all")
    os.link(root / "folder" / "large", root / "same")
    (root / "script").write_text("#!/bin/sh\n")
    (root / "script").chmod(0o751)
    for name in (b"caf\xe9", b"new\nline", b"back\\x5cslash", b"\\xe9", "日本".encode()):
        (root / os.fsdecode(name)).write_bytes(name)
    os.symlink(b"to \xff\\x5c", os.fsencode(root / "odd link"))
    os.utime(root / "script", ns=(1, 1_234_567_890_123_456_789))
    os.utime(root / "folder", ns=(1, 987_654_321))
    (root / "folder").chmod(0o550)
    before = everything(root)

    info = await vault.save("first", name="a snapshot", value=None)
    (root / "folder").chmod(0o750)
    (root / "folder" / "large").write_bytes(b"other")
    (root / "more").write_text("more")
    (root / "script").unlink()
    usage = await vault.snapshots.restore_files("one", "first")

    assert everything(root) == before
    assert (root / "same").samefile(root / "folder" / "large")
    assert usage.file_count == info.file_count == 11
    assert info.size_bytes == usage.total_bytes
    assert (info.facts, info.skipped, info.changed) == ({"name": "a snapshot", "value": None}, (), ())
    assert await vault.snapshots.info("one", "first") == info
    assert vault.leftovers() == []


async def test_holes_stay_holes(vault: Vault) -> None:
    size = 5_000_000_000
    with open(vault.root() / "sparse", "wb") as file:
        file.seek(3_000_000_001)
        file.write(b"data")
        file.truncate(size)

    info = await vault.save("first")
    (vault.root() / "sparse").unlink()
    await vault.snapshots.restore_files("one", "first")

    status = (vault.root() / "sparse").stat()
    assert (info.size_bytes, status.st_size) == (size, size)
    assert info.stored_bytes < 100_000
    assert status.st_blocks * 512 < MIB
    with open(vault.root() / "sparse", "rb") as file:
        file.seek(3_000_000_000)
        assert file.read(6) == b"\0data\0"


async def test_what_is_no_file_is_named(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    root = vault.root()
    monkeypatch.chdir(root)
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        info = await vault.save("first")

    assert {it.path: it.reason for it in info.skipped} == {"pipe": "a fifo", "socket": "a socket"}
    await vault.snapshots.restore_files("one", "first")
    assert everything(root) == {}


async def test_paths_too_long_to_be_kept_are_named(vault: Vault) -> None:
    fd = os.open(vault.root(), os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=fd)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)

    info = await vault.save("first")

    assert [it.reason for it in info.skipped] == ["the path is longer than 4096 bytes"]


async def test_a_second_snapshot_costs_what_changed(vault: Vault) -> None:
    root = vault.root()
    (root / "large").write_bytes(noise(20 * MIB))
    for number in range(200):
        (root / f"small-{number}").write_bytes(noise(5000, number))
    first = await vault.save("first")

    with open(root / "large", "r+b") as file:
        file.seek(5 * MIB)
        file.write(b"changed")
    (root / "small-7").write_bytes(noise(5000, 777))
    second = await vault.save("second")

    assert first.stored_bytes > 20 * MIB
    assert second.stored_bytes < 1.2 * MIB


async def test_files_that_were_left_alone_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = Vault(tmp_path, settled_s=0)
    (vault.root() / "file").write_bytes(noise(MIB))
    (vault.root() / "sparse").touch()
    os.truncate(vault.root() / "sparse", MIB)
    await asyncio.sleep(0.02)  # the clock of a file system has ticks
    first = await vault.save("first")

    with monkeypatch.context() as patch:
        patch.delattr(trees, "_read_chunks")
        second = await vault.save("second")
    (vault.root() / "file").write_bytes(noise(MIB, 1))
    third = await vault.save("third")

    assert first.size_bytes == second.size_bytes == third.size_bytes
    await vault.snapshots.restore_files("one", "second")
    assert (vault.root() / "file").read_bytes() == noise(MIB)


async def test_files_that_were_just_written_are_read_again(vault: Vault) -> None:
    (vault.root() / "mapped").write_bytes(bytes(4096))
    with open(vault.root() / "mapped", "r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
        mapped[0] = 1
        await vault.save("first")
        mapped[0] = 2  # the page is dirty already: no time of the file tells
        await vault.save("second")

    await vault.snapshots.restore_files("one", "second")
    assert (vault.root() / "mapped").read_bytes()[0] == 2


@contextmanager
def meanwhile(*changes: object) -> Iterator[None]:
    """Call them again and again from a thread of their own."""
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for one in changes:
                with suppress(OSError):
                    one()  # type: ignore[operator]

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def test_files_that_change_while_they_are_read_break_nothing(vault: Vault) -> None:
    root = vault.root()
    (root / "steady").write_bytes(noise(MIB))
    (root / "folder").mkdir()
    for number in range(50):
        (root / "folder" / str(number)).write_bytes(noise(10_000, number))
    size = iter(range(1, 1 << 60))

    def write() -> None:
        (root / "busy").write_bytes(bytes(next(size) % 7 * 500_000))

    with meanwhile(
        write,
        lambda: (root / "folder" / "7").rename(root / "8"),
        lambda: (root / "8").rename(root / "folder" / "7"),
        lambda: (root / "folder").rename(root / "other"),
        lambda: (root / "folder").symlink_to("/etc"),
        lambda: (root / "folder").unlink(),
        lambda: (root / "other").rename(root / "folder"),
    ):
        infos = [await vault.save(f"number-{number}") for number in range(10)]

    for info in infos:
        await vault.snapshots.verify("one", info.id)
        await vault.snapshots.restore_files("one", info.id)
        assert (root / "steady").read_bytes() == noise(MIB)
        assert not (root / "passwd").exists()
        assert not (root / "folder" / "passwd").is_file() or (root / "folder").is_symlink()
        assert all(it.reason == "it vanished while it was read" for it in info.skipped), info.skipped
    assert vault.leftovers() == []


async def test_a_file_written_to_all_the_time_is_named(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    path = vault.root() / "busy"
    path.write_bytes(bytes(MIB))
    real = trees._read_chunks

    def read_and_append(*args: object) -> int:
        size = real(*args)  # type: ignore[arg-type]
        with open(path, "ab") as file:
            file.write(b"x")
        return size

    monkeypatch.setattr(trees, "_read_chunks", read_and_append)
    info = await vault.save("first")

    assert info.changed == ("busy",)
    await vault.snapshots.restore_files("one", "first")
    assert path.read_bytes() == bytes(MIB) + b"x"


async def test_a_checkpoint_comes_back_as_extents_to_map(vault: Vault) -> None:
    buffers, segments = noise(10 * MIB + 5 * 4096), noise(100_001, 1)

    info = await vault.save_state("first", buffers, segments)

    assert info.has_state
    assert info.size_bytes == len(buffers) + len(segments) + len(b'{"format": 1}')
    assert await loaded(vault, "first") == {
        "state.json": b'{"format": 1}',
        "segments.bin": segments,
        "buffers.bin": buffers,
    }
    assert vault.leftovers() == []


@pytest.mark.parametrize("size", [0, 1, 4096, MIB, 2 * MIB + 4096, 9 * MIB + 1])
async def test_a_checkpoint_of_any_size_comes_back(vault: Vault, size: int) -> None:
    await vault.save_state("first", noise(size), noise(size, 1))

    found = await loaded(vault, "first")

    assert (found["buffers.bin"], found["segments.bin"]) == (noise(size), noise(size, 1))


async def test_a_second_checkpoint_costs_what_changed(vault: Vault) -> None:
    buffers = bytearray(noise(40 * MIB))
    first = await vault.save_state("first", buffers)
    buffers[7 * MIB + 5] ^= 1
    second = await vault.save_state("second", buffers)
    await vault.snapshots.delete("one", "first")

    assert first.stored_bytes > 40 * MIB
    assert second.stored_bytes < 1.2 * MIB
    assert (await loaded(vault, "second"))["buffers.bin"] == buffers


async def test_what_a_kernel_filled_a_lent_folder_with_is_deleted_while_others_go_on(vault: Vault) -> None:
    ticks = 0

    async def ticking() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    async with asyncio.TaskGroup() as tasks:
        async with vault.snapshots.state_folder("one") as name:
            for number in range(3000):
                (Path(name) / str(number)).touch()
            beside = tasks.create_task(ticking())
            await asyncio.sleep(0)
            ticks = 0
        seen = ticks
        beside.cancel()

    assert seen > 10
    assert not await asyncio.to_thread(Path(name).exists)


async def test_a_large_new_state_is_not_written_twice(vault: Vault) -> None:
    async with vault.snapshots.state_folder("one") as name:
        for file in ("state.json", "segments.bin"):
            (Path(name) / file).write_bytes(b"")
        (Path(name) / "buffers.bin").write_bytes(noise(9 * MIB))
        inode = (Path(name) / "buffers.bin").stat().st_ino
        await vault.snapshots.save("one", "first", state=name, facts={})

    assert not os.path.exists(name)  # noqa: ASYNC240
    assert inode in [path.stat().st_ino for path in vault.kept()]


async def test_a_state_that_somebody_can_still_write_to_is_copied(vault: Vault) -> None:
    async with vault.snapshots.state_folder("one") as name:
        for file in ("state.json", "segments.bin"):
            (Path(name) / file).write_bytes(b"")
        with open(Path(name) / "buffers.bin", "wb") as writing:
            writing.write(noise(9 * MIB))
            writing.flush()
            await vault.snapshots.save("one", "first", state=name, facts={})
            writing.seek(0)
            writing.write(b"changed afterwards")

    assert (await loaded(vault, "first"))["buffers.bin"] == noise(9 * MIB)


async def test_a_state_that_is_a_link_or_unfinished_is_refused(vault: Vault) -> None:
    (vault.folder / "secret").write_bytes(b"secret")
    async with vault.snapshots.state_folder("one") as name:
        (Path(name) / "state.json").symlink_to(vault.folder / "secret")
        with pytest.raises(SnapshotError, match=r"no finished checkpoint: 'state.json'"):
            await vault.snapshots.save("one", "first", state=name, facts={})

    assert await vault.snapshots.ids("one") == []
    assert vault.leftovers() == []


async def test_what_was_mapped_stays_when_folder_and_snapshot_are_gone(vault: Vault) -> None:
    await vault.save_state("first", noise(9 * MIB))
    async with vault.snapshots.state("one", "first") as folder:
        assert folder is not None
        pack, at, length = json.loads((Path(folder) / "extents.json").read_text())["buffers.bin"][0]
        with open(Path(folder) / pack, "rb") as file:
            mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=at)

    await vault.snapshots.remove("one")

    assert mapped[:] == noise(9 * MIB)
    mapped.close()
    assert vault.kept() == []


async def test_without_a_checkpoint_there_is_no_state(vault: Vault) -> None:
    info = await vault.save("first")

    async with vault.snapshots.state("one", "first") as folder:
        assert folder is None
    assert not info.has_state


async def test_a_flipped_bit_anywhere_is_found_before_anything_is_changed(vault: Vault) -> None:
    root = vault.root()
    (root / "text").write_text("some text " * 50_000)
    (root / "noise").write_bytes(noise(2 * MIB))
    await vault.save_state("first", noise(9 * MIB, 1), noise(50_000, 2))
    (root / "text").write_text("later")
    after = everything(root)
    chance = random.Random(1)  # noqa: S311

    assert len(vault.kept()) == 3  # manifest, pack, and the adopted buffers
    for path in vault.kept():
        good = path.read_bytes()
        path.chmod(0o600)
        ends = [0, 1, 30, 90, 95, 120, len(good) - 1]
        for at in [*ends, *(chance.randrange(len(good)) for _ in range(20))]:
            flipped = good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :]
            if not any(good[at : at + 1]) and path.suffix == ".pack":
                continue  # perhaps between pages, where nothing is kept
            path.write_bytes(flipped)
            with pytest.raises(DamagedSnapshot):
                await vault.snapshots.verify("one", "first")
        path.write_bytes(good[:100] + bytes([good[100] ^ 4]) + good[101:])
        holds_state, holds_files = path.suffix == ".snapshot" or len(good) > 9 * MIB - 1, len(good) != 9 * MIB
        if holds_files:
            with pytest.raises(DamagedSnapshot):
                await vault.snapshots.restore_files("one", "first")
        if holds_state:
            with pytest.raises(DamagedSnapshot):
                await loaded(vault, "first")
        assert everything(root) == after
        path.write_bytes(good)
    await vault.snapshots.verify("one", "first")


async def test_damage_is_told_by_the_name_of_the_file(vault: Vault) -> None:
    (vault.root() / "data.bin").write_bytes(noise(MIB))
    await vault.save("first")
    [pack] = [path for path in vault.kept() if path.suffix == ".pack"]
    data = bytearray(pack.read_bytes())
    data[1000] ^= 4
    pack.write_bytes(data)

    with pytest.raises(DamagedSnapshot, match=r"'first' is damaged: files/data\.bin can't be read back whole"):
        await vault.snapshots.verify("one", "first")
    pack.unlink()
    with pytest.raises(DamagedSnapshot, match=r"its pack .* is missing"):
        await vault.snapshots.restore_files("one", "first")
    assert (vault.root() / "data.bin").read_bytes() == noise(MIB)


async def test_a_newer_format_is_told(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(manifests, "FORMAT", 7)
        await vault.save("first")

    with pytest.raises(NewerSnapshot, match="has format 7; this version reads up to 1"):
        await vault.snapshots.restore_files("one", "first")
    assert await vault.snapshots.ids("one") == ["first"]


async def test_unknown_snapshots_are_told_and_ids_are_used_once(vault: Vault) -> None:
    await vault.save("first")

    for snapshot_id in ("second", "../one/first", "", ".working"):
        with pytest.raises(NoSuchSnapshot):
            await vault.snapshots.info("one", snapshot_id)
        with pytest.raises(NoSuchSnapshot):
            await vault.snapshots.delete("one", snapshot_id)
    for snapshot_id in ("first", "../first", ""):
        with pytest.raises(SnapshotError):
            await vault.save(snapshot_id)
    assert await vault.snapshots.ids("one") == ["first"]


async def test_chosen_paths_go_back_and_the_rest_stays(vault: Vault) -> None:
    root = vault.root()
    for name in ("kept/a", "kept/b", "other/deep/c", "file"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("before")
    os.link(root / "file", root / "other" / "hard")
    await vault.save("first")
    for name in ("kept/a", "kept/new", "other/deep/c", "other/hard", "file"):
        (root / name).write_text("after")
    (root / "kept" / "b").unlink()
    (root / "other").chmod(0o700)
    kept = (root / "other" / "deep" / "c").stat().st_ino

    await vault.snapshots.restore_files("one", "first", paths=["kept", "other/hard"])

    texts = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
    assert texts == {
        "kept/a": "before",
        "kept/b": "before",
        "other/deep/c": "after",
        "other/hard": "before",
        "file": "after",
    }
    assert (root / "other" / "deep" / "c").stat().st_ino == kept
    assert stat.S_IMODE((root / "other").stat().st_mode) == 0o700


async def test_chosen_paths_that_cannot_go_back_change_nothing(vault: Vault) -> None:
    root = vault.root()
    (root / "folder").mkdir()
    (root / "folder" / "file").write_text("before")
    await vault.save("first")
    (root / "folder" / "file").unlink()
    (root / "folder").rmdir()
    (root / "folder").symlink_to("/nowhere")
    before = everything(root)

    with pytest.raises(NoSuchFile):
        await vault.snapshots.restore_files("one", "first", paths=["folder/file", "missing"])
    with pytest.raises(FileConflict):
        await vault.snapshots.restore_files("one", "first", paths=["folder/file"])

    assert everything(root) == before
    assert vault.leftovers() == []


async def test_an_upload_on_its_way_arrives_in_the_restored_workspace(vault: Vault) -> None:
    (vault.root() / "file").write_text("before")
    await vault.save("first")
    (vault.root() / "file").write_text("after")
    workspace = await vault.workspace()
    begun, restored = asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        begun.set()
        await restored.wait()
        yield b"end"

    async def restore() -> None:
        await begun.wait()
        await asyncio.gather(*(vault.snapshots.restore_files("one", "first") for _ in range(3)))
        restored.set()

    await asyncio.gather(workspace.write("upload", pieces()), restore())

    assert (vault.root() / "file").read_text() == "before"
    assert (vault.root() / "upload").read_bytes() == bytes(MIB) + b"end"
    assert sorted(os.listdir(vault.root())) == ["file", "upload"]
    assert vault.leftovers() == []


async def test_without_a_system_call_for_it_folders_are_swapped_in_steps(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.swaps._renameat2", None)
    (vault.root() / "file").write_text("before")
    await vault.save("first")
    (vault.root() / "file").write_text("after")

    await vault.snapshots.restore_files("one", "first")
    assert (vault.root() / "file").read_text() == "before"
    assert vault.leftovers() == []

    vault.root().rename(
        vault.root().with_name(f".workspace-{'a' * 32}.ready")
    )  # as a crash between two steps leaves it
    vault.root()
    again = Vault(vault.folder)
    assert [it.path for it in await (await again.workspace()).list()] == ["file"]


async def test_links_planted_in_the_workspace_lead_nowhere(vault: Vault) -> None:
    outside = vault.folder / "outside"
    outside.mkdir()
    (outside / "file").write_text("secret")
    root = vault.root()
    (root / "folder").mkdir()
    (root / "folder" / "file").write_text("before")
    await vault.save("first")

    (root / "folder" / "file").unlink()
    (root / "folder").rmdir()
    (root / "folder").symlink_to(outside)
    second = await vault.save("second")
    await vault.snapshots.restore_files("one", "first")

    assert (root / "folder" / "file").read_text() == "before"
    assert everything(outside).keys() == {"file"}
    assert (outside / "file").read_text() == "secret"
    await vault.snapshots.restore_files("one", "second")
    assert second.size_bytes == len(str(outside))  # the link itself, not what it leads to
    assert os.readlink(root / "folder") == str(outside)


async def test_a_copy_shares_what_is_kept_and_is_independent(vault: Vault) -> None:
    (vault.root() / "file").write_bytes(noise(MIB))
    first = await vault.save_state("first", noise(9 * MIB, 1))

    copies = await asyncio.gather(
        *(vault.snapshots.copy("one", "first", f"place-{number}", "copy") for number in range(20))
    )
    inodes = {path.stat().st_ino for path in vault.kept() if path.suffix == ".pack"}
    await vault.snapshots.remove("one")

    assert {copy.digest for copy in copies} == {first.digest}
    assert {path.stat().st_ino for path in vault.kept("place-3") if path.suffix == ".pack"} == inodes
    await vault.snapshots.restore_files("place-3", "copy")
    await vault.snapshots.verify("place-3", "copy")
    assert (vault.root("place-3") / "file").read_bytes() == noise(MIB)
    assert vault.leftovers() == []


async def test_saves_and_deletes_at_the_same_time_keep_what_they_promise(vault: Vault) -> None:
    for number in range(20):
        (vault.root() / str(number)).write_bytes(noise(100_000, number))
    await vault.save("old")
    other = Vault(vault.folder)  # as another process would

    for number in range(5):
        (vault.root() / "new").write_bytes(noise(100_000, 100 + number))
        await asyncio.gather(
            vault.save(f"a{number}"),
            other.snapshots.delete("one", "old" if not number else f"a{number - 1}"),
            other.save(f"b{number}"),
            vault.snapshots.restore_files("one", f"b{number - 1}" if number else "old"),
            return_exceptions=True,
        )

    left = await vault.snapshots.ids("one")
    assert left == ["a4", "b0", "b1", "b2", "b3", "b4"]
    for snapshot_id in left:
        await vault.snapshots.verify("one", snapshot_id)
    assert vault.leftovers() == []


async def test_the_last_snapshot_takes_its_packs_with_it(vault: Vault) -> None:
    (vault.root() / "file").write_bytes(noise(MIB))
    await vault.save("first")
    used = await vault.snapshots.usage("one")
    await vault.snapshots.delete("one", "first")

    assert used > MIB
    assert await vault.snapshots.usage("one") == 0
    assert vault.kept() == []


async def test_a_cancelled_save_leaves_nothing(tmp_path: Path) -> None:
    reached = threading.Event()
    vault = Vault(tmp_path, on_stage=lambda stage: reached.set() if stage == "opened" else None)
    (vault.root() / "large").write_bytes(noise(30 * MIB))
    save = asyncio.ensure_future(vault.save("first"))
    await asyncio.to_thread(reached.wait)

    save.cancel()
    with pytest.raises(asyncio.CancelledError):
        await save

    assert vault.leftovers() == []


async def test_a_restore_that_is_cancelled_at_its_end_leaves_no_old_files(tmp_path: Path) -> None:
    reached, cancelled = threading.Event(), threading.Event()

    def on_stage(stage: str) -> None:
        if stage == "swapped":
            reached.set()
            cancelled.wait()

    vault = Vault(tmp_path, on_stage=on_stage)
    (vault.root() / "file").write_text("before")
    await vault.save("first")
    (vault.root() / "file").write_text("after")
    restore = asyncio.ensure_future(vault.snapshots.restore_files("one", "first"))
    await asyncio.to_thread(reached.wait)

    restore.cancel()
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await restore

    assert (vault.root() / "file").read_text() == "before"
    assert vault.leftovers() == []


async def test_a_workspace_removed_right_after_a_restore_leaves_nothing(vault: Vault) -> None:
    for number in range(500):
        (vault.root() / str(number)).write_text("text")
    await vault.save("first")

    await vault.snapshots.restore_files("one", "first")
    await (await vault.workspace()).remove()

    assert os.listdir(vault.folder / "sessions" / "one") == []


async def test_a_workspace_that_somebody_locked_is_restored_and_its_old_files_go(vault: Vault) -> None:
    (vault.root() / "file").write_text("before")
    await vault.save("first")
    held = os.open(vault.root(), os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)

    async with asyncio.timeout(5):
        await vault.snapshots.restore_files("one", "first")

    assert vault.leftovers() == []
    os.close(held)


REPLACE = """
import os, sys
from kernels import swaps

parent = os.open(sys.argv[1], os.O_RDONLY)
with swaps.building(parent) as (name, folder):
    os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    delete = swaps.replace(parent, name, folder, b"workspace")
print(flush=True)
sys.stdin.read()
"""


def test_old_files_are_left_to_who_deletes_them_and_cleaned_when_that_one_is_killed(vault: Vault) -> None:
    (vault.root() / "old").touch()
    folder = vault.root().parent
    parent = os.open(folder, os.O_RDONLY)
    command = [sys.executable, "-c", REPLACE, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"

        swaps.clean(parent)
        assert [os.listdir(path) for path in folder.glob(".workspace-*")] == [["old"]]
        process.kill()

    swaps.clean(parent)
    os.close(parent)
    assert os.listdir(folder) == ["workspace"]
    assert os.listdir(vault.root()) == ["new"]


@pytest.mark.slow
async def test_ten_thousand_small_files_come_back(vault: Vault) -> None:
    for number in range(10_000):
        path = vault.root() / f"{number % 100}" / str(number)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"file {number}")
    before = everything(vault.root())

    info = await vault.save("first")
    (vault.root() / "5" / "5").unlink()
    await vault.snapshots.restore_files("one", "first")

    assert info.file_count == 10_000
    assert everything(vault.root()) == before


def full_disk(folder: Path) -> None:
    """In a process of its own, whose files may not grow past 1 MiB."""

    async def check() -> None:
        vault = Vault(folder)
        (vault.root() / "file").write_bytes(noise(300_000))
        await vault.save("old")
        (vault.root() / "more").write_bytes(noise(900_000, 1))
        (vault.root() / "even more").write_bytes(noise(900_000, 2))
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        with pytest.raises(NoSpace, match="no room for the snapshot's files"):
            await vault.save("new")
        assert await vault.snapshots.ids("one") == ["old"]
        assert vault.leftovers() == []
        await vault.snapshots.restore_files("one", "old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, MIB))
        with pytest.raises(NoSpace):
            await vault.snapshots.restore_files("one", "old")
        assert (vault.root() / "file").read_bytes() == noise(300_000)
        assert vault.leftovers() == []

    asyncio.run(check())


def test_a_full_disk_is_told_and_leaves_everything_as_it_was(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from tests.kernels.test_snapshots import full_disk; full_disk(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


@pytest.mark.parametrize("change", ["save", "delete", "copy", "take_in", "restore", "restore_some"])
def test_a_crash_at_any_stage_leaves_all_of_before_or_all_of_after(change: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.kernels.snapshot_crashes", change, str(tmp_path)]
    done = subprocess.run(command, check=False, timeout=100, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3


async def test_removing_a_place_removes_its_snapshots(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path)
    await engine.workspace("one", None)
    await engine.snapshots.save("one", "first", state=None, facts={})

    await engine.remove("one")

    assert await engine.snapshots.ids("one") == []
    assert not (tmp_path / "snapshots" / "one").exists()
