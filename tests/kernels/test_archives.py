"""Archives out of a workspace and into one, most of them made to do harm."""

import asyncio
import gzip
import io
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest

from kernels.engine import Usage, Workspace
from kernels.errors import BadArchive, FileConflict, OutsideWorkspace, QuotaExceeded, WorkspaceError
from kernels.workspace import LocalWorkspace

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1 << 20


@pytest.fixture
def workspace(root: Path) -> Workspace:
    return LocalWorkspace(root, quota_bytes=10 * MIB)


@pytest.fixture
def copy(tmp_path: Path) -> LocalWorkspace:
    (tmp_path / "copy").mkdir()
    return LocalWorkspace(tmp_path / "copy", quota_bytes=None)


async def pieces(data: bytes, size: int = 1 << 16) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def packed(workspace: Workspace) -> bytes:
    return b"".join([piece async for piece in workspace.archive()])


def everything(root: Path) -> dict[str, tuple[Any, ...]]:
    """Each path with its type, mode, time in nanoseconds, and content."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in root.rglob("*"):
        status = path.lstat()
        readable = path.is_file() and os.access(path, os.R_OK)
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if readable else None
        mode = None if path.is_symlink() else stat.S_IMODE(status.st_mode)
        found[str(path.relative_to(root))] = (stat.S_IFMT(status.st_mode), mode, status.st_mtime_ns, content)
    return found


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **fields: Any
) -> tuple[tarfile.TarInfo, bytes]:
    header = tarfile.TarInfo(name)
    header.type = kind
    header.size = len(content)
    for field, value in fields.items():
        setattr(header, field, value)
    return header, content


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.LNKTYPE, linkname=target)


def folder(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.DIRTYPE, mode=fields.pop("mode", 0o755), **fields)


def plain_tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    data = bytearray()
    for header, content in entries:
        data += header.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512)
    return bytes(data) + bytes(1024)


# There and back


async def test_everything_comes_back_as_it_was(workspace: Workspace, root: Path, copy: LocalWorkspace) -> None:
    (root / "folder" / "deep").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o700)
    (root / "folder" / "file").write_bytes(os.urandom(3000))
    (root / "folder" / "deep" / "script").touch(mode=0o755)
    (root / "nothing").touch()
    (root / "link").symlink_to("folder/../folder/file")
    (root / "dangling").symlink_to("missing")
    (root / "folder" / "again").hardlink_to(root / "folder" / "file")
    (root / ("long" * 60)).mkdir()
    (root / ("long" * 60) / ("name" * 60)).write_text("long")
    (root / "日本 é\n").write_text("odd")
    (root / os.fsdecode(b"caf\xe9")).write_text("odd")
    (root / r"C:\temp\new").write_text("odd")
    (root / "closed").touch(mode=0o200)
    for number, (path, *_) in enumerate(os.walk(root, topdown=False)):
        os.utime(path, ns=(0, 1_700_000_000_123_456_789 + number))
    os.utime(root / "link", ns=(0, 1_600_000_000_000_000_001), follow_symlinks=False)
    os.utime(root / "nothing", ns=(0, -1_500_000_000))
    (root / "folder" / "deep").chmod(0o555)
    before = everything(root)

    usage = await copy.unpack(pieces(await packed(workspace)), ours=True)

    copied = root.parent / "copy"
    assert everything(copied) == before
    assert (copied / "folder" / "again").samefile(copied / "folder" / "file")
    assert usage == await workspace.usage()


async def test_links_that_lead_out_come_back_only_in_an_archive_of_ours(
    workspace: Workspace, root: Path, copy: LocalWorkspace
) -> None:
    (root / "venv" / "bin").mkdir(parents=True)
    (root / "venv" / "bin" / "python").symlink_to(sys.executable)
    archive = await packed(workspace)

    with pytest.raises(OutsideWorkspace, match="venv/bin/python"):
        await copy.unpack(pieces(archive))
    assert everything(root.parent / "copy") == {}
    await copy.unpack(pieces(archive), ours=True)

    assert everything(root.parent / "copy") == everything(root)
    with pytest.raises(OutsideWorkspace):
        await copy.info("venv/bin/python")


@pytest.mark.skipif(shutil.which("zstd") is None or shutil.which("tar") is None, reason="needs tar and zstd")
async def test_the_usual_tools_read_an_archive(workspace: Workspace, root: Path) -> None:
    await workspace.write("folder/file", pieces(b"hello"))
    (root.parent / "archive.tar.zst").write_bytes(await packed(workspace))

    command = ["tar", "--zstd", "-xOf", str(root.parent / "archive.tar.zst"), "folder/file"]
    told = subprocess.run(command, capture_output=True, check=True)  # noqa: ASYNC221

    assert told.stdout == b"hello"


@pytest.mark.parametrize("how", [bytes, gzip.compress, zstd.compress])
async def test_a_tar_is_unpacked_however_it_is_compressed(
    workspace: Workspace, root: Path, how: Callable[[bytes], bytes]
) -> None:
    (root.parent / "source" / "a").mkdir(parents=True)
    (root.parent / "source" / "a" / "file").write_text("hello")
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(root.parent / "source", arcname=".")

    usage = await workspace.unpack(pieces(how(made.getvalue()), size=100))

    assert usage == Usage(1, 5)
    assert (root / "a" / "file").read_text() == "hello"


async def test_sockets_pipes_and_our_own_files_are_left_out(
    workspace: Workspace, root: Path, copy: LocalWorkspace
) -> None:
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    (root / f".workspace-{'a' * 32}").touch()
    (root / "file").touch()

    async with asyncio.timeout(10):
        await copy.unpack(pieces(await packed(workspace)))

    assert set(everything(root.parent / "copy")) == {"file"}


async def test_an_empty_workspace_has_an_archive(workspace: Workspace, copy: LocalWorkspace) -> None:
    assert await copy.unpack(pieces(await packed(workspace))) == Usage(0, 0)


async def test_a_sparse_file_stays_sparse_and_costs_little(root: Path, copy: LocalWorkspace) -> None:
    (root / "sparse").touch()
    os.truncate(root / "sparse", 500 * MIB)
    with open(root / "sparse", "r+b") as sparse:
        sparse.seek(300 * MIB + 5)
        sparse.write(b"here")

    archive = await packed(LocalWorkspace(root, None))
    await copy.unpack(pieces(archive))

    assert len(archive) < MIB
    copied = root.parent / "copy" / "sparse"
    assert copied.stat().st_size == 500 * MIB
    assert copied.stat().st_blocks * 512 <= 4 * MIB
    assert copied.read_bytes().strip(b"\0") == b"here"


async def test_files_that_change_meanwhile_do_not_damage_the_archive(root: Path, copy: LocalWorkspace) -> None:
    for number in range(40):
        (root / str(number)).write_bytes(bytes(200_000))
    over = threading.Event()

    def change() -> None:
        dice = random.Random(7)  # noqa: S311 - no secret
        while not over.is_set():
            path = root / str(dice.randrange(40))
            with suppress(OSError):
                os.truncate(path, dice.randrange(400_000))
            with suppress(OSError):
                os.replace(root / str(dice.randrange(40)), root / "moved")
            (root / str(dice.randrange(40))).write_bytes(b"back")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        archives_made = [await packed(LocalWorkspace(root, None)) for _ in range(20)]
    finally:
        over.set()
        thread.join()

    for archive in archives_made:
        await copy.unpack(pieces(archive))


async def test_a_consumer_that_leaves_stops_the_archive(root: Path) -> None:
    for number in range(8):
        (root / str(number)).write_bytes(os.urandom(2 * MIB))
    workspace = LocalWorkspace(root, None)
    descriptors = len(os.listdir("/dev/fd"))

    async with aclosing(workspace.archive()) as archive:
        first = await anext(archive)

    assert 0 < len(first) <= MIB
    assert len(os.listdir("/dev/fd")) == descriptors


async def test_ten_thousand_files_go_there_and_back(root: Path, copy: LocalWorkspace) -> None:
    for number in range(100):
        (root / str(number)).mkdir()
        for file in range(100):
            (root / str(number) / str(file)).write_bytes(b"%d" % file)

    usage = await copy.unpack(pieces(await packed(LocalWorkspace(root, None))))

    assert usage.file_count == 10_000
    assert everything(root.parent / "copy") == everything(root)


# Over what is there


async def test_an_archive_goes_over_what_is_there(workspace: Workspace, root: Path) -> None:
    await workspace.write("a/kept", pieces(b"kept"))
    await workspace.write("a/old", pieces(b"old"))
    (root / "a").chmod(0o711)
    (root / "a" / "was").symlink_to("kept")

    usage = await workspace.unpack(
        pieces(plain_tar(entry("a/old", content=b"newer"), entry("a/b/c", content=b"c"), entry("a/was", content=b"w")))
    )

    contents = {path: told[-1] for path, told in everything(root).items() if told[-1] is not None}
    assert contents == {"a/kept": b"kept", "a/old": b"newer", "a/b/c": b"c", "a/was": b"w"}
    assert (root / "a").stat().st_mode & 0o777 == 0o711
    assert usage == Usage(4, 11)


@pytest.mark.parametrize("name", ["a", "file/below", "file/below/deeper", "way/file", "dangling/file"])
async def test_a_file_where_a_folder_is_changes_nothing(workspace: Workspace, root: Path, name: str) -> None:
    await workspace.write("a/b", pieces(b"x"))
    await workspace.write("file", pieces(b"x"))
    (root / "way").symlink_to("a")
    (root / "dangling").symlink_to("missing")
    before = everything(root)

    with pytest.raises(FileConflict):
        await workspace.unpack(pieces(plain_tar(entry("first"), entry(name, content=b"y"), entry("z"))))

    assert everything(root) == before


async def test_an_entry_through_a_link_that_is_there_stays_inside(workspace: Workspace, root: Path) -> None:
    (root / "out").symlink_to("..")

    with pytest.raises(OutsideWorkspace):
        await workspace.unpack(pieces(plain_tar(entry("out/secret", content=b"overwritten"))))

    assert (root.parent / "secret").read_text() == "secret"


async def test_an_error_on_the_last_step_takes_all_steps_back(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        await workspace.write(name, pieces(b"old"))
    before = everything(root)
    rename = os.rename

    def fails_late(source: Any, target: Any, **where: Any) -> None:
        if source == target == b"z":
            raise PermissionError(1, "no")
        rename(source, target, **where)

    monkeypatch.setattr(os, "rename", fails_late)
    with pytest.raises(FileConflict):
        await workspace.unpack(
            pieces(plain_tar(*(entry(name, content=b"new") for name in ("a", "b", "c", "new/file", "z"))))
        )

    assert everything(root) == before


async def test_what_is_unpacked_has_no_special_rights(workspace: Workspace, root: Path) -> None:
    await workspace.unpack(
        pieces(plain_tar(entry("program", mode=0o6755, uid=12345, gid=12345), folder("folder", mode=0o7777)))
    )

    program = (root / "program").stat()
    assert stat.S_IMODE(program.st_mode) == 0o755
    assert program.st_uid == os.geteuid()
    assert stat.S_IMODE((root / "folder").stat().st_mode) == 0o777


# Refused


OUTSIDE = {
    "absolute": [entry("/etc/passwd")],
    "climbing": [entry("../secret")],
    "climbing_late": [entry("a/b/../../../secret")],
    "climbing_folder": [folder("..")],
    "windows_drive": [entry("C:\\Windows\\system.ini")],
    "windows_drive_with_slash": [entry("c:/windows/system.ini")],
    "windows_share": [entry("\\\\server\\share")],
    "windows_climbing": [entry("a\\..\\..\\secret")],
    "link_absolute": [link("link", "/etc/passwd")],
    "link_climbing": [link("link", "../secret")],
    "link_climbing_from_a_folder": [link("a/b/link", "../../../secret")],
    "link_climbing_late": [folder("a"), link("up", "a/../..")],
    "link_over_a_link": [folder("a/b"), link("a/b/up", "../.."), link("out", "a/b/up/../secret")],
    "link_over_a_later_link": [link("out", "a/b/up/.."), folder("a/b"), link("a/b/up", "../..")],
    "file_below_such_a_link": [link("link", ".."), entry("link/secret")],
    "hard_link_absolute": [hard_link("link", "/etc/passwd")],
    "hard_link_climbing": [hard_link("link", "../secret")],
    "absolute_by_extended_header": [entry("short", pax_headers={"path": "/etc/passwd"})],
    "climbing_by_extended_header": [entry("short", pax_headers={"path": "../secret"})],
    "link_by_extended_header": [entry("l", tarfile.SYMTYPE, linkname="a", pax_headers={"linkpath": "../secret"})],
}

BAD = {
    "device": [entry("zero", tarfile.CHRTYPE, devmajor=1, devminor=5)],
    "block_device": [entry("disk", tarfile.BLKTYPE, devmajor=8, devminor=0)],
    "pipe": [entry("pipe", tarfile.FIFOTYPE)],
    "unknown_type": [entry("what", b"Z")],
    "no_name": [entry("")],
    "nul_in_name": [entry("short", pax_headers={"path": "a\0b"})],
    "long_name": [entry("x" * 256)],
    "name_of_ours": [entry(f".workspace-{'0' * 32}")],
    "twice": [entry("file"), entry("file")],
    "twice_in_other_words": [entry("a/file"), entry("./a//file")],
    "file_and_folder": [entry("a"), entry("a/file")],
    "folder_and_file": [entry("a/file"), entry("a")],
    "file_below_a_link": [folder("a"), link("link", "a"), entry("link/file")],
    "link_for_a_folder_with_files": [entry("a/file"), link("a", "b")],
    "empty_link": [link("link", "")],
    "hard_link_to_nothing": [hard_link("link", "missing")],
    "hard_link_to_a_later_file": [hard_link("link", "file"), entry("file")],
    "hard_link_to_a_folder": [folder("a"), hard_link("link", "a")],
    "hard_link_to_a_link": [entry("file"), link("link", "file"), hard_link("again", "link")],
    "hard_link_to_itself": [hard_link("link", "link")],
    "size_of_an_extended_header": [entry("file", pax_headers={"size": "-5"})],
    "sparse": [entry("file", pax_headers={"GNU.sparse.realsize": "5000"})],
    "long_extended_header": [entry("file", pax_headers={"comment": "x" * 100_000})],
    "time_that_is_none": [entry("file", pax_headers={"mtime": "inf"})],
}


@pytest.mark.parametrize(
    ("refusal", "entries"),
    [
        *((OutsideWorkspace, entries) for entries in OUTSIDE.values()),
        *((BadArchive, entries) for entries in BAD.values()),
    ],
    ids=[*OUTSIDE, *BAD],
)
async def test_one_bad_entry_refuses_the_whole_archive(
    workspace: Workspace, root: Path, refusal: type[WorkspaceError], entries: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    await workspace.write("there", pieces(b"there"))
    before = everything(root)

    with pytest.raises(refusal):
        await workspace.unpack(pieces(zstd.compress(plain_tar(entry("first", content=b"x"), *entries, entry("last")))))

    assert everything(root) == before
    assert sorted(os.listdir(root.parent)) == ["secret", "workspace"]


@pytest.mark.parametrize(
    "name", ["absolute", "climbing", "climbing_late", "hard_link_climbing", "file_below_such_a_link"]
)
async def test_an_archive_of_ours_still_writes_nothing_outside(workspace: Workspace, root: Path, name: str) -> None:
    with pytest.raises((OutsideWorkspace, BadArchive)):
        await workspace.unpack(pieces(plain_tar(*OUTSIDE[name])), ours=True)

    assert everything(root) == {}


async def test_harmless_links_are_unpacked(workspace: Workspace, root: Path) -> None:
    harmless = [
        entry("a/b/file", content=b"x"),
        link("a/b/up", "../../a/b/file"),
        link("a/b/self", "file"),
        link("later", "z"),
        link("absolute", str(root / "a")),
        entry("z"),
        hard_link("again", "./a/b/file"),
        hard_link("and/again", "again"),
    ]

    usage = await workspace.unpack(pieces(plain_tar(*harmless)))

    assert (root / "a/b/up").read_bytes() == b"x"
    assert (root / "and/again").samefile(root / "a/b/file")
    assert usage.file_count == 6


# Damaged, or too much


@pytest.mark.parametrize("how", [bytes, gzip.compress, zstd.compress])
async def test_a_truncated_archive_changes_nothing(
    workspace: Workspace, root: Path, how: Callable[[bytes], bytes]
) -> None:
    noise = random.Random(7).randbytes(10_000)  # noqa: S311 - no secret
    whole = how(plain_tar(entry("a", content=noise[:5000]), entry("b", content=noise[5000:])))
    await workspace.unpack(pieces(whole))
    for name in ("a", "b"):
        await workspace.delete(name)

    for length in [0, 1, 3, 4, 100, 511, 512, 1000, 512 * 11, 512 * 12, len(whole) - 1024]:
        with pytest.raises(BadArchive):
            await workspace.unpack(pieces(whole[:length]))
        assert everything(root) == {}


@pytest.mark.parametrize("how", [bytes, gzip.compress, zstd.compress])
async def test_a_damaged_archive_is_refused_or_harmless(
    workspace: Workspace, root: Path, how: Callable[[bytes], bytes]
) -> None:
    dice = random.Random(7)  # noqa: S311 - no secret
    whole = how(plain_tar(entry("a", content=dice.randbytes(2000)), link("b", "a"), entry("c/d", content=b"d" * 999)))

    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(dice.randrange(1, 5)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        try:
            await workspace.unpack(pieces(bytes(damaged)))
        except WorkspaceError:
            assert everything(root) == {}
        for info in await workspace.list():
            await workspace.delete(info.path)

    assert sorted(os.listdir(root.parent)) == ["secret", "workspace"]


@pytest.mark.parametrize(
    "data", [b"hello", b"PK\x03\x04" + bytes(2000), os.urandom(5000), b"\x28\xb5\x2f\xfd", b"\x1f\x8b"]
)
async def test_what_is_no_archive_is_refused(workspace: Workspace, root: Path, data: bytes) -> None:
    with pytest.raises(BadArchive):
        await workspace.unpack(pieces(data))

    assert everything(root) == {}


def zeros(size: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """Compressed, of course."""
    compressor = zstd.ZstdCompressor(level=1)
    return b"".join(
        [
            compressor.compress(before),
            *(compressor.compress(bytes(MIB)) for _ in range(size // MIB)),
            compressor.compress(after),
            compressor.flush(),
        ]
    )


def big_header(name: str, size: int, kind: bytes = tarfile.REGTYPE, **fields: Any) -> bytes:
    return entry(name, kind, **fields)[0].tobuf(tarfile.GNU_FORMAT) if not size else _sized(name, size, kind, **fields)


def _sized(name: str, size: int, kind: bytes, **fields: Any) -> bytes:
    header, _ = entry(name, kind, **fields)
    header.size = size
    return header.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "bomb", ["a_file", "nothing_but_zeros", "a_hidden_rest", "an_extended_header", "a_long_name", "a_link"]
)
async def test_a_bomb_is_stopped_early(workspace: Workspace, root: Path, bomb: str) -> None:
    size = 10_000 * MIB
    before = {
        "a_file": _sized("big", size, tarfile.REGTYPE),
        "nothing_but_zeros": b"",
        "a_hidden_rest": plain_tar(entry("small")),
        "an_extended_header": _sized("x", size, tarfile.XHDTYPE),
        "a_long_name": _sized("x", size, tarfile.GNUTYPE_LONGNAME),
        "a_link": plain_tar(entry("small"))[:512] + _sized("x", size, tarfile.LNKTYPE, linkname="small"),
    }[bomb]
    data = await asyncio.to_thread(zeros, size, before)
    started = time.monotonic()

    with pytest.raises((QuotaExceeded, BadArchive)):
        await workspace.unpack(pieces(data))

    assert time.monotonic() - started < 5
    assert everything(root) == {}


async def test_many_small_files_are_counted(root: Path) -> None:
    workspace = LocalWorkspace(root, None, max_files=100)
    entries = [entry(str(number)) for number in range(101)]

    with pytest.raises(QuotaExceeded):
        await workspace.unpack(pieces(plain_tar(*entries)))
    with pytest.raises(QuotaExceeded):
        await workspace.unpack(pieces(plain_tar(entry("/".join("x" * 101)))))
    await workspace.unpack(pieces(plain_tar(*entries[:100])))
    await workspace.unpack(pieces(plain_tar(*entries[:100])))
    with pytest.raises(QuotaExceeded):
        await workspace.unpack(pieces(plain_tar(entries[100])))

    assert (await workspace.usage()).file_count == 100


async def test_an_archive_counts_with_what_is_there_and_without_what_it_replaces(
    workspace: Workspace, root: Path
) -> None:
    await workspace.write("kept", pieces(bytes(4 * MIB)))
    await workspace.write("replaced", pieces(bytes(4 * MIB)))

    with pytest.raises(QuotaExceeded):
        await workspace.unpack(pieces(plain_tar(entry("new", content=bytes(3 * MIB)))))
    usage = await workspace.unpack(pieces(plain_tar(entry("replaced", content=bytes(6 * MIB)))))

    assert usage == Usage(2, 10 * MIB)
    assert set(everything(root)) == {"kept", "replaced"}


async def test_more_bytes_than_the_workspace_could_hold_are_not_even_kept(root: Path) -> None:
    workspace = LocalWorkspace(root, quota_bytes=MIB)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += MIB
            yield bytes(MIB)

    with pytest.raises(QuotaExceeded):
        await workspace.unpack(endless())

    assert sent <= 260 * MIB
    assert os.listdir(root) == []


async def test_an_unpack_may_be_cancelled_at_any_moment(root: Path) -> None:
    workspace = LocalWorkspace(root, None)
    await workspace.write("0", pieces(b"old"))
    archive = plain_tar(*(entry(str(number), content=bytes(1000)) for number in range(300)))
    before, descriptors = everything(root), len(os.listdir("/dev/fd"))

    for delay_ms in range(0, 120, 4):
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_ms / 1000):
                await workspace.unpack(pieces(archive))
        after = everything(root)
        assert after == before or len(after) == 300
        if after != before:
            break

    assert len(os.listdir("/dev/fd")) == descriptors
    assert not [name for name in os.listdir(root) if name.startswith(".")]


async def test_a_folder_swapped_for_a_link_lets_nothing_unpack_outside(workspace: Workspace, root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("secret")
    (root / "folder").mkdir()
    (root / "link").symlink_to(outside)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            for source, target in (("folder", "away"), ("link", "folder"), ("folder", "link"), ("away", "folder")):
                with suppress(OSError):
                    os.rename(root / source, root / target)

    archive = plain_tar(entry("folder/file", content=b"new"), entry("folder/deep/file", content=b"new"))
    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = set()
    try:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            try:
                await workspace.unpack(pieces(archive))
                outcomes.add("unpacked")
            except WorkspaceError as error:
                outcomes.add(type(error).__name__)
            with suppress(WorkspaceError):
                await packed(workspace)
    finally:
        over.set()
        thread.join()

    assert "unpacked" in outcomes
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_text() == "secret"
