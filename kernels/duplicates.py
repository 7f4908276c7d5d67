"""Asks a live kernel of ours to become two: a copy of its process reports at an address, for its keeper to name it.

A kernel runs the session's code, so what it answers is checked and cut to size before anybody works with it.
"""

from dataclasses import dataclass
from typing import Any

from kernels.asking import ask
from kernels.channels import Channels
from kernels.errors import KernelsError

_MOST_LISTED = 20
_LONGEST_TEXT = 300  # characters


@dataclass(frozen=True, slots=True)
class NotCarried:
    """What the copy of a process would not have."""

    name: str
    type: str
    reason: str


class NotForked(KernelsError):
    """The kernel can't be copied as it is now: a copy would lack something. Nothing has happened."""

    def __init__(self, missing: list[NotCarried]) -> None:
        super().__init__("; ".join(f"{one.name}: {one.reason}" for one in missing) or "The kernel did not say why.")
        self.missing = missing


async def fork(channels: Channels, address: str, *, wait_s: float) -> float:
    """Have the kernel copied between two cells; how long it stood still, in ms.

    Raises `KernelBusy` if no cell ended within `wait_s`, and then none is made later either; `NotForked`;
    `CheckpointFailed` if the kernel does not know how; `KernelGone`.
    """
    answer = await ask(channels, "duplicate", {"address": address, "wait_s": wait_s}, wait_s)
    if answer.get("refused"):
        raise NotForked(_missing(answer["refused"]))
    pause_ms = answer.get("pause_ms")
    return float(pause_ms) if isinstance(pause_ms, int | float) else 0.0


def _missing(refused: Any) -> list[NotCarried]:
    listed = [one for one in refused if isinstance(one, dict)] if isinstance(refused, list) else []
    return [
        NotCarried(_text(one.get("name")), _text(one.get("type")), _text(one.get("reason")))
        for one in listed[:_MOST_LISTED]
    ]


def _text(value: Any) -> str:
    return value[:_LONGEST_TEXT] if isinstance(value, str) else ""
