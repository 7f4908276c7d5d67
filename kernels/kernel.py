"""A running kernel: cells, introspection, interrupts, and the truth about how it ended.

A cell is over when its reply and its `idle` are both in. Whoever leaves `execute` early gets the cell
interrupted, and the block is not left before the cell has really ended or the kernel with it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Literal
from uuid import uuid4

from kernels import duplicates
from kernels.channels import Channel, Channels, Listener, Request, connected
from kernels.engine import Engine, Exit, Kept, KernelProcess, Kernelspec, Launch
from kernels.errors import KernelGone, KernelsError, NeverArrived, NotOffered, StartFailed
from kernels.fstrings import for_python_before_312
from kernels.intake import Intake
from kernels.journal import Entry
from kernels.journaled import RunOf, Verdict, count_of, may_follow
from kernels.messages import Message, received
from kernels.outputs import Event, Outputs

log = logging.getLogger(__name__)

OnEvent = Callable[[Event], None]
OnInput = Callable[[str, bool], None]  # prompt, whether it is a password
Entries = Callable[[int], AsyncIterator[Entry]]  # what was published after the message of that number

_FIRST_PATIENCE_S, _LONGEST_PATIENCE_S = 0.005, 0.1  # with a kernel that answers, but is not heard
_LAST_WORDS_S = 0.05  # how long after its death a kernel's messages are still read
_LOST_IDLE_S = 2.0
_LOST_REPLY_S = 0.25  # a reply is sent before its idle
_LOST_MARKER_S = 5.0
_LONGEST_PROMPT = 10_000  # characters


class _NeverBegan(KernelsError):
    """An interrupt came when the kernel had the request but had not begun the cell: it drops it, without a reply."""


class _Unanswered(KernelsError):
    """The kernel has answered what came later, or is idle again: it could not read this request."""

    def __init__(self) -> None:
        super().__init__("The kernel could not read this request, and has not run it.")


class Execution:
    """One cell that runs."""

    def __init__(self, outputs: Outputs, on_event: OnEvent, on_input: OnInput) -> None:
        self.outputs = outputs
        self.execution_count: int | None = None
        self.started_at = time.time()
        self._on_event = on_event
        self._on_input = on_input
        self.input_request: Message | None = None
        self.request: Request

    @property
    def ended(self) -> bool:
        return self.request.done.done()

    def take(self, message: Message) -> None:
        if message.type == "execute_input":
            self.execution_count = count_of(message)
        elif event := self.outputs.add(message):
            self._on_event(event)

    def ask_input(self, message: Message) -> None:
        self.input_request = message
        self._on_input(str(message.content.get("prompt", ""))[:_LONGEST_PROMPT], bool(message.content.get("password")))

    def never_answered(self) -> None:
        """Its idle is in, and its reply was sent before: if it is not here by now, there is none."""
        self.request.fail(_NeverBegan())

    def await_reply(self) -> None:
        """Its idle is in: the reply was sent before, and comes any moment, if there is one."""
        asyncio.get_running_loop().call_later(_LOST_REPLY_S, self.never_answered)


class Resumed(Execution):
    """One that somebody else has begun, who is gone. Its reply may have gone to them: then it is made up again."""

    def __init__(self, channels: Channels, outputs: Outputs, on_event: OnEvent, on_input: OnInput) -> None:
        super().__init__(outputs, on_event, on_input)
        self._channels = channels
        self._verdict = Verdict()

    def take(self, message: Message) -> None:
        self._verdict.take(message)
        super().take(message)

    @property
    def asked(self) -> dict[str, Any]:
        """The header of what asked for it, as far as it is known."""
        return self._verdict.request or {"msg_id": self.request.msg_id, "msg_type": "execute_request"}

    def never_answered(self) -> None:
        if self.request.idle_seen and not self.ended:
            wire = self._channels.wire
            made = wire.request("execute_reply", self._verdict.reply(), parent=self.asked)
            self.request.got_reply(wire.read(made[1]))

    def is_over(self) -> None:
        """The kernel is free, though the cell's end was not heard: it was lost, or the cell never arrived."""
        if self.ended:
            return
        if not self._verdict.began:
            self.request.fail(NeverArrived("The kernel never got this run."))
        self.outputs.truncated = True
        self.request.got_idle()
        self.never_answered()


class Kernel:
    """Talks to one kernel process. Made by `running` or `attached`."""

    def __init__(self, kernel_id: str, spec: Kernelspec, process: KernelProcess, channels: Channels) -> None:
        self.id = kernel_id
        self.spec = spec
        self.process = process
        self.channels = channels
        self.info: dict[str, Any] = {}
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._current: Execution | None = None
        self._subshell: str | None = None
        self._left = False

    @property
    def is_ours(self) -> bool:
        """Whether it answers the requests that only our own Python kernel knows."""
        return bool(self.info.get("session_gateway"))

    @property
    def busy(self) -> bool:
        return self._current is not None

    def check_run_env(self) -> None:
        """Raises `NotOffered` if this kernel can't set environment variables for one run."""
        if not self.is_ours:
            raise NotOffered(f"The kernel {self.spec.name!r} can't set environment variables for one run.")

    def _before_python_312(self) -> bool:
        language = self.info.get("language_info", {})
        if language.get("name") != "python":
            return False
        try:
            return tuple(int(part) for part in language.get("version", "").split(".")[:2]) < (3, 12)
        except ValueError:
            return False

    async def attach(self, timeout_s: float, channel: Literal["shell", "control"] = "shell") -> None:
        """Wait until one request was answered and seen on IOPub, and its journal hears. Raises `StartFailed`.

        The shell of a kernel that is at work does not answer, its control channel does. One that answers but is not
        heard on IOPub is asked again: soon, and then ever later.
        """
        journaling = asyncio.ensure_future(self.process.journaling())
        patience_s = _FIRST_PATIENCE_S
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    request = await self.channels.send(channel, "kernel_info_request", {}, wants_idle=True)
                    self.info = (await request.replied).content
                    both: list[asyncio.Future[Any]] = [request.done, journaling]
                    await asyncio.wait(both, timeout=patience_s)
                    if request.done.done() and journaling.done():
                        await request.done
                        return
                    request.done.cancel()
                    patience_s = min(2 * patience_s, _LONGEST_PATIENCE_S)
        except KernelGone as error:
            raise StartFailed(f"The kernel ended while it started: {error}") from None
        except TimeoutError:
            raise StartFailed(f"The kernel did not answer within {timeout_s:g} s.") from None
        finally:
            journaling.cancel()

    @asynccontextmanager
    async def execute(
        self,
        run_id: str,
        code: str,
        *,
        on_event: OnEvent,
        on_input: OnInput,
        output_limit_bytes: int,
        store_history: bool = True,
        env: Mapping[str, str] | None = None,
        stdin: Sequence[str] | None = None,
        grace_s: float = 3.0,
    ) -> AsyncIterator[Execution]:
        """Run a cell; its messages carry `run_id` as their parent's id. One at a time: the caller sees to it.

        `stdin` are lines for its `input()`; a kernel that is not ours asks for them. Raises `KernelGone`, `NotOffered`.
        """
        if env:
            self.check_run_env()
        if self._before_python_312():
            code = for_python_before_312(code)
        execution = Execution(Outputs(output_limit_bytes), on_event, on_input)
        content = {
            "code": code,
            "silent": False,
            "store_history": store_history,
            "user_expressions": {},
            "allow_stdin": True,
            "stop_on_error": False,
        }
        wishes: dict[str, Any] = {"output_limit": output_limit_bytes, "env": dict(env or {})}
        if stdin is not None:
            wishes["stdin"] = list(stdin)
        execution.request = await self.channels.send(
            "shell", "execute_request", content,
            metadata={"session_gateway": wishes}, msg_id=run_id,
            on_iopub=execution.take, on_input=execution.ask_input, wants_idle=True,
        )  # fmt: skip
        async with self._under_way(execution, grace_s):
            yield execution

    @asynccontextmanager
    async def execute_request(
        self,
        message: Message,
        *,
        on_event: OnEvent,
        on_input: OnInput,
        on_reply: Listener,
        output_limit_bytes: int,
        grace_s: float = 3.0,
    ) -> AsyncIterator[Execution]:
        """Run the cell of an `execute_request` that a client has sent; otherwise like `execute`.

        Its parts stay as the client wrote them but for what is ours to say: the output limit, and that the kernel
        refuses nothing that comes after an error, since what waits for its turn is not in the kernel yet.
        """
        execution = Execution(Outputs(output_limit_bytes), on_event, on_input)
        execution.request = self.channels.forward(
            "shell", self._bounded(message, output_limit_bytes, stop_on_error=False),
            on_reply=on_reply, on_iopub=execution.take, on_input=execution.ask_input, wants_idle=True,
        )  # fmt: skip
        async with self._under_way(execution, grace_s):
            yield execution

    def _bounded(self, message: Message, output_limit_bytes: int, **more: Any) -> Message:
        content, wire = {**message.content, **more}, self.channels.wire
        code = content.get("code")
        if isinstance(code, str) and self._before_python_312():
            content["code"] = for_python_before_312(code)
        metadata = {**message.metadata, "session_gateway": {"output_limit": output_limit_bytes}}
        header, parent, _, _, *buffers = message.parts
        return received([header, parent, wire.pack(metadata), wire.pack(content), *buffers])

    def execute_beside(
        self, channel: Channel, message: Message, *, on_input: Listener, on_reply: Listener, output_limit_bytes: int
    ) -> Execution:
        """Run the cell of an `execute_request` beside the main shell: in its subshell, or on the control channel.

        Its request is done once it has ended; nobody can stop it but with the kernel. Raises `KernelGone`.
        """
        execution = Execution(Outputs(output_limit_bytes), _nothing, _nothing)
        execution.request = self.channels.forward(
            channel, self._bounded(message, output_limit_bytes),
            on_reply=on_reply, on_iopub=execution.take, on_input=on_input, wants_idle=True,
        )  # fmt: skip
        execution.request.on_idle = execution.await_reply
        return execution

    async def resume_beside(
        self, run_id: str, journal: Entries, *, on_input: Listener | None, on_reply: Listener | None,
        output_limit_bytes: int,
    ) -> Execution:  # fmt: skip
        """Take over a cell that runs, or ran, beside the main shell, like `resume`. Raises `KernelGone`."""
        execution = Resumed(self.channels, Outputs(output_limit_bytes), _nothing, _nothing)
        execution.request = self.channels.expect(run_id, execution.take, on_input or _nothing)
        execution.request.on_reply = on_reply
        await self._catch_up(execution, journal)
        return execution

    @asynccontextmanager
    async def resume(
        self,
        run_id: str,
        journal: Entries,
        *,
        started_at: float,
        on_event: OnEvent,
        on_input: OnInput,
        output_limit_bytes: int,
        on_reply: Listener | None = None,
        grace_s: float = 3.0,
    ) -> AsyncIterator[Execution]:
        """Take over a cell that somebody else has begun, who is gone: all that it published, then what still comes.

        Also one that has ended. `started_at` is unix time. The block is like that of `execute`. Raises `KernelGone`.
        """
        execution = Resumed(self.channels, Outputs(output_limit_bytes), on_event, on_input)
        execution.started_at = started_at
        execution.request = self.channels.expect(run_id, execution.take, execution.ask_input)
        execution.request.on_reply = on_reply
        async with self._under_way(execution, grace_s):
            await self._catch_up(execution, journal)
            await self._hear_question(execution)
            yield execution

    async def _hear_question(self, execution: Resumed) -> None:
        """What the cell asked of those who are gone; what it asks from now on comes here."""
        if not self.is_ours or execution.ended:
            return
        asked = (await self.namespace("question")).get("question")
        if not isinstance(asked, dict) or asked.get("run_id") != execution.request.msg_id:
            return
        if execution.input_request is None and not execution.ended:
            wire = self.channels.wire
            content = {name: asked[name] for name in ("prompt", "password")}
            question = wire.read(wire.request("input_request", content, parent=execution.asked)[1])
            for one in self.channels.new_sieve().take(question) if self.channels.new_sieve is not None else (question,):
                execution.ask_input(one)

    async def _catch_up(self, execution: Resumed, journal: Entries) -> None:
        """Hear what was published before we came, from the journal, and no message twice."""
        request = execution.request
        run = RunOf(self.channels.wire, request.msg_id, request.hear, self.channels.new_sieve)
        whole = await self.retrace(journal, run.take, request.hold)  # what is held before that is in the journal
        run.rest()
        if run.incomplete or not whole:
            execution.outputs.truncated = True
        if request.idle_seen:  # long ago: a reply would be here
            execution.never_answered()
        request.on_idle = execution.await_reply
        request.release()

    async def retrace(self, journal: Entries, take: Callable[[Entry], object], on_mark: Callable[[], None]) -> bool:
        """All that was published before a mark in it, from the journal; what is heard after `on_mark` comes after that.

        The kernel publishes in one order for all who listen; a request of ours is the mark. Whether it was found there.
        Raises `KernelGone`.
        """
        marker, heard = uuid4().hex, asyncio.Event()

        def look_for_marker(message: Message) -> None:
            if message.parent_id == marker and not heard.is_set():
                heard.set()
                on_mark()

        stop_listening = self.channels.listen(look_for_marker)
        try:
            asked = await self.channels.send("control", "kernel_info_request", {}, msg_id=marker, wants_idle=True)
            return await self._replay(take, marker, heard, asked, journal)
        finally:
            stop_listening()

    async def _replay(
        self, take: Callable[[Entry], object], marker: str, heard: asyncio.Event, asked: Request, journal: Entries
    ) -> bool:
        after, looked_until = 0, float("inf")
        while time.monotonic() < looked_until:
            last_time = self.channels.broken  # no marker comes any more, but all that was published is there
            async with aclosing(journal(after)) as entries:  # type: ignore[type-var]
                async for entry in entries:
                    after = entry.number
                    take(entry)
                    if may_follow(entry, marker):
                        asked.done.cancel()
                        return True
            if last_time:
                return True
            if heard.is_set() and looked_until == float("inf"):
                looked_until = time.monotonic() + _LOST_MARKER_S
            await asyncio.sleep(0.005)
        return False

    @asynccontextmanager
    async def _under_way(self, execution: Execution, grace_s: float) -> AsyncIterator[None]:
        """A cell that has ended, or the kernel with it, when the block is left."""
        self._current = execution
        try:
            yield
        finally:
            try:
                if not execution.ended:
                    await asyncio.shield(self.stop(execution, grace_s))
            finally:
                self._current = None

    async def finish(self, execution: Execution) -> dict[str, Any]:
        """Wait for the cell's end; the content of its reply. Raises `KernelGone`, `NeverArrived` if it was resumed."""
        done = execution.request.done
        later: Request | None = None
        while not done.done():
            await asyncio.wait({done}, timeout=_LOST_IDLE_S)
            if done.done():
                break
            if execution.request.reply is not None:
                await self._look_for_idle(execution)
            elif execution.request.idle_seen and not isinstance(execution, Resumed):
                execution.request.fail(_Unanswered())
            elif isinstance(execution, Resumed) or not execution.request.heard:
                if later is None:
                    later = await self.channels.send("shell", "kernel_info_request", {}, wants_idle=True)
                elif later.done.done() and isinstance(execution, Resumed):
                    execution.is_over()
                elif later.done.done():
                    execution.request.fail(_Unanswered())
        try:
            reply = await done
        except _Unanswered as error:
            return {"status": "error", "ename": "NoReply", "evalue": str(error), "traceback": []}
        except _NeverBegan:
            return {"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": []}
        if reply.metadata.get("session_gateway", {}).get("truncated"):
            execution.outputs.truncated = True
        return reply.content

    async def _look_for_idle(self, execution: Execution) -> None:
        """A kernel may drop messages of a flood, `idle` among them: an `idle` of a later request tells."""
        later = await self.channels.send("shell", "kernel_info_request", {}, wants_idle=True)
        await asyncio.wait({later.done, execution.request.done}, timeout=_LOST_IDLE_S)
        if later.done.done() and not execution.ended:
            log.warning("A kernel's idle message was lost")
            execution.outputs.truncated = True
            execution.request.got_idle()
        later.done.cancel()

    async def stop(self, execution: Execution, grace_s: float) -> bool:
        """Interrupt the cell, thrice within `grace_s`, then end the kernel. Whether the kernel lives on."""
        for _ in range(3):
            if execution.ended:
                break
            await self.interrupt()
            await asyncio.wait({execution.request.done}, timeout=grace_s / 3)
            if execution.request.idle_seen:
                execution.never_answered()
        if not execution.ended:
            await self.process.kill("It was ended because its cell would not stop.")
            await asyncio.wait({self.ended})
        return not self.ended.done()

    async def interrupt(self) -> None:
        if self.spec.interrupt_mode == "message":
            await self.channels.send("control", "interrupt_request", {})
        else:
            started_at = self._current.started_at if self._current is not None else time.time()
            await self.process.interrupt(started_at)

    def answer_input(self, execution: Execution, text: str | None) -> None:
        """Answer the cell that waits in `input()`; None tells it that there is no more."""
        request, execution.input_request = execution.input_request, None
        if request is None:
            return
        content = {"value": "\x04", "end_of_input": True} if text is None else {"value": text}
        self.channels.reply_input(request, content)

    async def complete(self, code: str, cursor_pos: int) -> dict[str, Any]:
        return await self._introspect("complete_request", {"code": code, "cursor_pos": cursor_pos})

    async def inspect(self, code: str, cursor_pos: int, detail_level: int) -> dict[str, Any]:
        content = {"code": code, "cursor_pos": cursor_pos, "detail_level": detail_level}
        return await self._introspect("inspect_request", content)

    async def is_complete(self, code: str) -> dict[str, Any]:
        return await self._introspect("is_complete_request", {"code": code})

    async def _introspect(self, msg_type: str, content: dict[str, Any]) -> dict[str, Any]:
        """On the main shell when it is free, else on a subshell if the kernel has them."""
        return await self.channels.ask("shell", msg_type, content, subshell_id=await self._free_shell())

    async def _free_shell(self) -> str | None:
        if not self.busy or "kernel subshells" not in self.info.get("supported_features", []):
            return None
        if self._subshell is None:
            reply = await self.channels.ask("control", "create_subshell_request", {})
            self._subshell = reply.get("subshell_id")
        return self._subshell

    async def namespace(self, action: str, **arguments: Any) -> dict[str, Any]:
        """Ask our own kernel about the user's variables, also while a cell runs. Raises `NotOffered`."""
        if not self.is_ours:
            raise NotOffered(f"The kernel {self.spec.name!r} does not tell about its variables.")
        return await self.channels.ask("control", "session_gateway_request", {"action": action, **arguments})

    async def shut_down(self, grace_s: float) -> None:
        """Ask it to end, so that its exit handlers run; end it if it has not after `grace_s`."""
        self._left = True
        with contextlib.suppress(KernelGone):
            await self.channels.send("control", "shutdown_request", {"restart": False})
        await asyncio.wait({self.ended}, timeout=grace_s)
        if not self.ended.done():
            await self.process.kill("It was ended.")
            await asyncio.wait({self.ended})

    async def leave(self) -> None:
        """End it: nobody is here any more."""
        self._left = True
        await self.process.kill("It was ended.")

    async def watch(self) -> None:
        """Wait for the process to end, read its last words, then let everybody who waits know.

        A kernel that can't be heard any more is ended: nobody may wait for it.
        """
        ended = asyncio.ensure_future(self.process.ended())
        either: list[asyncio.Future[Any]] = [ended, self.channels.lost]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await self.process.kill("It was ended because the connection to it broke.")
        exit_ = await ended
        if not self._left or self.busy:  # else nobody waits for what it said at last
            await asyncio.sleep(_LAST_WORDS_S)
        self.channels.fail(KernelGone(exit_.reason))
        self.ended.set_result(exit_)


def _nothing(*told: Any) -> None:
    """For who does not listen."""


@asynccontextmanager
async def running(engine: Engine, launch: Launch, intake: Intake, start_timeout_s: float) -> AsyncIterator[Kernel]:
    """A kernel from start to end; leaving the block ends it. Raises `StartFailed`."""
    async with _served(engine.start(launch), launch.kernel_id, launch.spec, intake) as kernel:
        try:
            await kernel.attach(start_timeout_s)
        except StartFailed as error:
            raise StartFailed(error.sentence, (await kernel.process.printed(2000)).strip()) from None
        yield kernel


@asynccontextmanager
async def duplicated(
    engine: Engine, source: Kernel, launch: Launch, fill: Callable[[], Awaitable[object]],
    intake: Intake, *, wait_s: float, timeout_s: float,
) -> AsyncIterator[Kernel]:  # fmt: skip
    """A kernel that is a copy of a live one, as it is between two cells; `fill` gives its place files.

    Raises `KernelBusy`, `NotForked`, `CheckpointFailed`, `StartFailed`, `KernelGone`, and what `fill` raises.
    """

    async def fork(address: str) -> None:
        await duplicates.fork(source.channels, address, wait_s=wait_s)
        await fill()

    starting = engine.duplicate(source.id, launch, fork)
    async with _served(starting, launch.kernel_id, launch.spec, intake) as kernel:
        await kernel.attach(timeout_s)
        yield kernel


@asynccontextmanager
async def attached(engine: Engine, kept: Kept, intake: Intake, timeout_s: float) -> AsyncIterator[Kernel]:
    """A kernel that was kept, whatever it does at the moment; leaving the block ends it.

    Raises `StartFailed`, `KernelGone`, `Refused`.
    """
    async with _served(engine.adopt(kept.kernel_id), kept.kernel_id, kept.spec, intake) as kernel:
        await kernel.attach(timeout_s, "control")
        yield kernel


@asynccontextmanager
async def _served(
    starting: AbstractAsyncContextManager[KernelProcess],
    kernel_id: str,
    spec: Kernelspec,
    intake: Intake,
) -> AsyncIterator[Kernel]:
    async with starting as process, connected(intake, process.connection) as channels:
        kernel = Kernel(kernel_id, spec, process, channels)
        watching = asyncio.create_task(kernel.watch())
        try:
            yield kernel
        finally:
            await kernel.leave()
            await watching
