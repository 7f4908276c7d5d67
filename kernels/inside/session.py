"""Signs and packs the kernel's messages, within what its runs may publish."""

from __future__ import annotations

import json
from typing import Any

from jupyter_client.session import Session

from .budgets import RESERVE, SMALL, budgets

_NOTE = 1_000  # about what a message takes that only says that something was left out


class BoundedSession(Session):
    """Leaves out a display that is past the run's limit, and says so in its place."""

    _displays = frozenset(["display_data", "update_display_data", "clear_output"])
    _bounded = _displays | {"execute_result", "error", "execute_reply"}

    def send(self, stream: Any, msg_or_type: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(msg_or_type, dict) and msg_or_type.get("header", {}).get("msg_type") in self._displays:
            budget = budgets.of(msg_or_type.get("parent_header", {}))
            if budget is not None and budget.room_for_displays < _NOTE:
                budget.cut = True
                return None
        return super().send(stream, msg_or_type, *args, **kwargs)

    def serialize(self, msg: dict[str, Any], ident: Any = None) -> list[bytes]:
        try:
            frames: list[bytes] = super().serialize(msg, ident)
        except UnicodeEncodeError:  # half a surrogate pair: fine in a Python string, but not in UTF-8
            text = json.dumps(msg["content"], ensure_ascii=False, default=str).encode(errors="replace")
            msg = {**msg, "content": json.loads(text)}
            frames = super().serialize(msg, ident)
        msg_type = msg.get("header", {}).get("msg_type")
        budget = budgets.of(msg.get("parent_header", {})) if msg_type in self._bounded else None
        if budget is None:
            return frames
        size = sum(len(frame) for frame in frames)
        if msg_type == "execute_reply":
            if size <= RESERVE:
                return frames
        else:
            room = budget.room_for_displays if msg_type in self._displays else min(SMALL, budget.reserve)
            if budget.grant(size, room):
                return frames
            budget.grant(_NOTE, room)
        return super().serialize({**msg, "content": self._shortened(msg_type, msg["content"], size)}, ident)

    def _shortened(self, msg_type: str | None, content: dict[str, Any], size: int) -> dict[str, Any]:
        note = f"<an output of {size} bytes is past the limit of this run>"
        if "traceback" in content:
            shown = {
                "ename": str(content["ename"])[:1000],
                "evalue": str(content["evalue"])[:1000],
                "traceback": [note],
            }
            return {**content, **shown}
        if msg_type == "execute_reply":
            return {**content, "payload": [], "user_expressions": {}}
        return {**content, "data": {"text/plain": note}, "metadata": {"truncated": True}}
