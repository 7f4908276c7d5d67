"""Requests that only our own kernel knows, on its control channel.

It runs the session's code, so what it answers is checked and cut to size by whoever asked.
"""

import asyncio
from typing import Any

from kernels.channels import Channels
from kernels.errors import CheckpointFailed, KernelBusy

_LONGEST_WHY = 1_000  # characters
_ANSWER_S = 15.0  # past its own limits, a kernel that is alive has answered within that


async def ask(channels: Channels, action: str, arguments: dict[str, Any], longest_s: float) -> dict[str, Any]:
    """The answer to what takes the kernel up to `longest_s`.

    Raises `KernelBusy` where no moment between cells came in time, `CheckpointFailed`, `KernelGone`.
    """
    try:
        async with asyncio.timeout(longest_s + _ANSWER_S):
            answer = await channels.ask("control", "session_gateway_request", {"action": action, **arguments})
    except TimeoutError:
        raise CheckpointFailed("The kernel did not answer.") from None
    if answer.get("status") == "ok":
        return answer
    evalue = answer.get("evalue")
    why = evalue[:_LONGEST_WHY] if isinstance(evalue, str) and evalue else "The kernel did not say why."
    raise KernelBusy(why) if answer.get("ename") == "Busy" else CheckpointFailed(why)
