"""Kernels as children of this process: what is told of those that took more memory than they may."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from kernels import cgroups
from kernels.children import Child, MemoryWatch, Order, connection_at
from kernels.engine import Exit

LIMIT_BYTES = 200_000_000
HOG = "x = b'x' * 400_000_000; import time; time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
print(subprocess.run([sys.executable, "-c", {HOG!r}]).returncode, flush=True)
time.sleep(60)
"""


def child(tmp_path: Path, code: str, group: cgroups.Group | None = None) -> Child:
    """A process that is no kernel, as if it were one."""
    folder = tmp_path / "runtime"
    order = Order(
        kernel_id=str(uuid4()),
        argv=[sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"]},
        cwd=str(tmp_path),
        log=str(tmp_path / "kernel.log"),
        memory_bytes=LIMIT_BYTES,
        journal_bytes=0,
        about={},
    )
    return Child(order, connection_at(folder, "python3"), folder, group=group)


async def end_of_watched(child: Child) -> Exit:
    await child.launch()
    watching = asyncio.create_task(MemoryWatch({child.id: child}).watch())
    async with asyncio.timeout(30):
        exit_ = await child.ended()
    watching.cancel()
    return exit_


async def test_without_a_group_memory_of_its_children_ends_a_kernel(tmp_path: Path) -> None:
    hungry = child(tmp_path, PARENT)

    exit_ = await end_of_watched(hungry)

    assert exit_.out_of_memory
    assert f"its limit is {LIMIT_BYTES:,}" in exit_.reason


async def test_without_a_group_files_that_are_nowhere_but_in_memory_count(tmp_path: Path) -> None:
    fill = "import os, time; fd = os.memfd_create('x'); [os.write(fd, bytes(1_000_000)) for _ in range(400)]"
    hungry = child(tmp_path, f"{fill}; time.sleep(60)")

    exit_ = await end_of_watched(hungry)

    assert exit_.out_of_memory


async def test_without_a_group_memory_that_is_mapped_twice_counts_once(tmp_path: Path) -> None:
    """Shared, in a file that is nowhere, by two processes: less than the limit, but for who counts it twice."""
    code = """
import mmap, os, time
fd = os.memfd_create('x')
os.ftruncate(fd, 150_000_000)
mapped = mmap.mmap(fd, 150_000_000)
mapped[:] = bytes(1) * 150_000_000
if os.fork() == 0: sum(mapped[::4096])
print('there', flush=True)
time.sleep(60)
"""
    calm = child(tmp_path, code)
    await calm.launch()
    async with asyncio.timeout(30):
        while (tmp_path / "kernel.log").read_text().count("there") < 2:
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(MemoryWatch({calm.id: calm}).watch())
    await asyncio.sleep(1.5)

    assert calm.running
    watching.cancel()
    await calm.kill("It was ended.")


async def test_a_process_that_was_ended_for_memory_long_ago_is_not_why_its_kernel_is_killed(tmp_path: Path) -> None:
    hierarchy, reason = cgroups.found()
    if hierarchy is None:
        pytest.skip(f"No cgroups here: {reason}")
    group = hierarchy.group(f"test-{uuid4().hex[:8]}")
    group.limit(cgroups.Limits(memory_bytes=LIMIT_BYTES))
    parent = child(tmp_path, PARENT, group)
    await parent.launch()
    async with asyncio.timeout(30):
        while "-9" not in (tmp_path / "kernel.log").read_text():
            await asyncio.sleep(0.02)

    for _ in range(3):
        parent.note_oom_kills()
    os.kill(parent.pid, signal.SIGKILL)
    exit_ = await parent.ended()

    noted = f"Out of memory: the system ended a process of the session; its limit is {LIMIT_BYTES:,} bytes.\n"
    assert (tmp_path / "kernel.log").read_text() == f"-9\n{noted}"
    assert (exit_.signal, exit_.out_of_memory) == (signal.SIGKILL, False)


async def test_a_kernel_that_took_too_much_itself_is_told_though_others_did_before_it(tmp_path: Path) -> None:
    hierarchy, reason = cgroups.found()
    if hierarchy is None:
        pytest.skip(f"No cgroups here: {reason}")
    group = hierarchy.group(f"test-{uuid4().hex[:8]}")
    group.limit(cgroups.Limits(memory_bytes=LIMIT_BYTES))
    hungry = child(tmp_path, f"{PARENT.replace('time.sleep(60)', 'sys.stdin.read()')}\n{HOG}", group)

    exit_ = await end_of_watched(hungry)

    assert exit_.out_of_memory
    assert exit_.reason == f"Out of memory: the session used all of its {LIMIT_BYTES:,} bytes."
