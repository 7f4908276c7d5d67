"""A running kernel: cells, introspection, interrupts, and the truth about how it ended.

A cell is over when its reply and its `idle` are both in. Whoever leaves `execute` early gets the cell
interrupted, and the block is not left before the cell has really ended or the kernel with it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import zmq.asyncio

from kernels.channels import Channels, Request, connected
from kernels.engine import Engine, Exit, KernelProcess, Launch
from kernels.errors import KernelGone, KernelsError, NotOffered, StartFailed
from kernels.fstrings import for_python_before_312
from kernels.messages import Message
from kernels.outputs import Event, Outputs

log = logging.getLogger(__name__)

OnEvent = Callable[[Event], None]
OnInput = Callable[[str, bool], None]  # prompt, whether it is a password

_LAST_WORDS_S = 0.05  # how long after its death a kernel's messages are still read
_LOST_IDLE_S = 2.0
_LONGEST_PROMPT = 10_000  # characters


class _NeverBegan(KernelsError):
    """An interrupt came when the kernel had the request but had not begun the cell: it drops it, without a reply."""


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
            count = message.content.get("execution_count")
            self.execution_count = count if isinstance(count, int) else None
        elif event := self.outputs.add(message):
            self._on_event(event)

    def ask_input(self, message: Message) -> None:
        self.input_request = message
        self._on_input(str(message.content.get("prompt", ""))[:_LONGEST_PROMPT], bool(message.content.get("password")))


class Kernel:
    """Talks to one kernel process. Made by `running`."""

    def __init__(self, launch: Launch, process: KernelProcess, channels: Channels) -> None:
        self.id = launch.kernel_id
        self.spec = launch.spec
        self.process = process
        self.channels = channels
        self.info: dict[str, Any] = {}
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._current: Execution | None = None
        self._subshell: str | None = None

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

    async def attach(self, timeout_s: float) -> None:
        """Wait until one request was answered on shell and seen on IOPub. Raises `StartFailed`."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    request = await self.channels.send("shell", "kernel_info_request", {}, wants_idle=True)
                    if self.info:  # it answers, but was not heard on IOPub: ask again, and soon
                        await asyncio.wait({request.done}, timeout=0.1)
                    else:
                        await self._first_answer(request)
                    if request.reply:
                        self.info = request.reply.content
                    if request.done.done():
                        await request.done
                        return
                    request.done.cancel()
        except KernelGone as error:
            raise StartFailed(f"The kernel ended while it started: {error}") from None
        except TimeoutError:
            raise StartFailed(f"The kernel did not answer within {timeout_s:g} s.") from None

    async def _first_answer(self, request: Request) -> None:
        while not request.done.done() and request.reply is None:
            await asyncio.wait({request.done}, timeout=0.02)

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
        grace_s: float = 3.0,
    ) -> AsyncIterator[Execution]:
        """Run a cell; its messages carry `run_id` as their parent's id. One at a time: the caller sees to it.

        Raises `KernelGone`, `NotOffered`.
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
        metadata = {"session_gateway": {"output_limit": output_limit_bytes, "env": dict(env or {})}}
        execution.request = await self.channels.send(
            "shell", "execute_request", content,
            metadata=metadata, msg_id=run_id, on_iopub=execution.take, on_input=execution.ask_input, wants_idle=True,
        )  # fmt: skip
        self._current = execution
        try:
            yield execution
        finally:
            try:
                if not execution.ended:
                    await asyncio.shield(self.stop(execution, grace_s))
            finally:
                self._current = None

    async def finish(self, execution: Execution) -> dict[str, Any]:
        """Wait for the cell's end; the content of its reply. Raises `KernelGone`."""
        done = execution.request.done
        while not done.done():
            await asyncio.wait({done}, timeout=_LOST_IDLE_S)
            if not done.done() and execution.request.reply is not None:
                await self._look_for_idle(execution)
        try:
            reply = await done
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
            if execution.request.idle_seen:  # its reply was sent before: if it is not here by now, there is none
                execution.request.fail(_NeverBegan())
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

    async def answer_input(self, execution: Execution, text: str | None) -> None:
        """Answer the cell that waits in `input()`; None tells it that there is no more."""
        request, execution.input_request = execution.input_request, None
        if request is None:
            return
        content = {"value": "\x04", "end_of_input": True} if text is None else {"value": text}
        await self.channels.reply_input(request, content)

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
        with contextlib.suppress(KernelGone):
            await self.channels.send("control", "shutdown_request", {"restart": False})
        await asyncio.wait({self.ended}, timeout=grace_s)
        if not self.ended.done():
            await self.process.kill("It was ended.")
            await asyncio.wait({self.ended})

    async def watch(self) -> None:
        """Wait for the process to end, read its last words, then let everybody who waits know.

        A kernel that can't be heard any more is ended: nobody may wait for it.
        """
        ended = asyncio.ensure_future(self.process.ended())
        await asyncio.wait({ended, self.channels.reading}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await self.process.kill("It was ended because the connection to it broke.")
        exit_ = await ended
        await asyncio.sleep(_LAST_WORDS_S)
        self.channels.fail(KernelGone(exit_.reason))
        self.ended.set_result(exit_)


@asynccontextmanager
async def running(
    engine: Engine, launch: Launch, context: zmq.asyncio.Context, start_timeout_s: float
) -> AsyncIterator[Kernel]:
    """A kernel from start to end; leaving the block ends it. Raises `StartFailed`."""
    async with engine.start(launch) as process, connected(context, process.connection) as channels:
        kernel = Kernel(launch, process, channels)
        watching = asyncio.create_task(kernel.watch())
        try:
            try:
                await kernel.attach(start_timeout_s)
            except StartFailed as error:
                raise StartFailed(error.sentence, (await process.printed(2000)).strip()) from None
            yield kernel
        finally:
            await process.kill("It was ended.")
            await watching
