"""Files in a workspace, as several people and a kernel would use them at once."""

import asyncio
import os
import resource
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kernels.engine import Usage, Workspace
from kernels.errors import BadPath, FileConflict, NoSuchFile, OutsideWorkspace, QuotaExceeded, WorkspaceError
from kernels.workspace import LocalWorkspace

MIB = 1 << 20


@pytest.fixture
def workspace(root: Path) -> LocalWorkspace:
    return LocalWorkspace(root, quota_bytes=10 * MIB)


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def read(workspace: Workspace, path: str, *, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in workspace.read(path, start=start, end=end)])


async def paths(workspace: Workspace, path: str = "", *, recursive: bool = True) -> list[str]:
    return [info.path for info in await workspace.list(path, recursive=recursive)]


def everything(root: Path) -> dict[str, bytes | None]:
    """All that is really in a folder, hidden files too."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


# Reading and writing


async def test_what_was_written_is_read(workspace: LocalWorkspace, root: Path) -> None:
    info = await workspace.write("a/b/hello.txt", pieces(b"hello ", b"world"))

    assert await read(workspace, "a/b/hello.txt") == b"hello world"
    assert (info.path, info.size, info.type, info.mode) == ("a/b/hello.txt", 11, "file", 0o644)
    assert abs(info.modified_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert info == await workspace.info("a/b/hello.txt")
    assert everything(root) == {"a": None, "a/b": None, "a/b/hello.txt": b"hello world"}


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, None, b"0123456789"), (3, None, b"3456789"), (3, 5, b"34"), (0, 0, b""), (8, 99, b"89"), (50, None, b"")],
)
async def test_a_range_of_a_file_is_read(
    workspace: LocalWorkspace, start: int, end: int | None, expected: bytes
) -> None:
    await workspace.write("digits", pieces(b"0123456789"))

    assert await read(workspace, "digits", start=start, end=end) == expected


async def test_a_large_file_comes_in_pieces_of_a_mebibyte(workspace: LocalWorkspace) -> None:
    content = os.urandom(3 * MIB + 17)
    await workspace.write("large", pieces(*(content[start : start + 1000] for start in range(0, len(content), 1000))))

    read_pieces = [piece async for piece in workspace.read("large")]

    assert b"".join(read_pieces) == content
    assert [len(piece) for piece in read_pieces] == [MIB, MIB, MIB, 17]


async def test_a_reader_that_leaves_closes_the_file(workspace: LocalWorkspace) -> None:
    await workspace.write("large", pieces(bytes(3 * MIB)))
    before = set(os.listdir("/dev/fd"))

    async with aclosing(workspace.read("large")) as reader:
        await anext(reader)

    assert len(os.listdir("/dev/fd")) == len(before)


async def test_an_existing_file_keeps_its_permissions(workspace: LocalWorkspace, root: Path) -> None:
    (root / "script").touch(mode=0o700)
    (root / "script").chmod(0o4751)

    info = await workspace.write("script", pieces(b"#!"))

    assert info.mode == 0o751


async def test_a_link_inside_is_written_through(workspace: LocalWorkspace, root: Path) -> None:
    (root / "folder").mkdir()
    (root / "link").symlink_to("folder/file")

    await workspace.write("link", pieces(b"new"))

    assert (root / "folder" / "file").read_bytes() == b"new"
    assert (root / "link").is_symlink()


async def test_a_link_that_leads_out_is_neither_read_nor_written(workspace: LocalWorkspace, root: Path) -> None:
    secret = root.parent / "secret"
    (root / "link").symlink_to(secret)
    (root / "folder").symlink_to("..")

    for path in ("link", "folder/secret"):
        with pytest.raises(OutsideWorkspace):
            await read(workspace, path)
        with pytest.raises(OutsideWorkspace):
            await workspace.write(path, pieces(b"overwritten"))
        with pytest.raises(OutsideWorkspace):
            await workspace.info(path)

    assert secret.read_text() == "secret"


async def test_a_refused_path_is_refused_before_a_byte_is_taken(workspace: LocalWorkspace) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""

    for path in ("../secret", "/etc/passwd", "", "a//b"):
        with pytest.raises((OutsideWorkspace, BadPath)):
            await workspace.write(path, never())


async def test_a_folder_can_be_neither_read_nor_written_as_a_file(workspace: LocalWorkspace, root: Path) -> None:
    (root / "folder").mkdir()
    (root / "link").symlink_to("folder")
    (root / "round").symlink_to(".")

    for path in ("folder", "link", "round"):
        with pytest.raises(FileConflict):
            await read(workspace, path)
        with pytest.raises(FileConflict):
            await workspace.write(path, pieces(b"x"))


async def test_a_file_can_not_be_a_parent(workspace: LocalWorkspace, root: Path) -> None:
    (root / "file").touch()

    with pytest.raises(FileConflict):
        await workspace.write("file/below/it", pieces(b"x"))

    assert everything(root) == {"file": b""}


async def test_a_fifo_a_socket_or_a_device_never_blocks(workspace: LocalWorkspace, root: Path) -> None:
    os.mkfifo(root / "fifo")
    names = ["fifo", "socket"]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    if os.geteuid() == 0:
        os.mknod(root / "zero", 0o020666, os.makedev(1, 5))
        names.append("zero")

    for name in names:
        async with asyncio.timeout(5):
            with pytest.raises(FileConflict):
                await read(workspace, name)
            with pytest.raises(FileConflict):
                await workspace.write(name, pieces(b"x"))
            assert (await workspace.info(name)).type == "other"


async def test_a_missing_file_is_no_such_file(workspace: LocalWorkspace) -> None:
    with pytest.raises(NoSuchFile):
        await read(workspace, "missing")
    with pytest.raises(NoSuchFile):
        await workspace.list("missing")
    with pytest.raises(NoSuchFile):
        await workspace.info("mis/sing")
    with pytest.raises(NoSuchFile):
        await workspace.delete("missing")
    with pytest.raises(NoSuchFile):
        await workspace.move("missing", "there")


async def test_a_cancelled_write_leaves_the_old_file_and_nothing_else(workspace: LocalWorkspace, root: Path) -> None:
    await workspace.write("file", pieces(b"old"))
    started = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        started.set()
        await asyncio.Event().wait()

    writing = asyncio.ensure_future(workspace.write("file", endless()))
    await started.wait()
    assert len(os.listdir(root)) == 2
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing

    assert everything(root) == {"file": b"old"}
    assert await workspace.usage() == Usage(1, 3)


async def test_a_write_may_be_cancelled_at_any_moment(workspace: LocalWorkspace, root: Path) -> None:
    await workspace.write("file", pieces(b"old"))
    descriptors = len(os.listdir("/dev/fd"))

    for delay_us in range(0, 4000, 100):
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_us / 1e6):
                await workspace.write("new/file", pieces(*[bytes(MIB)] * 3))
        assert set(everything(root)) in ({"file"}, {"file", "new", "new/file"})
        if (root / "new").exists():
            assert (root / "new" / "file").stat().st_size == 3 * MIB
            await workspace.delete("new")

    assert len(os.listdir("/dev/fd")) == descriptors


async def test_a_sender_that_fails_leaves_the_old_file(workspace: LocalWorkspace, root: Path) -> None:
    await workspace.write("file", pieces(b"old"))

    async def failing() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await workspace.write("file", failing())

    assert everything(root) == {"file": b"old"}


async def test_a_write_in_progress_is_not_shown(workspace: LocalWorkspace) -> None:
    await workspace.write("file", pieces(b"old"))
    seen = []

    async def watching() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        seen.append((await paths(workspace), await read(workspace, "file"), await workspace.usage()))

    await workspace.write("file", watching())

    assert seen == [(["file"], b"old", Usage(1, 3))]


async def test_what_a_crash_left_behind_is_hidden_and_later_deleted(root: Path) -> None:
    leftover = root / f".workspace-{'a' * 32}"
    leftover.mkdir()
    (leftover / "half").touch()
    long_ago = time.time() - 100_000

    fresh = await paths(LocalWorkspace(root, None))
    await LocalWorkspace(root, None).usage()
    assert leftover.exists()
    os.utime(leftover, (long_ago, long_ago))
    await LocalWorkspace(root, None).usage()

    assert fresh == []
    assert not leftover.exists()


# What fits


async def test_the_quota_is_kept_while_streaming(workspace: LocalWorkspace, root: Path) -> None:
    await workspace.write("file", pieces(b"old"))
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += MIB
            yield bytes(MIB)

    for path in ("file", "made/for/it"):
        with pytest.raises(QuotaExceeded):
            await workspace.write(path, endless())

    assert sent <= 24 * MIB
    assert everything(root) == {"file": b"old"}


async def test_the_bytes_of_the_file_replaced_count_as_free(workspace: LocalWorkspace) -> None:
    await workspace.write("file", pieces(bytes(9 * MIB)))

    await workspace.write("file", pieces(bytes(10 * MIB)))

    with pytest.raises(QuotaExceeded):
        await workspace.write("file", pieces(bytes(10 * MIB + 1)))
    assert (await workspace.usage()).total_bytes == 10 * MIB


async def test_a_workspace_over_its_quota_can_still_be_made_smaller(workspace: LocalWorkspace, root: Path) -> None:
    (root / "huge").write_bytes(bytes(20 * MIB))

    await workspace.write("huge", pieces(bytes(15 * MIB)))
    with pytest.raises(QuotaExceeded):
        await workspace.write("other", pieces(b"x"))
    await workspace.delete("huge")

    await workspace.write("other", pieces(b"x"))


async def test_writes_at_once_share_the_quota(workspace: LocalWorkspace) -> None:
    results = await asyncio.gather(
        *(workspace.write(str(number), pieces(*[bytes(MIB)] * 3)) for number in range(6)), return_exceptions=True
    )

    refused = [result for result in results if isinstance(result, QuotaExceeded)]
    assert len(refused) >= 3
    assert (await workspace.usage()).total_bytes <= 10 * MIB


async def test_too_many_files_are_refused(root: Path) -> None:
    workspace = LocalWorkspace(root, None, max_files=2)
    await workspace.write("1", pieces())
    await workspace.write("2", pieces())

    with pytest.raises(QuotaExceeded):
        await workspace.write("3", pieces())

    await workspace.write("2", pieces(b"again"))
    assert set(everything(root)) == {"1", "2"}


async def test_a_file_larger_than_the_system_allows_is_a_clear_error(root: Path) -> None:
    workspace = LocalWorkspace(root, None)
    await workspace.write("file", pieces(b"old"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MIB, limits[1]))
    try:
        with pytest.raises(QuotaExceeded, match="file too large"):
            await workspace.write("file", pieces(*[bytes(MIB)] * 6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert everything(root) == {"file": b"old"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


async def test_a_full_disk_is_a_clear_error(small_disk: Path) -> None:
    root = small_disk / "workspace"
    root.mkdir()
    workspace = LocalWorkspace(root, None)
    await workspace.write("file", pieces(b"old"))

    with pytest.raises(QuotaExceeded, match="no space left"):
        await workspace.write("file", pieces(*[bytes(MIB)] * 3))

    assert everything(root) == {"file": b"old"}


async def test_usage_counts_files_and_hard_links_once(workspace: LocalWorkspace, root: Path) -> None:
    (root / "folder").mkdir()
    (root / "folder" / "file").write_bytes(bytes(1000))
    (root / "again").hardlink_to(root / "folder" / "file")
    (root / "link").symlink_to("folder")
    (root / "sparse").touch()
    os.truncate(root / "sparse", 5 << 30)

    assert await workspace.usage() == Usage(3, 1000 + len("folder") + (5 << 30))


async def test_usage_is_measured_at_most_once_a_second(workspace: LocalWorkspace, root: Path) -> None:
    await workspace.write("ours", pieces(b"12"))
    before = await workspace.usage()
    (root / "theirs").write_bytes(b"345")

    soon = await workspace.usage()
    await workspace.write("ours", pieces(b"1234"))
    after_our_own = await workspace.usage()
    await asyncio.sleep(1.1)
    later = await workspace.usage()

    assert before == soon == Usage(1, 2)
    assert after_our_own == Usage(1, 4)
    assert later == Usage(2, 7)


# Listing


async def test_a_folder_is_listed_sorted(workspace: LocalWorkspace, root: Path) -> None:
    for path in ("b/2", "b/1", "a/x/y", "c"):
        await workspace.write(path, pieces(b"x"))
    (root / "empty").mkdir()

    assert await paths(workspace, recursive=False) == ["a", "b", "c", "empty"]
    assert await paths(workspace) == ["a", "a/x", "a/x/y", "b", "b/1", "b/2", "c", "empty"]
    assert await paths(workspace, "b") == ["b/1", "b/2"]
    assert await paths(workspace, "c") == ["c"]
    assert await paths(workspace, "empty") == []


async def test_a_list_tells_what_each_thing_is(workspace: LocalWorkspace, root: Path) -> None:
    await workspace.write("file", pieces(b"123"))
    (root / "folder").mkdir(mode=0o750)
    (root / "link").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe", 0o600)

    infos = {info.path: info for info in await workspace.list()}

    assert {path: info.type for path, info in infos.items()} == {
        "file": "file",
        "folder": "directory",
        "link": "link",
        "pipe": "other",
    }
    assert (infos["file"].size, infos["file"].mode, infos["folder"].mode) == (3, 0o644, 0o750)


async def test_a_recursive_list_follows_no_link(workspace: LocalWorkspace, root: Path) -> None:
    await workspace.write("folder/file", pieces(b"x"))
    (root / "folder" / "up").symlink_to("..")
    (root / "folder" / "out").symlink_to("/")
    (root / "link").symlink_to("folder")

    assert await paths(workspace) == ["folder", "folder/file", "folder/out", "folder/up", "link"]
    assert await paths(workspace, "link") == ["link/file", "link/out", "link/up"]
    with pytest.raises(OutsideWorkspace):
        await workspace.list("folder/out")


@pytest.mark.parametrize("name", [b"caf\xe9.txt", rb"caf\xe9.txt", rb"C:\temp\new", b"tab\tnewline\n", b"%FF"])
async def test_an_odd_name_is_listed_read_moved_and_deleted(workspace: LocalWorkspace, root: Path, name: bytes) -> None:
    (root / os.fsdecode(name)).write_bytes(b"odd")

    [shown] = await paths(workspace)

    shown.encode()
    assert await read(workspace, shown) == b"odd"
    await workspace.move(shown, f"folder/{shown}")
    assert os.listdir(os.fsencode(root / "folder")) == [name]
    await workspace.delete(f"folder/{shown}")
    assert await paths(workspace) == ["folder"]


async def test_a_file_from_an_impossible_year_can_be_listed(workspace: LocalWorkspace, root: Path) -> None:
    (root / "file").touch()
    os.utime(root / "file", (0, 2**40))

    [info] = await workspace.list()

    assert info.modified_at.year > 2400


async def test_ten_thousand_files_are_listed_fast(workspace: LocalWorkspace, root: Path) -> None:
    for folder in range(100):
        (root / f"{folder:02}").mkdir()
        for number in range(100):
            (root / f"{folder:02}" / f"{number:02}").touch()

    started = time.monotonic()
    found = await workspace.list(recursive=True)
    usage = await workspace.usage()

    assert len(found) == 10_100
    assert usage == Usage(10_000, 0)
    assert time.monotonic() - started < 5


# Deleting and moving


async def test_a_file_a_link_and_a_folder_are_deleted(workspace: LocalWorkspace, root: Path) -> None:
    await workspace.write("folder/deep/file", pieces(b"x"))
    (root / "folder" / "deep" / "out").symlink_to(root.parent)
    (root / "link").symlink_to("folder")
    (root / "dangling").symlink_to("/nowhere/at/all")
    (root / "folder" / "deep").chmod(0o500)

    await workspace.delete("link")
    assert await paths(workspace, recursive=False) == ["dangling", "folder"]
    await workspace.delete("dangling")
    await workspace.delete("folder")

    assert everything(root) == {}
    assert (root.parent / "secret").exists()
    assert await workspace.usage() == Usage(0, 0)


@pytest.mark.parametrize("path", ["", "."])
async def test_the_workspace_itself_is_not_deleted_or_moved(workspace: LocalWorkspace, path: str) -> None:
    with pytest.raises(BadPath):
        await workspace.delete(path)
    with pytest.raises(BadPath):
        await workspace.move(path, "inside")
    with pytest.raises(BadPath):
        await workspace.move("inside", path)


async def test_a_move_makes_the_folders_of_its_target(workspace: LocalWorkspace, root: Path) -> None:
    await workspace.write("file", pieces(b"x"))

    info = await workspace.move("file", "a/b/moved")

    assert (info.path, info.size) == ("a/b/moved", 1)
    assert everything(root) == {"a": None, "a/b": None, "a/b/moved": b"x"}


async def test_a_move_overwrites_only_when_told(workspace: LocalWorkspace, root: Path) -> None:
    await workspace.write("new", pieces(b"new"))
    await workspace.write("old", pieces(b"old"))

    with pytest.raises(FileConflict):
        await workspace.move("new", "old")
    assert everything(root) == {"new": b"new", "old": b"old"}
    await workspace.move("new", "old", overwrite=True)

    assert everything(root) == {"old": b"new"}
    assert await workspace.usage() == Usage(1, 3)


async def test_a_folder_is_moved_whole_but_never_overwritten_or_into_itself(
    workspace: LocalWorkspace, root: Path
) -> None:
    await workspace.write("folder/file", pieces(b"x"))
    await workspace.write("file", pieces(b"x"))
    (root / "other").mkdir()
    (root / "way").symlink_to("folder")

    for target in ("folder/below", "folder/a/b/c", "way/below", "other", "file"):
        with pytest.raises(FileConflict):
            await workspace.move("folder", target, overwrite=True)
    assert await paths(workspace) == ["file", "folder", "folder/file", "other", "way"]
    await workspace.move("folder", "other/moved")

    assert await paths(workspace) == ["file", "other", "other/moved", "other/moved/file", "way"]


async def test_a_move_never_leaves_the_workspace(workspace: LocalWorkspace, root: Path) -> None:
    await workspace.write("file", pieces(b"x"))
    (root / "out").symlink_to("..")

    for source, target in (("file", "out/file"), ("out/secret", "mine"), ("file", "../file"), ("file", "/tmp/file")):  # noqa: S108
        with pytest.raises(OutsideWorkspace):
            await workspace.move(source, target)

    assert sorted(os.listdir(root.parent)) == ["secret", "workspace"]


async def test_one_name_of_a_file_moved_over_another_is_gone(workspace: LocalWorkspace, root: Path) -> None:
    await workspace.write("one", pieces(b"x"))
    (root / "two").hardlink_to(root / "one")

    await workspace.move("one", "two", overwrite=True)
    await workspace.move("two", "two", overwrite=True)

    assert everything(root) == {"two": b"x"}


# While others work on the same files


async def test_a_folder_swapped_for_a_link_lets_nothing_in_or_out(workspace: LocalWorkspace, root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    (root / "folder").mkdir()
    (root / "folder" / "file").write_bytes(b"inside")
    (root / "link").symlink_to(outside)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            for source, target in (("folder", "away"), ("link", "folder"), ("folder", "link"), ("away", "folder")):
                with suppress(OSError):
                    os.rename(root / source, root / target)

    thread = threading.Thread(target=swap)
    thread.start()
    seen: set[bytes | str] = set()
    try:
        async with asyncio.timeout(60):
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                with suppress(WorkspaceError):
                    seen.add(await read(workspace, "folder/file"))
                with suppress(WorkspaceError):
                    await workspace.write("folder/new", pieces(b"new"))
                with suppress(WorkspaceError):
                    await workspace.move("folder/new", "folder/moved", overwrite=True)
                with suppress(WorkspaceError):
                    await workspace.delete("folder/moved")
                with suppress(WorkspaceError):
                    seen.update(info.path for info in await workspace.list("folder", recursive=True))
    finally:
        over.set()
        thread.join()

    assert b"secret" not in seen
    assert b"inside" in seen
    assert everything(outside) == {"file": b"secret"}


async def test_deleting_gets_through_while_files_are_added(workspace: LocalWorkspace, root: Path) -> None:
    (root / "folder" / "deep").mkdir(parents=True)
    over = threading.Event()

    def add() -> None:
        number = 0
        while not over.is_set():
            number += 1
            with suppress(OSError):
                (root / "folder" / "deep" / str(number)).touch()

    thread = threading.Thread(target=add)
    thread.start()
    try:
        await asyncio.sleep(0.1)
        await workspace.delete("folder")
    finally:
        over.set()
        thread.join()

    assert not (root / "folder").exists()


# The end


async def test_remove_takes_everything_and_may_be_repeated(workspace: LocalWorkspace, root: Path) -> None:
    await workspace.write("a/b/c", pieces(b"x"))
    (root / "a" / "b").chmod(0)
    (root / "out").symlink_to("..")
    os.chmod(root, 0)

    await workspace.remove()
    await workspace.remove()

    assert os.listdir(root.parent) == ["secret"]
    with pytest.raises(NoSuchFile):
        await workspace.list()
    with pytest.raises(NoSuchFile):
        await workspace.write("file", pieces(b"x"))


# Folders


async def test_a_folder_is_made_with_those_above_it_and_never_over_something(
    workspace: LocalWorkspace, root: Path
) -> None:
    info = await workspace.make_folder("a/b")
    await workspace.write("file", pieces(b"x"))

    assert (info.path, info.type) == ("a/b", "directory")
    for taken in ("a/b", "a", "file", "file/below"):
        with pytest.raises(FileConflict):
            await workspace.make_folder(taken)
    assert everything(root) == {"a": None, "a/b": None, "file": b"x"}


async def test_no_folder_is_made_outside_through_a_link(workspace: LocalWorkspace, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (root / "link").symlink_to(tmp_path / "outside")

    for path in ("link/new", "../new", "/new"):
        with pytest.raises(OutsideWorkspace):
            await workspace.make_folder(path)

    assert everything(tmp_path / "outside") == {}
