"""One session on all processors leaves others what they had, as far as the system has groups for that."""

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from kernels import cgroups
from kernels.children import Child, Order, connection_at

SPIN = "while True: pass"
HOG = f"import os, signal\nfor _ in range(15): os.fork() or exec({SPIN!r})\n{SPIN}"
ROUND_S = 2.0


@pytest.fixture
def hierarchy() -> cgroups.Hierarchy:
    found, reason = cgroups.found()
    if found is None or "cpu" not in found.folders:
        pytest.skip(f"No cgroups for the processor here: {reason}")
    return found


@asynccontextmanager
async def running(folder: Path, hierarchy: cgroups.Hierarchy, code: str) -> AsyncIterator[Child]:
    """A process that is no kernel, in a group of its own as one."""
    os.mkdir(folder)
    order = Order(
        kernel_id=str(uuid4()), argv=[sys.executable, "-c", code], env={"PATH": os.environ["PATH"]}, cwd=str(folder),
        log=str(folder / "kernel.log"), memory_bytes=None, journal_bytes=0, about={},
    )  # fmt: skip
    group = hierarchy.group(f"test-{uuid4().hex[:8]}")
    child = Child(order, connection_at(folder / "runtime", "python3"), folder / "runtime", group=group)
    await child.launch()
    try:
        yield child
    finally:
        await child.kill("It was ended.")


@pytest.fixture
def first_of_all(hierarchy: cgroups.Hierarchy) -> Iterator[cgroups.Hierarchy]:
    """Where groups have the processors to themselves, whatever else this machine has to do."""
    if hierarchy.version != 1:
        pytest.skip("Groups of version 1 are needed to put one before all others")
    folder = hierarchy.folders["cpu"] / f"test-{uuid4().hex[:8]}"
    folder.mkdir()
    (folder / "cpu.shares").write_text("262144")
    inner = cgroups.Hierarchy(hierarchy.version, {**hierarchy.folders, "cpu": folder})
    yield inner
    inner.leave()
    folder.rmdir()


async def part_of_a_processor(child: Child) -> float:
    """That it got during a round."""
    began, used = time.monotonic(), child.cpu_seconds()
    await asyncio.sleep(ROUND_S)
    return (child.cpu_seconds() - used) / (time.monotonic() - began)


@pytest.mark.slow
async def test_beside_sixteen_spinning_processes_a_neighbour_keeps_four_fifths_of_its_throughput(
    first_of_all: cgroups.Hierarchy, tmp_path: Path
) -> None:
    kept = []
    async with running(tmp_path / "calm", first_of_all, SPIN) as calm:
        for number in range(3):
            alone = await part_of_a_processor(calm)
            async with running(tmp_path / f"hog{number}", first_of_all, HOG) as hog:
                while len(hog.family()) < 16:
                    await asyncio.sleep(0.02)
                beside = await part_of_a_processor(calm)
            kept.append(beside / alone)
    assert statistics.median(kept) >= 0.8, kept
