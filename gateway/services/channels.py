"""What a front end says on its websocket: a cell takes its turn in the session's queue, the rest goes to the kernel.

Requests go out on the gateway's own sockets; each reply finds the client that asked by the id of its request.
"""

import asyncio
import logging
from functools import partial

from gateway.errors import GatewayError
from gateway.services.asked import AskedCell
from gateway.services.executions import ExecutionService
from gateway.services.front_ends import FrontEnd, Socket
from gateway.services.live_session import LiveSession
from gateway.services.recorder import Spawn
from gateway.services.sessions import SessionService
from kernels.channels import Channel
from kernels.errors import KernelGone, KernelsError
from kernels.kernel import Kernel
from kernels.messages import Content, Message

log = logging.getLogger(__name__)

_UNANSWERED = frozenset(["comm_open", "comm_msg", "comm_close", "input_reply"])
_CHANGING = frozenset(["comm_open", "comm_msg", "comm_close", "execute_request", "debug_request"])
_OURS = "session_gateway_request"


class ChannelService:
    def __init__(self, sessions: SessionService, executions: ExecutionService, spawn: Spawn) -> None:
        self._sessions = sessions
        self._executions = executions
        self._spawn = spawn

    def attach(self, live: LiveSession, session_id: str | None, caller: str, socket: Socket) -> FrontEnd:
        """A front end on its socket. The session wakes for it; what it says before that waits.

        One that is new is told what the cell that runs has put out: a page that was loaded again is a new front end.
        """
        new = not live.front_ends.knows(session_id, caller)
        front_end = live.front_ends.attach(session_id, caller, socket)
        if new and (run := live.current) is not None:
            for msg_type, content in run.so_far():
                front_end.put("iopub", live.front_ends.made(msg_type, content, run.request_header))
        if live.kernel is None and live.closing is None:
            self._spawn(self._sessions.start(live))
        return front_end

    def leave(self, live: LiveSession, front_end: FrontEnd, socket: Socket) -> None:
        """Its socket is closed."""
        live.front_ends.leave(front_end, socket)
        live.touch()

    async def receive(self, live: LiveSession, front_end: FrontEnd, channel: Channel, message: Message) -> None:
        """One message of a front end. Whatever it asks is answered, with an error if it can't be done."""
        live.touch()
        front_end.heed()
        try:
            await self._receive(live, front_end, channel, message)
        except (GatewayError, KernelsError) as error:
            self._refuse(live, front_end, channel, message, str(error), type(error).__name__)

    async def _receive(self, live: LiveSession, front_end: FrontEnd, channel: Channel, message: Message) -> None:
        subshell = message.header.get("subshell_id")
        match message.type:
            case "execute_request" if channel == "shell" and subshell is None:
                asked = AskedCell(message, front_end, live.front_ends)
                self._executions.ask(live, asked, front_end.caller)
            case "input_reply":
                await self._answer_input(live, front_end, channel, message)
            case "interrupt_request":
                await self.interrupt(live)
                self._answer(live, front_end, channel, message, {"status": "ok"})
            case "shutdown_request":
                restart = bool(message.content.get("restart"))
                self._answer(live, front_end, channel, message, {"status": "ok", "restart": restart})
                self._spawn(self._shut_down(live, restart=restart))
            case type_ if type_ == _OURS:
                self._refuse(live, front_end, channel, message, "That is not for clients.", "Denied")
            case "kernel_info_request" if live.current is not None and live.kernel is not None:
                self._tell_while_busy(live.kernel, front_end, channel, message)
            case _:
                await self._pass_on(live, front_end, channel, message)

    async def interrupt(self, live: LiveSession) -> None:
        """Interrupt the cell that runs; those that front ends have waiting go with it, as it ends with an error."""
        if (run := live.current) is not None:
            await run.interrupt()

    async def restart(self, live: LiveSession) -> None:
        """A kernel without any variables, as front ends mean it; what they had waiting is not run."""
        self._executions.drop(live)
        await self._sessions.restart(live.session.id, fresh=True)

    async def _shut_down(self, live: LiveSession, *, restart: bool) -> None:
        try:
            if restart:
                await self.restart(live)
            else:
                await self._sessions.delete(live.session.id)
        except (GatewayError, KernelsError) as error:
            log.info("Session %r was not shut down: %s", live.session.id, error)

    async def _pass_on(self, live: LiveSession, front_end: FrontEnd, channel: Channel, message: Message) -> None:
        kernel = live.at_hand or await live.ready()
        if message.type in _CHANGING:
            live.variables_changed(message.id)
        if message.type in _UNANSWERED:
            kernel.channels.pass_on(channel, message)
        elif not kernel.channels.awaits(message.id):
            runs_code = message.type == "execute_request"
            request = kernel.channels.forward(
                channel, message, on_reply=partial(front_end.put, channel),
                on_input=partial(front_end.put, "stdin"), wants_idle=runs_code,
            )  # fmt: skip
            request.done.add_done_callback(partial(self._over, live, front_end, channel, message, runs_code))
            live.front_ends.beside += runs_code

    def _over(
        self, live: LiveSession, front_end: FrontEnd, channel: Channel, message: Message, runs_code: bool,
        done: "asyncio.Future[Message]",
    ) -> None:  # fmt: skip
        live.front_ends.beside -= runs_code
        live.touch()
        if not done.cancelled() and isinstance(error := done.exception(), KernelGone):
            self._refuse(live, front_end, channel, message, str(error), "KernelDied")

    def _tell_while_busy(self, kernel: Kernel, front_end: FrontEnd, channel: Channel, message: Message) -> None:
        """The shell answers when the cell has ended, the control channel at once."""
        if not kernel.channels.awaits(message.id):
            kernel.channels.forward("control", message, on_reply=partial(front_end.put, channel))

    async def _answer_input(self, live: LiveSession, front_end: FrontEnd, channel: Channel, message: Message) -> None:
        run = live.current
        if run is not None and run.asked is not None and run.asked.front_end is front_end and run.waits_for_input:
            run.give_input(str(message.content.get("value", "")))
        elif (kernel := live.kernel) is not None and channel == "stdin" and live.front_ends.beside:
            kernel.channels.pass_on(channel, message)

    def _answer(
        self, live: LiveSession, front_end: FrontEnd, channel: Channel, message: Message, content: Content
    ) -> None:
        """In the kernel's stead."""
        kind = message.type.removesuffix("_request") + "_reply"
        front_end.put(channel, live.front_ends.made(kind, content, message.header))
        front_end.put("iopub", live.front_ends.made("status", {"execution_state": "idle"}, message.header))
        self._still_busy(live, front_end)

    def _still_busy(self, live: LiveSession, front_end: FrontEnd) -> None:
        if live.current is not None:
            front_end.put("iopub", live.front_ends.made("status", {"execution_state": "busy"}))

    def _refuse(
        self, live: LiveSession, front_end: FrontEnd, channel: Channel, message: Message, why: str, ename: str
    ) -> None:
        if message.type not in _UNANSWERED:
            error = {"status": "error", "ename": ename, "evalue": why, "traceback": [f"{ename}: {why}"]}
            self._answer(live, front_end, channel, message, error)
