"""Forks a process that nobody here is the parent of. No walls yet: a plan for them is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class WallError(Exception):
    """A wall that can't be made, and why."""

    def __init__(self, wall: str, reason: str) -> None:
        super().__init__(f"{wall}: {reason}")


class Forked(NamedTuple):
    """As their parent's namespace numbers them."""

    pid: int
    init_pid: int | None = None
    user_ns: int | None = None


def fork(plan: Mapping[str, Any], before_exit: Callable[[], None] | None = None) -> Forked | None:
    """None in the child, whose parent is the nearest subreaper. Raises `WallError`."""
    if plan:
        raise WallError("all", "this build has none")
    told, tell = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            pid = os.fork()
        except OSError:
            os._exit(1)
        if pid == 0:
            os.close(told)
            os.close(tell)
            return None
        os.write(tell, str(pid).encode())
        os._exit(0)
    os.close(tell)
    text = os.read(told, 20)
    os.close(told)
    os.waitpid(between, 0)
    if not text:
        raise WallError("process", "the system lets no more be started")
    return Forked(int(text))


def open_trees(paths: Mapping[str, str], user_ns: int | None) -> dict[str, int]:
    """Nothing needs to be brought behind walls that are not there."""
    return {}


def close(plan: Mapping[str, Any], trees: Mapping[str, int], *, hostname: str, limits: Mapping[str, Any]) -> list[str]:
    """The names of the walls that stand."""
    return []
