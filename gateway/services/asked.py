"""A cell that a front end has asked for: what it sent, and how it hears what becomes of it."""

from typing import Any, Self

import orjson

from gateway.models.executions import Execution, Status
from gateway.services.front_ends import FrontEnd, FrontEnds
from kernels.channels import Channel
from kernels.messages import Message, received
from kernels.outputs import content_of, error_of


class AskedCell:
    """An `execute_request` on its way; whatever happens it is answered, by the kernel or in its stead."""

    def __init__(
        self, request: Message, front_end: FrontEnd, front_ends: FrontEnds, channel: Channel = "shell"
    ) -> None:
        self._channel = channel
        self.request = request
        self.front_end = front_end
        self._front_ends = front_ends
        self._answered = False
        self._opening = front_end.openings

    @classmethod
    def again(cls, header: dict[str, Any], code: str, front_end: FrontEnd, front_ends: FrontEnds) -> Self:
        """One that an earlier gateway was asked for."""
        parts: tuple[dict[str, Any], ...] = (header, {}, {}, {"code": code, "stop_on_error": False})
        asked = cls(received([orjson.dumps(part) for part in parts]), front_end, front_ends)
        asked._answered = front_end.replied_before == asked.request.id
        return asked

    @property
    def asked_by(self) -> str | None:
        session = self.request.header.get("session")
        return session if isinstance(session, str) else None

    @property
    def code(self) -> str:
        code = self.request.content.get("code")
        return code if isinstance(code, str) else ""

    @property
    def all_code(self) -> str:
        """With the expressions that are to be evaluated after it."""
        expressions = self.request.content.get("user_expressions")
        more = expressions.values() if isinstance(expressions, dict) else ()
        return "\n".join([self.code, *(one for one in more if isinstance(one, str))])

    @property
    def readable(self) -> bool:
        """Whether a kernel can read it: one that can't says nothing, ever."""
        request = self.request
        try:
            for part in (request.header, request.parent, request.metadata, request.content):
                orjson.dumps(part)
        except TypeError:  # it is nested too deep
            return False
        return isinstance(request.content.get("code"), str)

    @property
    def silent(self) -> bool:
        return bool(self.request.content.get("silent"))

    @property
    def stops_on_error(self) -> bool:
        """Whether the cells that this client has waiting are not to run if this one fails, as is the default."""
        return bool(self.request.content.get("stop_on_error", True))

    def reply(self, message: Message) -> None:
        self._answered = True
        self.front_end.settle(self._opening)
        if message.metadata.get("session_gateway", {}).get("truncated"):
            self._tell_truncated()
        self.front_end.put(self._channel, message)

    def _tell_truncated(self) -> None:
        """Before the reply: after it a front end may listen no more."""
        told = {"name": "stderr", "text": "\n[The output of this cell is past its limit: the rest was left out.]\n"}
        self.front_end.put("iopub", self._front_ends.made("stream", told, self.request.header))

    def ask_input(self, message: Message) -> None:
        self.front_end.put("stdin", message)

    def answer(self, record: Execution) -> None:
        """Tell how it ended, unless that was told."""
        if not self._answered:
            error = record.error.model_dump() if record.error is not None else {}
            ok = {"status": "ok", "payload": [], "user_expressions": {}}
            told = ok if record.status is Status.OK else {"status": "error", **error_of(error)}
            content = {**told, "execution_count": record.execution_count}
            self.reply(self._front_ends.made("execute_reply", content, self.request.header))

    def tell_again(self, record: Execution) -> None:
        """All that came of it, to a client that has none of it."""
        header, put = self.request.header, self.front_end.put
        put("iopub", self._front_ends.made("status", {"execution_state": "busy"}, header))
        put("iopub", self._front_ends.made("execute_input", _input_of(record), header))
        for output in record.outputs:
            put("iopub", self._front_ends.made(output["output_type"], content_of(output), header))
        self.reply_again(record)

    def reply_again(self, record: Execution) -> None:
        self.answer(record)
        self.front_end.put(
            "iopub", self._front_ends.made("status", {"execution_state": "idle"}, self.request.header)
        )  # fmt: skip

    def conclude(self, ename: str, evalue: str, *, aborted: bool = False) -> None:
        """Answer in the kernel's stead, unless it has."""
        if self._answered:
            return
        made, parent = self._front_ends.made, self.request.header
        error = error_of({"ename": ename, "evalue": evalue, "traceback": [f"{ename}: {evalue}"]})
        self.reply(made("execute_reply", {"status": "aborted"} if aborted else {"status": "error", **error}, parent))
        if not aborted:
            self.front_end.put("iopub", made("error", error, parent))
        self.front_end.put("iopub", made("status", {"execution_state": "idle"}, parent))


def _input_of(record: Execution) -> dict[str, Any]:
    return {"code": record.code, "execution_count": record.execution_count}
