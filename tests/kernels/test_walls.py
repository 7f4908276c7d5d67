"""A hostile process behind the walls reaches nothing that is not its own; as root and as an ordinary user."""

import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels import sandbox

from .prison import ORDINARY, SECRET, Outside, Prison, outside

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="walls are Linux's")

ROOT = os.geteuid() == 0
TMP = "/tmp"  # noqa: S108 - its own
MODES = ["own uid", "gateway's uid", "ordinary user"] if ROOT else ["ordinary user"]


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    host = sandbox.host_walls()
    needed = [*sandbox.NAMESPACES, "seccomp", *(["own-uid"] if mode == "own uid" else [])]
    missing = [wall for wall in host.missing if wall.name in needed]
    if missing:
        pytest.skip(f"This host does not give {missing[0].name}: {missing[0].reason}")
    return mode


@pytest.fixture(scope="module")
def owner(mode: str) -> int:
    return ORDINARY if ROOT and mode == "ordinary user" else os.geteuid()


@pytest.fixture(scope="module")
def outer(owner: int) -> Iterator[Outside]:
    with outside(owner) as it:
        yield it


@pytest.fixture(scope="module")
def prison(outer: Outside, owner: int, mode: str) -> Iterator[Prison]:
    with Prison(outer, owner=owner, own_uid=mode == "own uid") as it:
        yield it


@pytest.fixture(autouse=True)
def nothing_outside_changed(outer: Outside) -> Iterator[None]:
    mounts = Path("/proc/self/mounts").read_text()
    yield
    assert outer.untouched()
    assert Path("/proc/self/mounts").read_text() == mounts


def test_it_is_somebody_without_rights(prison: Prison) -> None:
    status = prison.run("result = dict(line.split(':\\t', 1) for line in read('/proc/self/status').splitlines())")

    assert prison.run("result = [os.getuid(), os.getgid(), os.getgroups(), socket.gethostname()]") == [
        1000, 1000, prison.run("result = os.getgroups()"), "prison",
    ]  # fmt: skip
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_no_files_of_others_are_there(prison: Prison, outer: Outside) -> None:
    paths = [str(outer.file), "/etc/shadow", "/etc/ssh", "/etc/sudoers", "/var/lib", "/home", "/opt", "/run/user"]

    answers = {path: prison.run("result = of(os.stat, path)", path=path) for path in paths}
    assert answers == dict.fromkeys(paths, "ENOENT")
    assert prison.run("result = sorted(os.listdir(folder))", folder=str(outer.folder)) == ["inside", "workspace"]
    leading = {Path(path).parts[2] for path in (str(outer.folder), __file__, sys.prefix) if path.startswith(f"{TMP}/")}
    assert set(prison.run(f"result = os.listdir({TMP!r})")) <= leading


def test_its_own_files_are_the_gateways_users_on_disk(prison: Prison, outer: Outside, owner: int) -> None:
    assert prison.run("write('made', 'by it'); os.chmod('made', 0o600); result = os.stat('made').st_uid") == 1000

    made = outer.workspace / "made"
    assert made.read_text() == "by it"
    assert made.stat().st_uid == owner
    made.write_text("by the gateway")
    assert prison.run("result = read('made')") == "by the gateway"


def test_links_in_the_workspace_lead_nowhere_outside(prison: Prison, outer: Outside) -> None:
    (outer.workspace / "link").symlink_to(outer.file)
    (outer.workspace / "folder").symlink_to(outer.file.parent)

    assert prison.run("result = [of(read, 'link'), of(os.listdir, 'folder'), of(read, '../neighbour/secret')]") == [
        "ENOENT", "ENOENT", "ENOENT",
    ]  # fmt: skip
    assert prison.run("result = of(os.link, '/proc/self/root/usr/bin/env', 'env')") in ("EXDEV", "EPERM")


def test_system_and_interpreter_cannot_be_written(prison: Prison, outer: Outside) -> None:
    prefix = prison.run("result = sys.base_prefix")
    ours = str(outer.folder / "inside")
    for folder in ("/", "/usr", "/usr/bin", "/etc", "/dev", "/run", prefix, f"{prefix}/lib", ours):
        assert prison.run("result = of(write, folder + '/planted')", folder=folder) in ("EROFS", "EACCES"), folder
    files = ["/usr/bin/env", "/etc/hosts", str(outer.folder / "inside" / "walls.py")]
    for file in files:
        assert prison.run("result = of(open, file, 'r+')", file=file) in ("EROFS", "EACCES"), file
        assert prison.run("result = of(os.chmod, file, 0o777)", file=file) in ("EROFS", "EPERM"), file
        assert prison.run("result = of(os.unlink, file)", file=file) in ("EROFS", "EACCES", "EBUSY", "EPERM"), file


def test_the_running_program_cannot_be_written_through_proc(prison: Prison) -> None:
    again = """
fd = os.open('/proc/self/exe', os.O_RDONLY)
shell = f'( : >>/proc/self/fd/{fd} ) 2>/dev/null && echo written || echo refused'
result = subprocess.run(['sh', '-c', shell], pass_fds=[fd], capture_output=True, text=True).stdout
os.close(fd)
"""
    assert prison.run(again) == "refused\n"
    assert prison.run("result = of(open, '/proc/self/exe', 'r+b')") in ("ETXTBSY", "EACCES", "EROFS")


def test_only_its_own_processes_are_there(prison: Prison, outer: Outside) -> None:
    pids = prison.run("result = sorted(int(name) for name in os.listdir('/proc') if name.isdigit())")

    assert pids == [1, prison.run("result = os.getpid()")]
    assert prison.run("result = of(os.kill, pid, 9)", pid=outer.process.pid) == "ESRCH"
    assert prison.run("result = of(os.pidfd_open, pid)", pid=outer.process.pid) == "ESRCH"
    assert prison.run("result = of(read, f'/proc/{pid}/environ')", pid=outer.process.pid) == "ENOENT"
    assert prison.run("result = os.getppid()") == 0


def test_memory_of_others_cannot_be_read(prison: Prison, outer: Outside) -> None:
    vector = """
local = ctypes.create_string_buffer(64)
here = struct.pack('QQ', ctypes.addressof(local), 64)
there = struct.pack('QQ', address, 64)
result = [c('process_vm_readv', target, here, 1, there, 1, 0) for target in (pid, 1)]
result += [c('ptrace', 16, target, 0, 0) for target in (pid, 1)]
"""
    answers = prison.run(vector, pid=outer.process.pid, address=outer.address)

    assert answers == ["ESRCH", "EPERM", "ESRCH", "EPERM"]
    for name in ("mem", "environ", "syscall", "auxv"):
        assert prison.run("result = of(read, f'/proc/1/{name}')", name=name) in ("EACCES", "EPERM"), name
    for name in ("cwd", "root/proc", "map_files"):
        assert prison.run("result = of(os.listdir, f'/proc/1/{name}')", name=name) == "EACCES", name
    assert prison.run("result = of(os.readlink, '/proc/1/root')") == "EACCES"


def test_it_cannot_end_the_first_process_of_its_namespace(prison: Prison) -> None:
    for number in (9, 15, 19):
        prison.run("result = of(os.kill, 1, number)", number=number)

    assert prison.run("result = read('/proc/1/stat').split()[2]") == "S"


def test_nothing_can_be_mounted(prison: Prison) -> None:
    attacks = [
        "c('mount', b'tmpfs', b'/tmp', b'tmpfs', 0, None)",
        "c('mount', b'/', b'/tmp', None, 4096, None)",
        "c('mount', None, b'/', None, 32 | 4096, None)",  # remount, to write
        "c('mount', None, b'/usr', None, 32 | 4096, None)",
        "c('umount2', b'/proc/sys', 2)",
        "c('umount2', b'/', 2)",
        "c('pivot_root', b'/tmp', b'/tmp')",
        "c('chroot', b'/tmp')",
        "c('syscall', 428, -100, b'/', 1)",  # open_tree
        "c('syscall', 430, b'tmpfs', 0)",  # fsopen
        "c('syscall', 442, -100, b'/usr', 0, bytes(32), 32)",  # mount_setattr
    ]
    assert {attack: prison.run(f"result = {attack}") for attack in attacks} == dict.fromkeys(attacks, "EPERM")


def test_no_namespace_can_be_made_or_entered(prison: Prison) -> None:
    assert prison.run("result = c('unshare', 0x10000000)") == "EPERM"
    assert prison.run("result = [c('unshare', flag) for flag in (0x20000, 0x20000000, 0x40000000)]") == ["EPERM"] * 3
    assert prison.run("result = subprocess.run(['unshare', '-Ur', 'true'], stderr=subprocess.DEVNULL).returncode") == 1
    assert prison.run("result = c('setns', fd := os.open('/proc/self/ns/mnt', 0), 0); os.close(fd)") == "EPERM"
    assert prison.run("result = of(write, '/proc/sys/user/max_user_namespaces', '100')") in ("EROFS", "EACCES")


def test_no_device_can_be_made(prison: Prison) -> None:
    assert prison.run("result = of(os.mknod, 'disk', 0o60666, os.makedev(254, 0))") == "EPERM"
    assert prison.run("result = of(os.mknod, '/tmp/mem', 0o20666, os.makedev(1, 1))") == "EPERM"
    names = prison.run("result = sorted(os.listdir('/dev'))")

    assert names == sorted(
        ["null", "zero", "full", "random", "urandom", "tty", "fd", "ptmx", "pts", "shm", "stderr", "stdin", "stdout"]
    )


def test_no_root_by_programs_that_are_set_uid(prison: Prison, outer: Outside, owner: int) -> None:
    planted = outer.workspace / "planted"
    planted.write_bytes(Path("/usr/bin/id").read_bytes())
    os.chown(planted, owner, owner)
    planted.chmod(0o6755)

    for program in (str(planted), "/usr/bin/id"):
        run = "result = subprocess.run([program, '-u'], capture_output=True, text=True).stdout"
        assert prison.run(run, program=program) == "1000\n"
    assert prison.run("result = of(os.setuid, 0)") in ("EPERM", "EINVAL")
    assert prison.run("result = of(os.setgroups, [0])") in ("EPERM", "EINVAL")
    planted.unlink()


def test_the_systems_settings_cannot_be_written(prison: Prison) -> None:
    before = Path("/proc/sys/kernel/hostname").read_text()
    for name in ("kernel/hostname", "kernel/core_pattern", "vm/drop_caches", "kernel/shmmax"):
        assert prison.run("result = of(write, path, '1')", path=f"/proc/sys/{name}") in ("EROFS", "EACCES"), name
    for path in ("/proc/sysrq-trigger", "/proc/irq/default_smp_affinity"):
        assert prison.run("result = of(write, path, '1')", path=path) in ("EROFS", "EACCES", "ENOENT"), path
    assert prison.run("result = of(socket.sethostname, 'mine')") == "EPERM"
    hidden = "[len(read(path)) for path in ('/proc/keys', '/proc/timer_list') if os.path.exists(path)]"
    assert set(prison.run(f"result = {hidden}")) <= {0}
    assert Path("/proc/sys/kernel/hostname").read_text() == before


def test_there_is_no_network_but_its_own_loopback(prison: Prison, outer: Outside) -> None:
    connect = "result = of(socket.create_connection, (host, port), 2)"
    assert prison.run(connect, host="127.0.0.1", port=outer.port) == "ECONNREFUSED"
    assert prison.run(connect, host="192.0.2.1", port=80) == "ENETUNREACH"
    assert prison.run("result = [name for _, name in socket.if_nameindex()]") == ["lo"]
    talk = """
with socket.create_server(('127.0.0.1', 0)) as server, socket.create_connection(server.getsockname()) as client:
    server.accept()[0].sendall(b'hello')
    result = client.recv(9).decode()
"""
    assert prison.run(talk) == "hello"


def test_sockets_of_others_are_not_there(prison: Prison, outer: Outside) -> None:
    connect = "result = of(socket.socket(socket.AF_UNIX).connect, address)"

    assert prison.run(connect, address=f"\0{outer.abstract}") == "ECONNREFUSED"
    assert prison.run(connect, address=str(outer.unix)) == "ENOENT"


def test_no_sockets_of_unusual_kinds(prison: Prison) -> None:
    kinds = "result = [of(socket.socket, *one) for one in ((17, 3), (40, 1), (38, 5), (2, 3, 1), (10, 3, 58))]"

    assert prison.run(kinds) == ["EAFNOSUPPORT", "EAFNOSUPPORT", "EAFNOSUPPORT", "EPERM", "EPERM"]


def test_no_keys_no_handles_no_programs_in_the_system(prison: Prison) -> None:
    assert prison.run("result = sysc('keyctl', 0, -3, 0)") == "EPERM"
    assert prison.run("result = sysc('add_key', b'user', b'x', b'y', 1, -3)") == "EPERM"
    assert prison.run("result = sysc('open_by_handle_at', 0, bytes(64), 0)") == "EPERM"
    assert prison.run("result = sysc('bpf', 0, bytes(64), 64)") == "EPERM"
    assert prison.run("result = sysc('io_uring_setup', 1, bytes(256))") == "ENOSYS"


def test_no_descriptor_leaks_in(prison: Prison) -> None:
    found = "found = [f'/proc/self/fd/{fd}' for fd in os.listdir('/proc/self/fd')]\n"
    seen = prison.run(f"{found}result = {{fd: os.readlink(fd) for fd in found if os.path.lexists(fd)}}")

    assert {*seen} == {"/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"}, seen


def test_groups_of_the_system_are_out_of_reach(prison: Prison) -> None:
    assert prison.run("result = os.path.exists('/sys/fs/cgroup')") is False
    assert prison.run("result = all(line.split(':', 2)[2] == '/' for line in read('/proc/self/cgroup').splitlines())")


def test_it_keeps_its_limits(prison: Prison) -> None:
    assert prison.run("result = resource.getrlimit(resource.RLIMIT_NOFILE)") == [512, 512]
    assert prison.run("result = of(lambda: [os.dup(0) for _ in range(600)])") == "EMFILE"
    prison.run("os.closerange(3, 600); result = None")
    assert prison.run("result = resource.getrlimit(resource.RLIMIT_CORE)") == [0, 0]


def test_a_file_cannot_grow_beyond_its_limit(outer: Outside, owner: int, mode: str) -> None:
    with Prison(outer, owner=owner, own_uid=mode == "own uid", limits={"file_bytes": 1 << 20}) as prison:
        assert prison.run("result = of(os.truncate, os.open('big', os.O_CREAT | os.O_RDWR), 2 << 20)") == "EFBIG"
        assert prison.run("result = of(os.truncate, 'big', 1 << 20)") == "done"


def test_temporary_files_are_its_own_and_bounded(prison: Prison) -> None:
    fill = """
def fill(path):
    with open(path, 'wb') as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
result = [of(fill, '/tmp/big'), of(fill, '/dev/shm/big')]
os.unlink('/tmp/big'), os.unlink('/dev/shm/big')
"""
    assert prison.run(fill) == ["ENOSPC", "ENOSPC"]
    assert prison.run("write('/tmp/mine'); result = os.listdir('/tmp')")
    assert not Path("/tmp/mine").exists()  # noqa: S108 - that is the question


def test_it_can_be_given_less_room_for_temporary_files_and_less_of_the_processor(
    outer: Outside, owner: int, mode: str
) -> None:
    limits = {"tmp_bytes": 8 << 20, "nice": 10}
    with Prison(outer, owner=owner, own_uid=mode == "own uid", limits=limits) as prison:
        room = "result = [os.statvfs(path).f_blocks * os.statvfs(path).f_frsize for path in ('/tmp', '/dev/shm')]"

        assert prison.run(room) == [8 << 20, 8 << 20]
        assert prison.run("result = [of(os.nice, -5), os.getpriority(os.PRIO_PROCESS, 0)]") in (
            ["EPERM", 10],
            ["EACCES", 10],
        )
        assert prison.run("write('/tmp/mine'); write('/dev/shm/mine'); result = read('/tmp/mine')") == "x"


def test_what_programs_need_is_there(prison: Prison) -> None:
    works = r"""
import asyncio, sqlite3, threading, multiprocessing, pwd, tempfile, pty
with multiprocessing.get_context('fork').Pool(2) as pool:
    squares = pool.map(abs, [-1, -2])
thread = threading.Thread(target=lambda: squares.append(3))
thread.start(), thread.join()
sqlite3.connect('work.db').execute('create table if not exists t (x)')
lock = multiprocessing.Lock()
master, slave = pty.openpty()
os.close(master), os.close(slave)
result = [squares, asyncio.run(asyncio.sleep(0, 'slept')), pwd.getpwuid(os.getuid()).pw_name,
          subprocess.run(['sh', '-c', 'echo $((6 * 7))'], capture_output=True, text=True).stdout,
          os.cpu_count() >= 1, os.path.exists(tempfile.mkdtemp()), len(os.urandom(8)),
          socket.gethostbyname('localhost')]
"""
    assert prison.run(works) == [[1, 2, 3], "slept", "session", "42\n", True, True, 8, "127.0.0.1"]


def test_orphans_are_reaped_and_end_with_the_session(outer: Outside, owner: int) -> None:
    with Prison(outer, owner=owner) as prison:
        prison.run("subprocess.run(['sh', '-c', 'true & sleep 600 & setsid sleep 600 &']); result = 0")
        until_reaped = """
import time
for _ in range(500):
    states = [read(path).rpartition(')')[2].split()[0] for path in glob.glob('/proc/[0-9]*/stat')]
    if 'Z' not in states: break
    time.sleep(0.01)
result = states
"""
        assert "Z" not in prison.run(until_reaped)
        first = prison.session_pids()[0]
        namespace = os.readlink(f"/proc/{first}/ns/pid_for_children")

    assert namespace not in {_namespace(pid) for pid in os.listdir("/proc") if pid.isdigit()}


def _namespace(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def test_with_the_hosts_network_services_are_reached_but_not_abstract_sockets(
    outer: Outside, owner: int, mode: str
) -> None:
    if not sandbox.host_walls().stands("abstract-sockets"):
        pytest.skip("This host has no Landlock that keeps from abstract sockets")
    with socket.create_server(("127.0.0.1", 0)) as server, Prison(
        outer, owner=owner, own_uid=mode == "own uid", network="host"
    ) as prison:  # fmt: skip
        reach = "result = of(socket.create_connection, ('127.0.0.1', port), 2)"
        assert prison.run(reach, port=server.getsockname()[1]) == "done"
        connect = "result = of(socket.socket(socket.AF_UNIX).connect, address)"
        assert prison.run(connect, address=f"\0{outer.abstract}") == "EPERM"
        resolver = Path("/etc/resolv.conf")
        if resolver.exists():
            assert prison.run("result = read('/etc/resolv.conf')") == resolver.read_text()


def test_secret_is_where_the_tests_look_for_it(outer: Outside) -> None:
    environ = Path(f"/proc/{outer.process.pid}/environ").read_bytes()

    assert SECRET.encode() in environ
    with open(f"/proc/{outer.process.pid}/mem", "rb") as memory:
        memory.seek(outer.address)
        assert memory.read(len(SECRET)) == SECRET.encode()
    assert stat.S_ISSOCK(outer.unix.stat().st_mode)
