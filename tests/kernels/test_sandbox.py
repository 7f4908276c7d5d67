"""What a host can give is found by trying; what a session gets follows from that, and holds no secret."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels import sandbox
from kernels.sandbox import HostWalls, Wall

from .prison import ORDINARY, Outside, Prison, outside

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="walls are Linux's")

ALL = (*sandbox.NAMESPACES, *sandbox.FURTHER)


def _host(*missing: str, uids: range = range(0)) -> HostWalls:
    return HostWalls(tuple(Wall(name, stands=name not in missing) for name in ALL), uids, None)


def test_every_wall_has_a_row_and_what_is_missing_a_reason() -> None:
    host = sandbox.host_walls()

    assert [wall.name for wall in host.walls] == [*ALL, "cgroup"]
    for wall in host.missing:
        assert wall.reason
    assert {wall.name: wall.reason for wall in host.walls if wall.stands} == dict.fromkeys(
        (wall.name for wall in host.walls if wall.stands), ""
    )
    assert host.own_uids == host.stands("own-uid")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can forbid user namespaces to somebody")
def test_a_host_without_user_namespaces_says_so_and_how_to_mend_it() -> None:
    code = """
import os, sys
sys.path.insert(0, os.getcwd())
from kernels import sandbox
from kernels.inside import walls
walls.enter()
with open("/proc/sys/user/max_user_namespaces", "w") as most: most.write("0")
host = sandbox.host_walls()
for wall in host.missing: print(wall.name, "|", wall.reason, "|", wall.remedy)
print(sandbox.plan(host, network="none", read_only=[], tmp_bytes=1, uid=None)["namespaces"])
"""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()

    assert any(line.startswith("user | unshare: No space left on device | Allow user namespaces") for line in lines), (
        lines
    )
    assert {line.split(" | ")[0] for line in lines[:-1]} >= {*sandbox.NAMESPACES, "own-uid"}
    assert lines[-1] == "[]"


def test_a_host_that_gives_nothing_gets_a_plan_without_namespaces() -> None:
    plan = sandbox.plan(_host(*ALL), network="none", read_only=[], tmp_bytes=1 << 20, uid=None)

    assert plan == {"namespaces": [], "abstract_sockets": "", "seccomp": False, "cgroups": []}


def test_only_what_stands_is_planned() -> None:
    plan = sandbox.plan(_host("uts", "ipc"), network="none", read_only=[], tmp_bytes=1 << 20, uid=None)

    assert plan["namespaces"] == ["user", "mount", "pid", "network"]


def test_the_hosts_network_comes_with_what_finds_names(tmp_path: Path) -> None:
    none = sandbox.plan(_host(), network="none", read_only=[], tmp_bytes=1 << 20, uid=None)
    host = sandbox.plan(_host(), network="host", read_only=[], tmp_bytes=1 << 20, uid=None)

    assert "network" in none["namespaces"]
    assert "network" not in host["namespaces"]
    assert (none["abstract_sockets"], host["abstract_sockets"]) == ("", "own")
    seen = {*host["system"], *host["links"], *host["files"]}
    if os.path.exists("/etc/resolv.conf"):
        assert "/etc/resolv.conf" in seen
    assert "/etc/resolv.conf" not in {*none["system"], *none["links"], *none["files"]}


def test_nothing_that_only_some_may_read_is_planned() -> None:
    plan = sandbox.plan(_host(), network="host", read_only=[], tmp_bytes=1 << 20, uid=None)

    for path in plan["system"]:
        assert os.stat(path).st_mode & 0o004, path
    for secret in ("/etc/shadow", "/etc/gshadow", "/etc/ssh", "/etc/ssl", "/etc/ssl/private", "/etc/sudoers", "/root"):
        assert secret not in {*plan["system"], *plan["links"], *plan["files"]}
    assert "root" in plan["files"]["/etc/passwd"]
    assert plan["files"]["/etc/passwd"].count("\n") == 3


def test_paths_by_way_of_links_are_there_under_both_names(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)

    plan = sandbox.plan(_host(), network="none", read_only=[link, real / "below"], tmp_bytes=1 << 20, uid=None)

    assert plan["read_only"] == [str(real)]
    assert plan["links"][str(link)] == str(real)


def test_what_the_system_has_is_not_mounted_twice() -> None:
    plan = sandbox.plan(_host(), network="none", read_only=[Path("/usr/lib")], tmp_bytes=1 << 20, uid=None)

    assert plan["read_only"] == []


def test_a_python_of_an_environment_needs_that_and_its_own(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to("/usr/bin/python3")

    assert sandbox.interpreter_paths(environment / "bin" / "python") == [environment, Path("/usr")]


@pytest.fixture
def outer() -> Iterator[Outside]:
    with outside(os.geteuid()) as it:
        yield it


@pytest.mark.slow
def test_what_data_people_use_works_behind_the_walls(outer: Outside) -> None:
    script = outer.workspace / "work.py"
    script.write_text("""
import asyncio, json, multiprocessing, os, ssl
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import shared_memory

def square(x):
    return x * x

if __name__ == "__main__":
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import numpy as np
    import pandas as pd
    done = []
    for kind in ("spawn", "forkserver", "fork"):
        with multiprocessing.get_context(kind).Pool(2) as pool:
            done.append(pool.map(square, [1, 2]))
    with ProcessPoolExecutor(2) as executor:
        done.append(list(executor.map(square, [3])))
    shared = shared_memory.SharedMemory(create=True, size=1000)
    shared.close()
    shared.unlink()
    plt.plot([1, 2])
    plt.savefig("plot.png")
    done.append(float(pd.DataFrame({"a": np.ones((500, 500)).dot(np.ones(500))})["a"].sum()))
    done.append(len(ssl.create_default_context().get_ca_certs()) > 0)
    async def wait():
        return await (await asyncio.create_subprocess_exec("sh", "-c", "exit 4")).wait()
    done.append(asyncio.run(wait()))
    print(json.dumps(done))
""")
    with Prison(outer, owner=os.geteuid(), own_uid=sandbox.host_walls().own_uids, tmp_bytes=256 << 20) as prison:
        run = "done = subprocess.run([program, 'work.py'], capture_output=True, text=True)\n"
        run += "result = done.stdout or done.stderr"
        printed = prison.run(f"os.environ['HOME'] = os.getcwd()\n{run}", program=sys.executable)

    assert printed == "[[1, 4], [1, 4], [1, 4], [9], 250000.0, true, 4]\n"
    assert (outer.workspace / "plot.png").stat().st_size > 1000


def test_an_ordinary_user_is_told_that_it_can_have_no_users_of_its_own() -> None:
    if os.geteuid() != 0:
        assert "root" in next(wall.reason for wall in sandbox.host_walls().missing if wall.name == "own-uid")
        return
    code = "import os, sys; sys.path.insert(0, os.getcwd()); from kernels import sandbox; os.setgroups([]);"
    code += f"os.setgid({ORDINARY}); os.setuid({ORDINARY}); sys.executable = '/usr/bin/python3'; "
    code += "print([wall.reason for wall in sandbox.host_walls().walls if wall.name == 'own-uid'])"
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)

    assert "the gateway does not run as root" in done.stdout
