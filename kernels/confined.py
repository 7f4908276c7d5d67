"""Starts a program behind walls, as a child of ours: kernels that are not forked from a process that is ready."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kernels import processes
from kernels.errors import StartFailed
from kernels.inherited import Inherited, Kin
from kernels.sandbox import CONFINE

_START_S = 30.0
_MOST_TOLD = 65_536


def command(argv: Sequence[str], order: Mapping[str, Any]) -> list[str]:
    """How a program is run behind walls by whoever waits for its end. `order`: as `inside/confine.py` says."""
    return [sys.executable, "-I", "-S", str(CONFINE), json.dumps(order), *argv]


async def start(
    argv: Sequence[str], order: Mapping[str, Any], *, env: Mapping[str, str], output_fd: int, kin: Kin
) -> Inherited:
    """Start it; we must be a subreaper. `order["plan"]["uids"]` are users of which it becomes one of its own.

    Raises `StartFailed`.
    """
    plan = dict(order["plan"])
    uid = kin.take_uid(range(*plan.pop("uids", (0,))))
    reading, writing = os.pipe()
    try:
        with open(reading, "rb", buffering=0) as told:  # noqa: ASYNC230 - a pipe
            try:
                whole = {**order, "plan": {**plan, "uid": uid}, "tell": writing}
                process = subprocess.Popen(  # noqa: ASYNC220, S603 - starting what a kernelspec names is the work
                    command(argv, whole), env=dict(env), cwd="/", stdin=subprocess.DEVNULL, stdout=output_fd,
                    stderr=output_fd, pass_fds=[writing], start_new_session=True,
                )  # fmt: skip
            except (OSError, ValueError) as error:
                raise StartFailed(f"{argv[0]!r} does not start: {error}") from None
            finally:
                os.close(writing)
            answer = await asyncio.shield(asyncio.ensure_future(_heard(process, told)))
    except BaseException:
        kin.give_back(uid)
        raise
    started = Inherited(answer["pid"], answer["init_pid"], kin, uid)
    started.walls = answer["walls"]
    return started


async def _heard(process: "subprocess.Popen[bytes]", told: Any) -> dict[str, Any]:
    """What the process between tells before it ends. Raises `StartFailed`."""
    try:
        async with asyncio.timeout(_START_S):
            await processes.exited(process)
    except TimeoutError:
        process.kill()
        await processes.exited(process)
    answer: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        answer = json.loads(told.read(_MOST_TOLD))
    if "pid" not in answer:
        why = answer.get("reason", "the process between ended without a word")
        raise StartFailed(f"The walls around the kernel can't be put up: {answer.get('wall', 'confine')}: {why}")
    return answer
