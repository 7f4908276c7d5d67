"""Checkpoints asked of a live kernel of ours: its variables written to a folder, and brought back from one.

A kernel runs the session's code, so what it answers is checked and cut to size before anybody works with it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from kernels.asking import ask
from kernels.channels import Channels
from kernels.errors import CheckpointFailed

T = TypeVar("T")

_MOST_LISTED = 10_000  # variables, or others, of one report
_LONGEST_TEXT = 1_000  # characters
_LARGEST_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that was kept; `size` is what its own part of the checkpoint takes, in bytes."""

    name: str
    type: str
    size: int


@dataclass(frozen=True, slots=True)
class Unsaved:
    """What was not carried over: all of `name`, or a part deep inside of it. `type` is that of what is missing."""

    name: str
    type: str
    reason: str
    part: bool


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was written. The session stood still for `pause_ms`; `method_reason` says why it was not a fork.

    `taken_at` is unix time. `last_run` and `last_setting` are the ids of the last cell, and of the last request that
    set or deleted a variable, whose effect is in it; empty if there was none. `packages` are those that were imported,
    with their versions.
    """

    method: Literal["fork", "in-process"]
    method_reason: str
    pause_ms: float
    taken_at: float
    last_run: str
    last_setting: str
    variables: list[Variable]
    unsaved: list[Unsaved]
    warnings: list[str]
    packages: dict[str, str]


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back; `unsaved` was not in the checkpoint, `failed` could not be brought back from it."""

    variables: list[Variable]
    unsaved: list[Unsaved]
    failed: list[Unsaved]
    warnings: list[str]


async def save(channels: Channels, folder: str, *, wait_s: float, timeout_s: float) -> Checkpoint:
    """Write the session's variables to `folder`, an absolute path, between two cells. Nothing is synced to disk.

    Raises `KernelBusy` if no cell ended within `wait_s`, and then none is written later either; `CheckpointFailed`,
    also if the writing takes longer than `timeout_s`; `KernelGone`.
    """
    limits = {"wait_s": wait_s, "timeout_s": timeout_s}
    answer = await ask(channels, "checkpoint", {"folder": folder, **limits}, wait_s + timeout_s)
    warnings: list[str] = []
    return Checkpoint(
        method="fork" if _text(answer, "method") == "fork" else "in-process",
        method_reason=_text(answer, "method_reason"),
        pause_ms=_number(answer, "pause_ms"),
        taken_at=_number({"taken_at": 0.0, **answer}, "taken_at"),  # an older kernel does not tell
        last_run=_text({"last_run": "", **answer}, "last_run"),
        last_setting=_text({"last_setting": "", **answer}, "last_setting"),
        variables=_listed(answer, "variables", _variable, warnings),
        unsaved=_listed(answer, "unsaved", _unsaved, warnings),
        warnings=_listed(answer, "warnings", _warning, warnings) + warnings,
        packages=_versions(answer.get("packages")),
    )


async def load(channels: Channels, folder: str, *, names: Collection[str] | None = None, timeout_s: float) -> Restored:
    """Bring back what is in `folder`; of the variables only `names`, if given.

    The folder may be deleted afterwards, but its files must never be changed: large arrays are mapped from them.
    Raises `CheckpointFailed`, and then the variables are as they were; `KernelBusy`; `KernelGone`.
    """
    wanted = None if names is None else list(names)
    limits = {"wait_s": timeout_s, "timeout_s": timeout_s}
    answer = await ask(channels, "restore", {"folder": folder, "names": wanted, **limits}, 2 * timeout_s)
    warnings: list[str] = []
    return Restored(
        variables=_listed(answer, "variables", _variable, warnings),
        unsaved=_listed(answer, "unsaved", _unsaved, warnings),
        failed=_listed(answer, "failed", _unsaved, warnings),
        warnings=_listed(answer, "warnings", _warning, warnings) + warnings,
    )


def _listed(answer: dict[str, Any], name: str, read: Callable[[Any], T], warnings: list[str]) -> list[T]:
    listed = answer.get(name)
    if not isinstance(listed, list):
        raise CheckpointFailed("The kernel's answer is no report of a checkpoint.")
    if len(listed) > _MOST_LISTED:
        warnings.append(f"Of {len(listed)} {name}, {_MOST_LISTED} are listed.")
    return [read(one) for one in listed[:_MOST_LISTED]]


def _variable(one: Any) -> Variable:
    return Variable(name=_text(one, "name"), type=_text(one, "type"), size=int(_number(one, "size")))


def _unsaved(one: Any) -> Unsaved:
    reason = _text(one, "reason")
    return Unsaved(name=_text(one, "name"), type=_text(one, "type"), reason=reason, part=one.get("part") is True)


def _versions(packages: Any) -> dict[str, str]:
    if not isinstance(packages, dict):
        raise CheckpointFailed("The kernel's answer is no report of a checkpoint.")
    names = list(packages)[:_MOST_LISTED]
    return {_text({"name": name}, "name"): _text(packages, name) for name in names}


def _warning(one: Any) -> str:
    return _text({"text": one}, "text")


def _text(answer: Any, name: str) -> str:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, str):
        raise CheckpointFailed("The kernel's answer is no report of a checkpoint.")
    return value[:_LONGEST_TEXT]


def _number(answer: Any, name: str) -> float:
    value = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(value, int | float) or not 0 <= value <= _LARGEST_SIZE:
        raise CheckpointFailed("The kernel's answer is no report of a checkpoint.")
    return value
