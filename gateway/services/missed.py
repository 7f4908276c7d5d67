"""What front ends missed while no gateway was there: from the kernel's journal, each message once."""

import asyncio
from functools import partial
from typing import Any

from gateway.models.channels import Envelope
from gateway.services.front_ends import FrontEnd, FrontEnds, is_for_clients
from kernels.engine import Engine
from kernels.errors import KernelGone
from kernels.journal import Entry
from kernels.journaled import is_idle, part, read
from kernels.kernel import Kernel
from kernels.messages import Message


class Missed:
    """Those of one session that are behind, and what each of them is given."""

    def __init__(self, front_ends: FrontEnds, kernel: Kernel, engine: Engine) -> None:
        self._front_ends = front_ends
        self._kernel = kernel
        self._journal = partial(engine.journal, kernel.id)
        self._sieve = kernel.channels.new_sieve() if kernel.channels.new_sieve is not None else None
        self._has: dict[FrontEnd, int] = dict.fromkeys(front_ends.behind, 0)  # up to which number
        self.given = asyncio.Event()
        self.ended: list[tuple[FrontEnd, dict[str, Any]]] = []  # cells of theirs of whose end they did not know

    async def give(self) -> None:
        """Have all of them catch up; also if the kernel ends meanwhile."""
        try:
            if self._has:
                await self._find_positions()
                await self._kernel.retrace(self._journal, self._take, self._front_ends.hear_on)
                for told in self._sieve.rest() if self._sieve is not None else ():
                    self._tell(list(self._has), told)
        except KernelGone:
            pass
        finally:
            self._front_ends.caught_up()
            self.given.set()

    async def _find_positions(self) -> None:
        """A front end whose last message is not there any more, or is of a kernel before this one, lacks all of it."""
        wanted = {
            front_end: f'"{front_end.position.noted.heard}'.encode()
            for front_end in self._has
            if front_end.position is not None and front_end.position.noted.heard
        }
        async for entry in self._journal(0):
            header = part(entry, 0)
            for front_end in [one for one, mark in wanted.items() if mark in header]:
                self._has[front_end] = entry.number
                del wanted[front_end]
            if not wanted:
                return

    def _take(self, entry: Entry) -> None:
        behind = [front_end for front_end, number in self._has.items() if number < entry.number]
        if not behind and self._sieve is None:
            return
        lost = entry.lost + (not entry.frames)
        message = read(self._kernel.channels.wire, entry)
        for front_end in behind:
            if lost and self._has[front_end]:
                front_end.miss(lost)
        if message is not None:
            for told in self._sieve.take(message) if self._sieve is not None else (message,):
                self._tell(behind, told)

    def _tell(self, behind: list[FrontEnd], message: Message) -> None:
        if is_for_clients(self._kernel.channels.wire.session, message):
            envelope = Envelope("iopub", message, published=True)
            for front_end in behind:
                self._give(front_end, envelope, message)

    def _give(self, front_end: FrontEnd, envelope: Envelope, message: Message) -> None:
        front_end.give(envelope)
        parent = message.parent
        asked = parent.get("msg_type") == "execute_request" and parent.get("session") == front_end.session_id
        if asked and is_idle(message):
            self.ended.append((front_end, parent))
