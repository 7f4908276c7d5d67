"""The system calls that a session may not make: those that reach the kernel's own workings, not what programs need.

What is refused is what container runtimes refuse. Mounting and `setns` are left: without capabilities, they can do
nothing, and a copy of a session needs `setns` once. User namespaces are refused here too, not only by their number
being zero: for the sake of a copy that is made from outside it is not, for a moment.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import struct

from .system import CLONE_NEWUSER, MACHINE, WallError, call

# Calls by number: x86_64, aarch64 (None: not there).
_REFUSED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "get_kernel_syms": (177, None),
    "init_module": (175, 105),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "move_pages": (279, 239),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "_sysctl": (156, None),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
}
# As if the system were too old for them: libraries then go the ordinary way.
_UNKNOWN = {
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "clone3": (435, 435),  # whose flags can't be seen from here: `clone` is used instead
}

_UNSHARE, _CLONE = (272, 97), (56, 220)
_PERSONALITY, _SOCKET, _IOCTL = (135, 92), (41, 198), (16, 29)
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, with the names and sizes of old releases; and asking
_FAMILIES = (1, 2, 10, 16)  # unix, IPv4, IPv6, netlink. Not vsock: it passes by network namespaces, to the host
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing into a terminal that was handed down

_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_OF, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def names() -> set[str]:
    """The system calls that are refused whatever their arguments are."""
    return {*_REFUSED, *_UNKNOWN}


@functools.cache
def filter_program(machine: str = MACHINE) -> bytes:
    """The filter, as instructions of classic BPF. Raises `WallError` on a machine that it does not know."""
    if machine not in _ARCHITECTURE:
        raise WallError("seccomp", f"the system calls of {machine} are not known")
    column = list(_ARCHITECTURE).index(machine)
    program = [
        _step(_LOAD, _ARCHITECTURE_AT),
        *_unless_equal(_ARCHITECTURE[machine], _ERRNO | errno.ENOSYS),
        _step(_LOAD, _NUMBER_AT),
    ]
    if machine == "x86_64":
        program += [_step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, _ERRNO | errno.ENOSYS)]
    program += _by_argument(_PERSONALITY[column], 0, _PERSONALITIES, errno.EPERM, allowed=True)
    program += _by_argument(_SOCKET[column], 0, _FAMILIES, errno.EAFNOSUPPORT, allowed=True)
    program += _by_argument(_IOCTL[column], 1, _TERMINAL_INPUT, errno.EPERM, allowed=False)
    for making in (_UNSHARE, _CLONE):
        program += [
            _step(_EQUAL, making[column], 0, 4),
            _step(_LOAD, _ARGUMENTS_AT),
            _step(_ANY_OF, CLONE_NEWUSER, 0, 1),
            _step(_RETURN, _ERRNO | errno.EPERM),
            _step(_RETURN, _ALLOW),
        ]
    for calls, number in ((_REFUSED, errno.EPERM), (_UNKNOWN, errno.ENOSYS)):
        for numbers in calls.values():
            refused = numbers[column]
            if refused is not None:
                program += [_step(_EQUAL, refused, 0, 1), _step(_RETURN, _ERRNO | number)]
    program.append(_step(_RETURN, _ALLOW))
    return b"".join(program)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _unless_equal(value: int, answer: int) -> list[bytes]:
    return [_step(_EQUAL, value, 1, 0), _step(_RETURN, answer)]


def _by_argument(number: int, index: int, values: tuple[int, ...], error: int, *, allowed: bool) -> list[bytes]:
    """Decides a call by its argument: only these values are allowed, or only these are not."""
    listed, others = (_ALLOW, _ERRNO | error) if allowed else (_ERRNO | error, _ALLOW)
    body = [_step(_LOAD, _ARGUMENTS_AT + 8 * index)]  # the lower half: all that the kernel looks at
    body += [_step(_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)]
    body += [_step(_RETURN, others), _step(_RETURN, listed)]
    return [_step(_EQUAL, number, 0, len(body)), *body]


def refuse() -> None:
    """Put the filter before every thread of this process, for ever. Needs `no_new_privs`. Raises `WallError`."""
    program = ctypes.create_string_buffer(filter_program())
    length = (len(program) - 1) // 8
    header = struct.pack("=H6xQ", length, ctypes.addressof(program))
    call("seccomp", "seccomp", 1, 1, header)  # all threads
