"""The file system that a session sees: the host's programs, read-only, and nothing else of the host.

Built on an empty tmpfs, while the process can still mount; `finish` adds the session's own folders and makes the rest
read-only. Runs inside the kernel.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

from . import system

_STAGE = "/tmp"  # noqa: S108 - any folder that exists: what is mounted there is the root a moment later
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
_READ_ONLY_PROC = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_HIDDEN_PROC = ("acpi", "asound", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list", "timer_stats")
_SAFE = system.MS_NOSUID | system.MS_NODEV


def make_private() -> None:
    """Nothing that is mounted here is seen elsewhere."""
    system.mount("mount", "", "/", system.MS_REC | system.MS_PRIVATE)


def system_trees(plan: Mapping[str, Any]) -> dict[str, int]:
    """What all sessions see of the host, detached; taken while we may still read what is ours. Raises `WallError`."""
    safe = system.MOUNT_NOSUID | system.MOUNT_RDONLY
    trees = {path: system.open_tree("mount", path, safe | system.MOUNT_NODEV) for path in plan["system"]}
    for name in _DEVICES:
        trees[f"/dev/{name}"] = system.open_tree("mount", f"/dev/{name}", system.MOUNT_NOSUID | system.MOUNT_NOEXEC)
    return trees


def build(plan: Mapping[str, Any], trees: Mapping[str, int]) -> None:
    """Make the root of this mount namespace anew, without the session's own folders. Raises `WallError`, `OSError`."""
    before = os.umask(0o022)
    make_private()
    system.mount("mount", "tmpfs", _STAGE, _SAFE, "mode=755,size=4m,nr_inodes=8192")
    os.chdir(_STAGE)
    for folder in ("proc", "dev", "tmp", "run", "var", "etc", "dev/pts", "dev/shm"):
        os.mkdir(folder)
    system.mount("mount", "tmpfs", "tmp", _SAFE, f"mode=1777,{_bounded(plan['tmp_bytes'])}")
    system.mount("mount", "tmpfs", "dev/shm", _SAFE | system.MS_NOEXEC, f"mode=1777,{_bounded(plan['shm_bytes'])}")
    _place(trees)
    for path, target in plan.get("links", {}).items():
        if not os.path.lexists(path[1:]):
            os.makedirs(os.path.dirname(path[1:]) or ".", exist_ok=True)
            os.symlink(target, path[1:])
    for path, text in plan.get("files", {}).items():
        os.makedirs(os.path.dirname(path[1:]), exist_ok=True)
        with open(path[1:], "wb") as file:  # as bytes: codecs are modules, which can't always be imported here
            file.write(text.encode())
    system.mount(
        "mount", "devpts", "dev/pts", system.MS_NOSUID | system.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"
    )
    for name, target in {**_LINKS, "ptmx": "pts/ptmx"}.items():
        os.symlink(target, f"dev/{name}")
    os.symlink("../tmp", "var/tmp")
    if "pid" in plan["namespaces"]:
        mount_proc()
    system.pivot_root("mount")
    os.umask(before)


def finish(trees: Mapping[str, int]) -> None:
    """Mount the session's own folders where they are outside; from now on nothing else can be written."""
    os.chdir("/")
    before = os.umask(0o022)
    _place(trees)
    os.umask(before)
    system.mount("mount", "", "/", system.MS_REMOUNT | system.MS_BIND | system.MS_RDONLY | _SAFE)


def bound_temporary(size_bytes: int) -> None:
    """Each of the folders that are in memory, from now on."""
    for path, flags in (("/tmp", _SAFE), ("/dev/shm", _SAFE | system.MS_NOEXEC)):  # noqa: S108 - its own
        system.mount("mount", "tmpfs", path, system.MS_REMOUNT | flags, _bounded(size_bytes))


def _place(trees: Mapping[str, int]) -> None:
    """Below the current folder, those that hold others first."""
    for path in sorted(trees):
        target = path.lstrip("/")
        if stat.S_ISDIR(os.fstat(trees[path]).st_mode):
            os.makedirs(target, exist_ok=True)
        elif not os.path.lexists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444))
        system.move_mount("mount", trees[path], target)


def mount_proc(before: str = "") -> None:
    """That of our pid namespace; `before` is where another one is, without which it would not be allowed, and goes."""
    system.mount("pid", "proc", "proc", _SAFE | system.MS_NOEXEC)
    if before:
        system.unmount("pid", before)
        os.rmdir(before)
    with open("proc/sys/user/max_user_namespaces", "wb") as most:
        most.write(b"0")  # inside: a namespace of its own would give a session capabilities in it
    for name in _READ_ONLY_PROC:
        if os.path.exists(f"proc/{name}"):
            tree = system.open_tree("pid", f"proc/{name}", system.MOUNT_RDONLY)
            system.move_mount("pid", tree, f"proc/{name}")
            os.close(tree)
    for name in _HIDDEN_PROC:
        if os.path.isdir(f"proc/{name}"):
            system.mount("pid", "tmpfs", f"proc/{name}", _SAFE | system.MS_RDONLY, "size=4k,nr_inodes=2")
        elif os.path.exists(f"proc/{name}"):
            tree = system.open_tree("pid", "dev/null", system.MOUNT_RDONLY)
            system.move_mount("pid", tree, f"proc/{name}")
            os.close(tree)


def _bounded(size_bytes: int) -> str:
    return f"size={size_bytes},nr_inodes={max(1024, min(262_144, size_bytes // 4096))}"
