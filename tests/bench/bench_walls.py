"""What each wall costs: `python -m tests.bench.bench_walls [TIMES]` prints a table, in milliseconds, medians.

Each row has one wall more than the one above. `fork`: until the child stands behind what needs nothing of the session;
`close`: until it is closed for good, with a folder of its own; `end`: until nothing is left of it; `CPU`: of all that,
in all processes: it says more than the clock where others use the machine too.
"""

import ctypes
import json
import os
import random
import resource
import signal
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kernels import sandbox
from kernels.inside import walls

Timed = tuple[float, float, float, float]


def plans() -> dict[str, dict[str, Any]]:
    host = sandbox.host_walls()
    readable = [sandbox.INSIDE, *sandbox.interpreter_paths(Path(sys.executable))]
    full = sandbox.plan(host, network="none", read_only=readable, tmp_bytes=1 << 26, uid=None)
    rows: dict[str, dict[str, Any]] = {"no walls": {}}
    bare = {"namespaces": [], "cgroups": [], "seccomp": False}
    rows["+ no capabilities, no new privileges"] = bare
    rows["+ seccomp"] = bare = {**bare, "seccomp": full["seccomp"]}
    given = [name for name in ("user", "ipc", "uts", "network") if name in full["namespaces"]]
    for count in range(1, len(given) + 1):
        rows[f"+ {given[count - 1]}"] = {**bare, "namespaces": given[:count]}
    rows["+ mount: a root of its own"] = {**full, "namespaces": [*given, "mount"], "cgroup_namespace": False}
    rows["+ pid: an init, /proc"] = {**full, "cgroup_namespace": False}
    rows["+ cgroup namespace"] = full
    if host.own_uids:
        rows["+ a user of its own (all walls)"] = {**full, "uid": host.uids[11]}
    if host.cgroups is not None:
        group = host.cgroups.group("bench")
        rows["+ joins a cgroup"] = {**list(rows.values())[-1], "cgroups": [str(folder) for folder in group.folders]}
    return rows


def timed(plan: dict[str, Any], folder: str) -> Timed:
    used = cpu_seconds()
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    begun = time.perf_counter()
    forked = walls.fork(plan)
    if forked is None:
        try:
            names, fds, _, _ = socket.recv_fds(there, 65536, 10)
            trees = dict(zip(json.loads(names), fds, strict=True))
            walls.close(plan, trees, hostname="bench", limits={"open_files": 1024})
            there.send(b"closed")
            signal.pause()
        finally:
            os._exit(1)
    there.close()
    forked_at = time.perf_counter()
    trees = walls.open_trees({folder: "rw"} if "mount" in plan.get("namespaces", ()) else {}, forked.user_ns)
    socket.send_fds(here, [json.dumps(list(trees)).encode()], list(trees.values()))
    assert here.recv(100) == b"closed"
    closed_at = time.perf_counter()
    os.kill(forked.init_pid or forked.pid, signal.SIGKILL)
    os.waitpid(forked.pid, 0)
    if forked.init_pid is not None:
        os.waitpid(forked.init_pid, 0)
    ended_at = time.perf_counter()
    for fd in (*trees.values(), *([] if forked.user_ns is None else [forked.user_ns])):
        os.close(fd)
    here.close()
    return forked_at - begun, closed_at - forked_at, ended_at - closed_at, cpu_seconds() - used


def cpu_seconds() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in uses)


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    rows = plans()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # what is forked becomes ours
    if os.geteuid() != 0:
        walls.enter()
    taken: dict[str, list[Timed]] = {name: [] for name in rows}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(times):  # one of each at a time, so that a slow moment is shared by all
            for name in random.sample(list(rows), len(rows)):
                taken[name].append(timed(rows[name], folder))
    print(f"{'':40}{'fork':>9}{'close':>9}{'end':>9}{'CPU':>9}{'fork+close':>12}{'fastest':>9}")
    for name, several in taken.items():
        fork, close, end, cpu = (1e3 * statistics.median(one[at] for one in several) for at in range(4))
        both = sorted(1e3 * (one[0] + one[1]) for one in several)
        print(f"{name:40}{fork:9.2f}{close:9.2f}{end:9.2f}{cpu:9.2f}{statistics.median(both):12.2f}{both[0]:9.2f}")


if __name__ == "__main__":
    main()
