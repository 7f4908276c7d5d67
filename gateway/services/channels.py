"""What a front end says on its websocket: a cell takes its turn in the session's queue, the rest goes to the kernel.

Requests go out on the gateway's own sockets; each reply finds the client that asked by the id of its request.
"""

import asyncio
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

from gateway.config import Settings
from gateway.errors import GatewayError
from gateway.models.base import told
from gateway.services.asked import AskedCell
from gateway.services.beside import BesideService
from gateway.services.executions import ExecutionService
from gateway.services.front_ends import FrontEnd, Socket
from gateway.services.lasting import lasting
from gateway.services.live_session import LiveSession
from gateway.services.often import Often
from gateway.services.recorder import Recorder, Spawn
from gateway.services.sessions import SessionService
from gateway.stores.base import SessionChanges
from kernels.channels import Channel, Request
from kernels.errors import KernelGone, KernelsError
from kernels.kernel import Kernel
from kernels.messages import Content, Message

log = logging.getLogger(__name__)

_UNANSWERED = frozenset(["comm_open", "comm_msg", "comm_close", "input_reply"])
_CHANGING = frozenset(["comm_open", "comm_msg", "comm_close", "debug_request"])
_NOTED = frozenset(["interrupt_request", "shutdown_request", "debug_request", "comm_open"])  # runs tell by themselves
_OFTEN = frozenset(["comm_msg", "comm_close"])
_LAST_REPLY_S = 5.0
_OURS = "session_gateway_request"
_ENDED = "A Jupyter client has ended its kernel."


class ChannelService:
    def __init__(
        self, settings: Settings, sessions: SessionService, executions: ExecutionService, beside: BesideService,
        recorder: Recorder, spawn: Spawn,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._beside = beside
        self._recorder = recorder
        self._often = Often(recorder.note)
        self._sessions = sessions
        self._executions = executions
        self._spawn = spawn

    def attach(self, live: LiveSession, session_id: str | None, caller: str, socket: Socket) -> FrontEnd:
        """A front end on its socket. The session wakes for it; what it says before that waits.

        One that is new is told what the cell that runs has put out: a page that was loaded again is a new front end.
        """
        new = live.front_ends.known(session_id, caller) is None
        last_published = "" if live.kernel is None else live.kernel.channels.last_published
        front_end = live.front_ends.attach(session_id, caller, socket, last_published)
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
        if message.type in _OFTEN:
            self._often.note(message.type, live.session.id, live.uid)
        elif message.type in _NOTED:
            self._recorder.note(message.type, live.session.id, msg_id=told(message.id, 128), uid=live.uid)
        match message.type:
            case "input_reply":
                await self._answer_input(live, front_end, channel, message)
            case _ if channel == "stdin":
                self._refuse(live, front_end, channel, message, "It is no answer to an input_request.", "Invalid")
            case "execute_request":
                await self._execute(live, front_end, channel, message)
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

    def stop(self) -> None:
        """Write down what was only counted so far."""
        self._often.flush()

    async def interrupt(self, live: LiveSession) -> None:
        """Interrupt the cell that runs; those that front ends have waiting go with it, as it ends with an error."""
        if (run := live.current) is not None:
            await run.interrupt()

    async def restart(self, live: LiveSession) -> None:
        """A kernel without any variables, as front ends mean it; what they had waiting is not run."""
        self._executions.drop(live)
        await self._sessions.restart(live.session.id, fresh=True)

    async def end(self, live: LiveSession) -> None:
        """What front ends mean by the end of a kernel: the session is deleted if one of them has started it.

        Any other is put to sleep, and its kernel not shown to them until somebody uses it. It stays awake, without
        them, while it runs what they have not asked for, or if it can't be saved.
        """
        await lasting(self._spawn, self._end(live))

    async def _end(self, live: LiveSession) -> None:
        if live.session.source == "jupyter":
            await self._sessions.delete(live.session.id)
            return
        self._executions.drop(live)
        if live.current is not None and live.current.asked is not None:
            await self._executions.stop(live.current)
        live.change(SessionChanges(replace={"kernel_ended": True, "notebooks": []}))
        live.front_ends.tell("dead")
        live.front_ends.close(_ENDED)
        try:
            await self._sessions.hibernate(live.session.id, _ENDED)
        except (GatewayError, KernelsError) as error:
            log.info("Session %r stays awake: %s", live.session.id, error)
        await live.outbox.flushed()

    async def _shut_down(self, live: LiveSession, *, restart: bool) -> None:
        try:
            await (self.restart(live) if restart else self.end(live))
        except (GatewayError, KernelsError) as error:
            log.info("Session %r was not shut down: %s", live.session.id, error)

    async def _execute(self, live: LiveSession, front_end: FrontEnd, channel: Channel, message: Message) -> None:
        asked = AskedCell(message, front_end, live.front_ends, channel)
        if not asked.readable:
            why = "Its code is no text, or something else in it is nested too deep."
            self._refuse(live, front_end, channel, message, why, "Invalid")
        elif await self._executions.known_before(live, asked, front_end.caller):
            return
        elif channel == "shell" and message.header.get("subshell_id") is None:
            self._executions.ask(live, asked, front_end.caller)
        else:
            kernel = live.at_hand or await live.ready()
            if not kernel.channels.awaits(message.id):
                own = self._executions.admit(live, asked.all_code)
                await self._executions.check_quotas(live)
                live.variables_changed(message.id)
                limit_bytes = live.guards.output_limit_bytes(self._settings, own)
                self._beside.begin(live, kernel, channel, asked, limit_bytes)

    async def _pass_on(self, live: LiveSession, front_end: FrontEnd, channel: Channel, message: Message) -> None:
        if message.type == "debug_request":
            self._executions.check_code(live, "\n".join(_texts(message.content.get("arguments"))))
        kernel = live.at_hand or await live.ready()
        if message.type in _CHANGING and not kernel.channels.awaits(message.id):
            live.variables_changed(message.id)
        if kernel.channels.awaits(message.id):
            return  # what is said of this message would be taken for an answer to that one
        if message.type in _UNANSWERED:
            kernel.channels.pass_on(channel, message)
        else:
            request = kernel.channels.forward(channel, message, on_reply=partial(front_end.put, channel))
            request.on_idle = partial(self._give_up_soon, request)
            request.done.add_done_callback(partial(self._over, live, front_end, channel, message))

    def _give_up_soon(self, request: Request) -> None:
        """A kernel says nothing to what it does not know: its reply, if there is one, comes at about its idle."""
        asyncio.get_running_loop().call_later(_LAST_REPLY_S, request.done.cancel)

    def _over(
        self, live: LiveSession, front_end: FrontEnd, channel: Channel, message: Message,
        done: "asyncio.Future[Message]",
    ) -> None:  # fmt: skip
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
        elif (kernel := live.kernel) is not None and channel == "stdin" and front_end in live.front_ends.beside:
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


def _texts(value: Any) -> Iterator[str]:
    """All that is said in some JSON: what of it a debugger evaluates is its own affair."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict | list):
            waiting.extend(one.values() if isinstance(one, dict) else one)
