"""Forking behind the walls: in two steps, with the child the subreaper's, and nothing left when it fails."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernels import cgroups, processes, sandbox
from kernels.inside import walls
from kernels.inside.walls import Forked, WallError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="walls are Linux's")

ROOT = os.geteuid() == 0


def _apart(work: Callable[[], Any]) -> Any:
    """What this returns in a process of its own, which is a subreaper, and may fork."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
            answer = {"value": work()}
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        content = file.read()
    os.waitpid(pid, 0)
    answer = json.loads(content)
    assert "error" not in answer, answer["error"]
    return answer["value"]


def _plan(**changes: Any) -> dict[str, Any]:
    host = sandbox.host_walls()
    if host.missing and {wall.name for wall in host.missing} & {"user", "mount", "pid"}:
        pytest.skip("This host does not give the walls")
    readable = [sandbox.INSIDE, *sandbox.interpreter_paths(Path(sys.executable))]
    uid = host.uids[9] if host.own_uids else None
    return {**sandbox.plan(host, network="none", read_only=readable, tmp_bytes=1 << 20, uid=uid), **changes}


def _end(forked: Forked) -> list[int]:
    """Kill init and reap both; the exit codes of child and init."""
    if forked.init_pid is not None:
        os.kill(forked.init_pid, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(forked.pid, 0)[1])]
    if forked.init_pid is not None:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(forked.init_pid, 0)[1]))
    return codes


def _sleep() -> None:
    while True:
        signal.pause()


def test_the_child_is_the_subreapers_and_ends_with_init() -> None:
    plan = _plan()

    def work() -> list[Any]:
        if not ROOT:
            walls.enter()
        forked = walls.fork(plan)
        if forked is None:
            _sleep()
        assert forked is not None
        parents = [_stat(pid)[1] == str(os.getpid()) for pid in (forked.pid, forked.init_pid or 0)]
        return [*parents, _end(forked), os.listdir(f"/proc/{os.getpid()}/task/{os.getpid()}") != []]

    assert _apart(work) == [True, True, [-9, -9], True]


def test_all_behind_the_walls_ends_with_who_answers_for_it_though_that_is_killed() -> None:
    plan = _plan()

    def work() -> list[int]:
        if not ROOT:
            walls.enter()
        master = os.fork()
        if master == 0:
            _sleep()
        forked = walls.fork(plan, master=os.pidfd_open(master))
        if forked is None:
            if os.fork():
                os._exit(0)
            os.setsid()
            _sleep()
        assert forked is not None
        assert forked.init_pid is not None
        os.waitpid(forked.pid, 0)
        before = os.waitpid(forked.init_pid, os.WNOHANG)[0]
        os.kill(master, signal.SIGKILL)
        os.waitpid(master, 0)
        signal.alarm(10)
        return [before, os.waitpid(forked.init_pid, 0)[1]]

    assert _apart(work) == [0, 0]


def test_what_a_session_detaches_from_itself_is_counted_as_its_own() -> None:
    plan = _plan()

    def work() -> list[Any]:
        if not ROOT:
            walls.enter()
        reading, writing = os.pipe()
        forked = walls.fork(plan)
        if forked is None:
            if os.fork() == 0:
                os.setsid()
                if os.fork():
                    os._exit(0)
                held = bytearray(os.urandom(1 << 20)) * 50
                os.write(writing, b"1")
                _sleep()
                del held
            os.wait()
            os.write(writing, b"1")
            _sleep()
        assert forked is not None
        os.read(reading, 1)
        os.read(reading, 1)
        without, counted = processes.usage(forked.pid), processes.usage(forked.pid, forked.init_pid)
        _end(forked)
        return [without[2], counted[2], counted[1] - without[1] > 50 << 20]

    assert _apart(work) == [1, 2, True]


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def test_its_exit_code_is_told_exactly() -> None:
    plan = _plan()

    def work() -> list[int]:
        if not ROOT:
            walls.enter()
        forked = walls.fork(plan)
        if forked is None:
            os._exit(37)
        assert forked is not None
        code = os.waitstatus_to_exitcode(os.waitpid(forked.pid, 0)[1])
        assert forked.init_pid is not None
        os.kill(forked.init_pid, signal.SIGKILL)
        os.waitpid(forked.init_pid, 0)
        return [code]

    assert _apart(work) == [37]


def test_folders_come_after_the_fork_and_only_they_can_be_written(tmp_path: Path) -> None:
    plan = _plan()
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    (theirs / "text").write_text("read")

    def work() -> Any:
        if not ROOT:
            walls.enter()
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        forked = walls.fork(plan)
        if forked is None:
            try:
                names, fds, _, _ = socket.recv_fds(there, 65536, 10)
                trees = dict(zip(json.loads(names), fds, strict=True))
                stand = walls.close(plan, trees, hostname="one", limits={"file_bytes": 4096})
                (ours / "made").write_text((theirs / "text").read_text())
                refused = ""
                try:
                    (theirs / "made").write_text("")
                except OSError as error:
                    refused = str(error.strerror)
                there.send(json.dumps([stand, refused]).encode())
            except BaseException as error:
                there.send(json.dumps([[], repr(error)]).encode())
            os._exit(0)
        assert forked is not None
        trees = walls.open_trees({str(ours): "rw", str(theirs): "ro"}, forked.user_ns)
        socket.send_fds(here, [json.dumps(list(trees)).encode()], list(trees.values()))
        answer = json.loads(here.recv(65536))
        _end(forked)
        return answer

    stand, refused = _apart(work)

    assert refused == "Read-only file system"
    assert stand == [
        *("user", "mount", "pid", "ipc", "uts", "network"),
        *("limits", "capabilities", "no-new-privileges", "seccomp"),
    ]
    assert (ours / "made").read_text() == "read"
    assert (ours / "made").stat().st_uid == os.geteuid()


def test_a_session_is_in_its_group_from_its_first_moment() -> None:
    found, reason = cgroups.found()
    if found is None:
        pytest.skip(f"No cgroups here: {reason}")
    group = found.group("forked")
    group.limit(cgroups.Limits(memory_bytes=64 << 20, processes=8))
    plan = _plan(cgroups=[str(folder) for folder in group.folders])

    def work() -> list[Any]:
        forked = walls.fork(plan)
        if forked is None:
            walls.close(plan, {}, hostname="one", limits={})
            kept = []
            while True:
                kept.append(bytearray(b"x") * (1 << 20))
        assert forked is not None
        code = os.waitstatus_to_exitcode(os.waitpid(forked.pid, 0)[1])
        alone = group.pids() == [forked.init_pid]
        os.kill(forked.init_pid or 0, signal.SIGKILL)
        os.waitpid(forked.init_pid or 0, 0)
        return [code, alone, group.oom_kills()]

    try:
        assert _apart(work) == [-9, True, 1]
    finally:
        group.end()


def test_a_fork_bomb_behind_the_walls_ends_with_init() -> None:
    found, reason = cgroups.found()
    if found is None:
        pytest.skip(f"No cgroups here: {reason}")
    group = found.group("bomb")
    group.limit(cgroups.Limits(processes=50))
    plan = _plan(cgroups=[str(folder) for folder in group.folders])

    def work() -> list[Any]:
        reading, writing = os.pipe()
        forked = walls.fork(plan)
        if forked is None:
            walls.close(plan, {}, hostname="one", limits={})
            while True:
                try:
                    os.fork()
                except OSError:
                    os.write(writing, b"full")
        assert forked is not None
        assert os.read(reading, 4) == b"full"
        several = len(group.pids())
        codes = _end(forked)
        return [several, codes, group.pids()]

    try:
        assert _apart(work) == [50, [-9, -9], []]
    finally:
        group.end()


def test_without_a_plan_it_is_a_plain_child_of_the_subreaper() -> None:
    def work() -> list[Any]:
        called = walls.fork({})
        if called is None:
            os._exit(0 if walls.close({}, {}, hostname="", limits={"open_files": 64}) == ["limits"] else 1)
        assert called is not None
        return [called.init_pid, called.user_ns, _end(called)]

    assert _apart(work) == [None, None, [0]]


def test_a_wall_that_fails_is_named_and_leaves_nothing() -> None:
    plan = _plan(system=["/usr", "/nowhere"])

    def work() -> list[Any]:
        if not ROOT:
            walls.enter()
        before = os.listdir("/proc/self/fd")
        try:
            if walls.fork(plan) is None:
                os._exit(0)
        except WallError as error:
            answer = [error.wall, error.reason]
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            answer.append("no child")
        return [*answer, os.listdir("/proc/self/fd") == before]

    assert _apart(work) == ["mount", "open_tree: No such file or directory (/nowhere)", "no child", True]


def test_a_wall_that_fails_late_leaves_nothing_either() -> None:
    plan = _plan(files={"/usr/planted": ""})

    def work() -> list[Any]:
        if not ROOT:
            walls.enter()
        before = os.listdir("/proc/self/fd")
        try:
            if walls.fork(plan) is None:
                os._exit(0)
        except WallError as error:
            answer = [error.wall, "/usr/planted"[1:] in error.reason]
        for _ in range(2):
            os.waitpid(-1, 0)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            answer.append("no child")
        return [*answer, os.listdir("/proc/self/fd") == before]

    assert _apart(work) == ["fork", True, "no child", True]


def test_a_program_started_from_a_read_only_path_cannot_be_written_through_proc(tmp_path: Path) -> None:
    """An ordinary user's interpreter is its own: only that the mount is read-only keeps a session from it."""
    _plan()
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "cat"
    program.write_bytes(Path("/bin/cat").read_bytes())
    program.chmod(0o755)

    def work() -> str:
        walls.enter({str(folder): "ro"})
        process = subprocess.Popen([str(program)], stdin=subprocess.PIPE)
        fd = os.open(f"/proc/{process.pid}/exe", os.O_RDONLY)
        process.communicate()
        try:
            os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY))
        except OSError as error:
            return str(error.strerror)
        return "written"

    assert _apart(work) == "Read-only file system"


def _confined(order: dict[str, Any], *argv: str, tell: int | None = None) -> "subprocess.Popen[str]":
    order = {"plan": _plan(), "tell": tell, **order}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(sandbox.CONFINE), json.dumps(order), *argv],
        pass_fds=[] if tell is None else [tell], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_program_is_handed_to_the_subreaper_and_its_exit_code_is_exact() -> None:
    def work() -> list[Any]:
        reading, writing = os.pipe()
        process = _confined({"cwd": "/tmp"}, "sh", "-c", "pwd; exit 5", tell=writing)  # noqa: S108 - its own
        os.close(writing)
        with open(reading) as told:
            forked = json.loads(told.read())
        said = process.communicate()
        code = os.waitstatus_to_exitcode(os.waitpid(forked["pid"], 0)[1])
        os.kill(forked["init_pid"], signal.SIGKILL)
        os.waitpid(forked["init_pid"], 0)
        return [*said, process.returncode, code]

    assert _apart(work) == ["/tmp\n", "", 0, 5]  # noqa: S108


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -TERM $$", -15), ("kill -KILL $$", -9)])
def test_who_accompanies_a_program_ends_as_it_does(script: str, code: int) -> None:
    process = _confined({}, "sh", "-c", script)
    process.communicate()

    assert process.returncode == code


def test_signals_are_passed_on_to_the_program() -> None:
    process = _confined({}, "sh", "-c", "trap 'echo caught; exit 4' INT; echo ready; while :; do sleep 0.05; done")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    process.send_signal(signal.SIGINT)

    assert process.communicate()[0] == "caught\n"
    assert process.returncode == 4


def test_a_program_without_its_walls_does_not_run(tmp_path: Path) -> None:
    process = _confined({"trees": {str(tmp_path / "nowhere"): "rw"}}, "echo", "ran")
    printed, said = process.communicate()

    assert (printed, process.returncode) == ("", 70)
    assert "mount: open_tree: No such file or directory" in said


def test_descriptors_are_closed_but_those_to_keep() -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        pipes = [fd for _ in range(4) for fd in os.pipe()]
        walls.close_descriptors({writing, pipes[3]})
        left = {fd for fd in range(256) if _is_open(fd)}
        os.write(writing, json.dumps(left == {writing, pipes[3]}).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        assert json.loads(file.read()) is True
    os.waitpid(pid, 0)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
