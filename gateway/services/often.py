"""What happens too often for a line of the audit log each: the first is written down at once, then how many there were.

A slider that is dragged sends dozens of messages a second.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gateway.services.origin import Origin, present

_TOGETHER_S = 60.0


@dataclass(slots=True)
class _Counted:
    action: str
    session_id: str
    uid: str
    by: Origin
    count: int  # since the last line


class Often:
    def __init__(self, note: Callable[..., None], together_s: float = _TOGETHER_S) -> None:
        """`note` is that of the recorder."""
        self._note = note
        self._together_s = together_s
        self._counted: dict[tuple[str, str, str], _Counted] = {}

    def note(self, action: str, session_id: str, uid: str) -> None:
        """Write it down, or count it for a line within the minute."""
        by = present()
        key = (action, uid, by.who.acts_as)
        if key not in self._counted:
            self._counted[key] = _Counted(action, session_id, uid, by, 1)
            self._tell(key)
        else:
            self._counted[key].count += 1

    def flush(self) -> None:
        """Write down what is counted so far: the gateway stops."""
        for counted in self._counted.values():
            self._write(counted)

    def _tell(self, key: tuple[str, str, str]) -> None:
        if self._write(self._counted[key]):
            asyncio.get_running_loop().call_later(self._together_s, self._tell, key)
        else:
            del self._counted[key]

    def _write(self, counted: _Counted) -> bool:
        """Whether there was anything."""
        count, counted.count = counted.count, 0
        if count:
            self._note(counted.action, counted.session_id, by=counted.by, uid=counted.uid, count=count)
        return count > 0
