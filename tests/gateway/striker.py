"""Ends processes once they have come as far as a test has ordered.

An order is a file `FOLDER/order`: `ATTEMPT STAGE VICTIM`, stages counted from when it was written; what was struck is
told in `FOLDER/struck`.
"""

import os
import signal
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any


class Striker:
    """Strikes those of its victims that an order names; orders that name others are not for it."""

    def __init__(self, folder: Path, victims: Mapping[str, Callable[[], object]]) -> None:
        self._folder = folder
        self._victims = victims
        self._lock = threading.Lock()
        self._attempt = ""
        self._stages = 0

    def on_stage(self, name: str) -> None:
        """Come to a stage, on whatever thread; does not return if it is the one at which this process is to end."""
        with self._lock:
            try:
                attempt, stage, victim = (self._folder / "order").read_text().split()
            except FileNotFoundError:
                return
            if victim not in self._victims:
                return
            if attempt != self._attempt:
                self._attempt, self._stages = attempt, 0
            self._stages += 1
            if self._stages == int(stage):
                (self._folder / "struck").write_text(name)
                self._victims[victim]()

    def after(self, place: Any, name: str) -> None:
        """Make the end of `place.name` a stage."""
        work: Callable[..., Any] = getattr(place, name)

        @wraps(work)
        async def worked(*args: Any, **kwargs: Any) -> Any:
            result = await work(*args, **kwargs)
            self.on_stage(name)
            return result

        @wraps(work)
        def worked_at_once(*args: Any, **kwargs: Any) -> Any:
            result = work(*args, **kwargs)
            self.on_stage(name)
            return result

        setattr(place, name, worked if iscoroutinefunction(work) else worked_at_once)


def end_this() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
