"""The first process of a session's pid namespace: it does nothing, and everything else dies with it.

It ends when whoever answers for the session does, also if that is killed: nothing inside can outlive both. A program of
its own of a few hundred bytes, so that it costs no more than a page or two; where the machine is not one that we can
write it for, `sleep infinity`. Runs inside the kernel.
"""

from __future__ import annotations

import os
import signal
import struct

from . import system

_X86_64 = bytes.fromhex(
    "b89d000000"  # mov eax, prctl
    "bf04000000"  # mov edi, PR_SET_DUMPABLE
    "31f6"  # xor esi, esi
    "0f05"  # syscall
    "48b80000000001000000"  # mov rax, {fd: 0, events: POLLIN, revents: 0}
    "50"  # push rax
    "4889e7"  # mov rdi, rsp
    "be01000000"  # mov esi, 1
    "baffffffff"  # mov edx, -1
    "b807000000"  # mov eax, poll
    "0f05"  # syscall
    "f644240601"  # test byte [rsp+6], POLLIN: not if there is nobody to wait for
    "7409"  # jz to the pause
    "31ff"  # xor edi, edi
    "b83c000000"  # mov eax, exit
    "0f05"  # syscall
    "b822000000"  # mov eax, pause
    "0f05"  # syscall
    "ebf7"  # back to the pause
)


def _aarch64() -> bytes:
    def move(register: int, value: int) -> int:
        return 0xD2800000 | value << 5 | register

    prctl, ppoll, leave, call, back = 167, 73, 93, 0xD4000001, 0x14000000 | (-6 & 0x3FFFFFF)
    begin = [move(8, prctl), move(0, 4), move(1, 0), call]  # not dumpable
    begin += [0xD2C00024, 0xF81F0FE4]  # mov x4, {fd: 0, events: POLLIN, revents: 0}; str x4, [sp, #-16]!
    begin += [0x910003E0, move(1, 1), move(2, 0), move(3, 0), move(8, ppoll), call]  # of what is at sp
    begin += [0x39401BE0, 0x36000080, move(0, 0), move(8, leave), call]  # ldrb w0, [sp, #6]; tbz w0, #0, to the rest
    rest = [*(move(register, 0) for register in range(4)), move(8, ppoll), call, back]
    return struct.pack(f"<{len(begin) + len(rest)}I", *begin, *rest)


def program(machine: str) -> bytes | None:
    """An ELF file, or None where we can't write one."""
    known = {"x86_64": (62, _X86_64), "aarch64": (183, _aarch64())}
    if machine not in known:
        return None
    number, code = known[machine]
    base, head = 0x400000, 64 + 56
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, number, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = head + len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x10000)
    return ident + header + segment + code


def opened() -> int:
    """The program as a descriptor, to be executed once or often."""
    content = program(system.MACHINE)
    if content is None:
        return os.open("/bin/sleep", os.O_RDONLY | os.O_CLOEXEC)
    fd = os.memfd_create("init", os.MFD_CLOEXEC)
    os.write(fd, content)
    os.fchmod(fd, 0o555)
    # A file that is open for writing is not executed.
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return reader


def start(fd: int, master: int | None) -> int:
    """Start it as the first process of the pid namespace that children of ours are in; returns its number here.

    `master` is a pidfd: it ends with that process. None: with nobody; `sleep` does so in any case.
    It keeps one capability, of no use to it: so nobody in the session, who has none, may trace it and do with it what
    the session's own processes are kept from. Children that it inherits are reaped by the system.
    """
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    capability = 1 << system.CAP_WAKE_ALARM
    try:
        system.set_capabilities("pid", system.permitted(), capability)
        system.prctl("pid", system.PR_CAP_AMBIENT, system.AMBIENT_RAISE, system.CAP_WAKE_ALARM)
        actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_CLOSE, number) for number in range(3)]
        if master is not None:
            actions[0] = os.POSIX_SPAWN_DUP2, master, 0
        arguments = ["init", "infinity"]
        return os.posix_spawn(f"/proc/self/fd/{fd}", arguments, {}, file_actions=actions, setsid=True)
    except OSError as error:
        raise system.refused("pid", "start the first process of the namespace", error) from None
    finally:
        system.prctl("pid", system.PR_CAP_AMBIENT, system.AMBIENT_CLEAR)
        signal.signal(signal.SIGCHLD, before)
