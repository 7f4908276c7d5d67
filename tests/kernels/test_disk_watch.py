"""What a kernel's files take of the disk, whatever it does for them not to be seen."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kernels.children import Child, Order, connection_at
from kernels.disk_watch import DiskWatch, deleted_bytes
from kernels.logs import LIMIT_BYTES

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open files are seen on Linux")

LIMIT = 50 << 20


@asynccontextmanager
async def watched(folder: Path, code: str) -> AsyncIterator[Child]:
    """A child that runs this code in a folder of its own, with a limit on its files."""
    files, state = folder / "files", folder / "state"
    files.mkdir()
    state.mkdir()
    log = str(folder / "logs" / "log")
    order = Order(
        "writer", [sys.executable, "-c", code], dict(os.environ), str(files), log, 1 << 30, 0, {},
        disk_bytes=LIMIT, disk_paths=[str(files)], state_paths=[str(state)],
    )  # fmt: skip
    child = Child(order, connection_at(folder / "folder", "writer"), folder / "folder")
    await child.launch()
    watching = asyncio.create_task(DiskWatch({child.id: child}).watch())
    try:
        yield child
    finally:
        watching.cancel()
        await asyncio.wait({watching})
        await child.kill("The test is over.")


async def test_files_that_are_deleted_but_open_are_counted(tmp_path: Path) -> None:
    code = (
        "import os, time\nfd = os.open('x', os.O_RDWR | os.O_CREAT)\nos.unlink('x')\n"
        "for _ in range(400):\n    os.write(fd, bytes(1 << 20)); time.sleep(0.02)"
    )

    async with watched(tmp_path, code) as child, asyncio.timeout(30):
        exit_ = await child.ended()

    assert exit_.code == 1  # by `File too large`, which could not even be written to its log
    assert "none can grow" in (tmp_path / "logs" / "log").read_text()


async def test_as_soon_as_enough_is_deleted_it_may_write_again(tmp_path: Path) -> None:
    code = (
        "import os, time\nwhile True:\n    try:\n        open('x', 'ab', 0).write(bytes(1 << 20)); time.sleep(0.02)\n"
        "    except OSError:\n        os.unlink('x')\n        break\n"
        "while True:\n    try:\n        open('y', 'ab', 0).write(b'again')\n        break\n"
        "    except OSError:\n        time.sleep(0.1)"
    )

    async with watched(tmp_path, code) as child, asyncio.timeout(30):
        exit_ = await child.ended()

    assert exit_.code == 0
    assert (tmp_path / "files" / "y").read_bytes() == b"again"


async def test_nothing_is_hidden_in_folders_too_deep_to_look_at(tmp_path: Path) -> None:
    code = (
        "import os, time\nfor _ in range(2100):\n    os.mkdir('d')\n    os.chdir('d')\n"
        "while True:\n    open('x', 'ab', 0).write(bytes(1 << 20)); time.sleep(0.02)"
    )

    async with watched(tmp_path, code) as child, asyncio.timeout(30):
        exit_ = await child.ended()

    await asyncio.to_thread(subprocess.check_call, ["rm", "-rf", str(tmp_path / "files")])  # pytest can't
    assert "nested more than" in exit_.reason


@pytest.mark.parametrize("where", ["../folder/sockets", "../state/big"])
async def test_files_beside_its_own_are_counted(tmp_path: Path, where: str) -> None:
    """Where its variables pass through, those that are more than it may have in memory."""
    code = (
        f"import os, time\nfd = os.open({where!r}, os.O_RDWR | os.O_CREAT)\n"
        "os.posix_fallocate(fd, 0, (1 << 30) if 'state' in os.readlink(f'/proc/self/fd/{fd}') else 1)\n"
        "os.lseek(fd, 0, os.SEEK_END)\n"
        "for _ in range(400):\n    os.write(fd, bytes(1 << 20)); time.sleep(0.02)"
    )

    async with watched(tmp_path, code) as child, asyncio.timeout(30):
        exit_ = await child.ended()

    assert exit_.code == 1
    assert "none can grow" in (tmp_path / "logs" / "log").read_text()


def test_only_deleted_files_of_that_disk_are_counted(tmp_path: Path) -> None:
    opened = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("deleted", "kept")]
    fds = [os.memfd_create("in memory"), *opened, os.dup(opened[0])]
    (tmp_path / "deleted").unlink()
    for fd in fds[:3]:
        os.write(fd, bytes(1 << 20))
    os.fsync(fds[1])

    counted = deleted_bytes([str(tmp_path)], [os.getpid(), os.getpid()])
    for fd in fds:
        os.close(fd)

    assert counted == 1 << 20
    assert deleted_bytes([str(tmp_path)], [os.getpid()]) == 0


async def test_a_log_that_a_kernel_writes_to_by_itself_is_shortened(tmp_path: Path) -> None:
    code = "import os, time\nwhile True:\n    os.write(1, bytes(1 << 20)); time.sleep(0.02)"

    async with watched(tmp_path, code), asyncio.timeout(30):
        log, longest = tmp_path / "logs" / "log", 0
        while (size := log.stat().st_size) >= longest:
            longest = size
            await asyncio.sleep(0.01)

    assert longest > LIMIT_BYTES
    assert size <= LIMIT_BYTES
