"""Groups bound what a session takes, tell what was killed for it, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from kernels import cgroups
from kernels.cgroups import Group, Hierarchy, Limits


@pytest.fixture(scope="module")
def hierarchy() -> Hierarchy:
    found, reason = cgroups.found()
    if found is None:
        pytest.skip(f"No cgroups here: {reason}")
    return found


@pytest.fixture
def group(hierarchy: Hierarchy) -> Iterator[Group]:
    group = hierarchy.group(f"test-{uuid4().hex[:8]}")
    yield group
    group.end()
    assert not any(folder.exists() for folder in group.folders)


def _run(group: Group, code: str) -> "subprocess.Popen[str]":
    """A process that is in the group before its code runs."""
    paths = [f"{folder}/cgroup.procs" for folder in group.folders]
    enter = f"import os\nfor path in {paths!r}: open(path, 'w').write('0')\n"
    return subprocess.Popen(
        [sys.executable, "-I", "-c", enter + code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


def _said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _ended(process: "subprocess.Popen[str]") -> int:
    process.communicate()
    return process.returncode


def test_what_needs_too_much_memory_is_killed_and_counted(group: Group) -> None:
    group.limit(Limits(memory_bytes=48 << 20))
    assert group.oom_kills() == 0

    bomb = _run(group, "kept = []\nwhile True: kept.append(bytearray(b'x' * (1 << 20)))")

    assert _ended(bomb) == -signal.SIGKILL
    assert group.oom_kills() == 1
    assert 32 << 20 < group.peak_bytes() <= 48 << 20


def test_a_kill_from_elsewhere_is_no_want_of_memory(group: Group) -> None:
    group.limit(Limits(memory_bytes=256 << 20))
    process = _run(group, "print('here', flush=True); input()")
    assert _said(process) == "here"

    process.kill()

    assert _ended(process) == -signal.SIGKILL
    assert group.oom_kills() == 0


def test_memory_may_be_used_up_to_the_limit_and_no_swap(group: Group) -> None:
    group.limit(Limits(memory_bytes=128 << 20))
    process = _run(group, "kept = bytearray(b'x') * (64 << 20); print(len(kept), flush=True); input()")

    assert _said(process) == str(64 << 20)
    assert group.memory_bytes() > 60 << 20
    assert group.cpu_seconds() > 0
    _ended(process)


def test_a_fork_bomb_stays_in_its_bounds_and_can_be_ended(group: Group) -> None:
    group.limit(Limits(processes=20))
    code = """
import sys
print('begun', flush=True)
while True:
    try: os.fork()
    except OSError: pass
"""
    bomb = _run(group, code)
    assert _said(bomb) == "begun"
    until = time.monotonic() + 10
    while len(group.pids()) < 20 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(group.pids()) == 20
    probe = subprocess.run(["true"], check=False)

    group.end()

    assert probe.returncode == 0
    assert _ended(bomb) == -signal.SIGKILL


def test_a_cpu_hog_gets_its_share(group: Group) -> None:
    if not any("cpu" in folder.parts for folder in group.folders) and not (group.folders[0] / "cpu.max").exists():
        pytest.skip("No cpu controller")
    group.limit(Limits(cpus=0.25))
    process = _run(group, "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass")

    assert _ended(process) == 0
    assert group.cpu_seconds() < 0.6


def test_a_process_and_what_it_forks_are_added(group: Group) -> None:
    code = "import subprocess, sys; print('here', flush=True); input(); subprocess.run(['sleep', '600'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert _said(process) == "here"

    group.add(process.pid)
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    until = time.monotonic() + 10
    while len(group.pids()) < 2 and time.monotonic() < until:
        time.sleep(0.01)

    assert process.pid in group.pids()
    assert len(group.pids()) == 2
    group.end()
    assert _ended(process) == -signal.SIGKILL


def test_ending_twice_is_no_error(hierarchy: Hierarchy) -> None:
    group = hierarchy.group(f"test-{uuid4().hex[:8]}")

    group.end()
    group.end()

    assert not any(folder.exists() for folder in group.folders)


def test_what_a_dead_owner_left_is_swept_and_what_a_living_one_has_is_kept(hierarchy: Hierarchy, group: Group) -> None:
    code = """
import subprocess
from kernels import cgroups
found, _ = cgroups.found()
group = found.group("left")
null = subprocess.DEVNULL
process = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=null, stderr=null)
group.add(process.pid)
print(process.pid, group.folders[0])
"""
    owner = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid, folder = owner.stdout.split()
    assert Path(folder).exists()

    assert hierarchy.sweep() >= 1

    assert not Path(folder).exists()
    assert not Path(folder).parent.exists()
    assert all(folder.exists() for folder in group.folders)
    until = time.monotonic() + 10
    while _runs(int(pid)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not _runs(int(pid))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_who_leaves_takes_its_empty_folders_along(hierarchy: Hierarchy) -> None:
    code = """
from kernels import cgroups
found, _ = cgroups.found()
group = found.group("one")
print(group.folders[0].parent)
group.end()
found.leave()
"""
    owner = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not Path(owner.stdout.strip()).exists()


def test_a_host_without_groups_is_told_why() -> None:
    found, reason = cgroups.found()

    assert (found is None) == bool(reason)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_without_rights_is_told_so(tmp_path: Path) -> None:
    code = """
import os, sys
sys.path.insert(0, os.getcwd())
from kernels import cgroups
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(*cgroups.found())
"""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)

    assert done.stdout.startswith("None ")
    assert "Permission denied" in done.stdout or "version 1" in done.stdout
