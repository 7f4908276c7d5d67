"""System calls that a session may not make are refused; all else goes on as before."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernels.inside import seccomp, system

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or system.MACHINE not in ("x86_64", "aarch64"), reason="system calls that we know"
)

ROOT = Path(__file__).parent.parent.parent
_HEAD = """
import ctypes, errno, json, mmap, os, signal, socket, subprocess, sys, termios, threading
from kernels.inside import seccomp, system
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(*arguments):
    ctypes.set_errno(0)
    done = libc.syscall(*map(ctypes.c_long, arguments))
    return "done" if done != -1 else errno.errorcode[ctypes.get_errno()]
system.prctl("test", system.PR_SET_NO_NEW_PRIVS, 1)
"""


def _behind(code: str) -> Any:
    """What `result` is after this code, in a process of its own."""
    whole = f"{_HEAD}\n{code}\nprint(json.dumps(result))"
    done = subprocess.run([sys.executable, "-c", whole], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_call_of_the_list_is_refused() -> None:
    code = """
seccomp.refuse()
column = ["x86_64", "aarch64"].index(system.MACHINE)
calls = {**seccomp._REFUSED, **seccomp._UNKNOWN}
result = {name: call(numbers[column], 0, 0, 0, 0, 0, 0) for name, numbers in calls.items() if numbers[column]}
"""
    answers = _behind(code)

    unknown = {"io_uring_setup", "io_uring_enter", "io_uring_register", "clone3"}
    assert set(answers) <= seccomp.names()
    assert {name for name, answer in answers.items() if answer == "ENOSYS"} == unknown
    assert {answer for name, answer in answers.items() if name not in unknown} == {"EPERM"}


@pytest.mark.skipif(system.MACHINE != "x86_64", reason="other architectures of x86")
def test_calls_of_other_architectures_are_refused() -> None:
    code = """
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))  # getpid, as 32-bit programs ask for it
getpid = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
before = getpid() in (os.getpid(), -errno.ENOSYS)
seccomp.refuse()
result = [before, getpid(), call(0x40000000 | 39)]
"""
    assert _behind(code) == [True, -38, "ENOSYS"]


def test_only_ordinary_kinds_of_sockets_can_be_made() -> None:
    code = """
seccomp.refuse()
def make(family):
    try:
        socket.socket(family, socket.SOCK_DGRAM).close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
result = {family: make(family) for family in (1, 2, 10, 16, 17, 38, 40, 44)}
"""
    answers = _behind(code)

    assert [answers[family] for family in ("1", "2")] == ["done", "done"]
    assert {answers[family] for family in ("17", "38", "40", "44")} == {"EAFNOSUPPORT"}
    assert "EPERM" not in answers.values()


def test_nothing_can_be_typed_into_a_terminal_from_behind() -> None:
    code = """
import fcntl, pty
master, slave = pty.openpty()
seccomp.refuse()
result = []
for request in (termios.TIOCSTI, 0x541C, termios.TIOCSTI | 1 << 32):
    result.append(call({"x86_64": 16, "aarch64": 29}[system.MACHINE], slave, request, 0))
fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8))
"""
    assert _behind(code) == ["EPERM"] * 3


def test_it_holds_for_all_threads_and_all_programs_that_are_started() -> None:
    code = """
waiting, answers = threading.Event(), []
number = {"x86_64": 250, "aarch64": 219}[system.MACHINE]
def ask():
    waiting.wait()
    answers.append(call(number, 0, -3, 0))
thread = threading.Thread(target=ask)
thread.start()
seccomp.refuse()
waiting.set()
thread.join()
child = "import ctypes; libc = ctypes.CDLL(None, use_errno=True);"
child += f"print(libc.syscall({number}, 0, -3, 0), ctypes.get_errno())"
result = [*answers, subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout.split()]
"""
    assert _behind(code) == ["EPERM", ["-1", "1"]]


def test_a_persona_that_weakens_memory_is_refused() -> None:
    code = """
seccomp.refuse()
number = {"x86_64": 135, "aarch64": 92}[system.MACHINE]
result = [call(number, persona) for persona in (0xFFFFFFFF, 0, 0x0040000, 0x0100000)]
"""
    assert _behind(code) == ["done", "done", "EPERM", "EPERM"]


def test_a_machine_that_is_not_known_is_told() -> None:
    with pytest.raises(system.WallError, match="riscv64"):
        seccomp.filter_program("riscv64")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_the_filter_stays_in_it(machine: str) -> None:
    program = seccomp.filter_program(machine)
    steps = [program[at : at + 8] for at in range(0, len(program), 8)]

    assert len(program) % 8 == 0
    for at, step in enumerate(steps):
        if step[0] & 7 == 5:
            assert at + 1 + max(step[2], step[3]) < len(steps)
    assert steps[-1][0] == 6
