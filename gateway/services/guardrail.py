"""One guardrail: what every one is, and those that come with the gateway.

Others are found under the entry point group `session_gateway.guardrails`: a subclass of `Guardrail`, under its name.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from gateway.models.sessions import size_bytes
from gateway.services import pii

_WITHOUT_A_LINE = 8192  # characters at most that wait for the end of their line
_RATE = re.compile(r"(\d{1,6})/([smh])")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Found:
    """What is not to be told: characters from `start` to before `end`, and what stands there instead."""

    start: int
    end: int
    kind: str
    instead: str


class Guardrail:
    """A rule on code that is run, and on what comes of it. Subclasses say one or the other, or both.

    The name is that of its entry point, `parameter` what follows it after a colon; a `ValueError` refuses that.
    `redacts`: whether `find` looks for anything. Such a one holds for a session and all who use it.
    """

    redacts: ClassVar[bool] = False

    def __init__(self, parameter: str | None) -> None:
        if parameter is not None:
            raise ValueError("takes no parameter")

    def refusal(self, code: str) -> str | None:
        """Why this code may not be run: a sentence; None if it may."""
        return None

    def find(self, text: str) -> Iterable[Found]:
        """What of an output is not to be told; no two of them overlap."""
        return ()

    def unfinished(self, text: str) -> int:
        """Where in a stream's text the end begins that is to be looked at together with what comes next."""
        return max(text.rfind("\n") + 1, len(text) - _WITHOUT_A_LINE)


class NoNetwork(Guardrail):
    """The session's kernel reaches nothing but itself; it does not start where that can't be had."""


class NoPiiExposure(Guardrail):
    """Personal data in outputs is replaced: emails, phone, card and id numbers, or those kinds that are named."""

    redacts = True

    def __init__(self, parameter: str | None) -> None:
        kinds = tuple(parameter.split(",")) if parameter is not None else pii.KINDS
        if unknown := [kind for kind in kinds if kind not in pii.KINDS]:
            raise ValueError(f"does not know {unknown[0]!r}; there are {', '.join(pii.KINDS)}")
        self._kinds = kinds

    def find(self, text: str) -> Iterable[Found]:
        return [Found(one.start, one.end, one.kind, f"[{one.kind}]") for one in pii.find(text, self._kinds)]

    def unfinished(self, text: str) -> int:
        return pii.unfinished(text)


class MaxOutput(Guardrail):
    """No run keeps more than so many bytes of output, 1 MB if it does not say."""

    def __init__(self, parameter: str | None) -> None:
        self.limit_bytes = size_bytes(parameter or "1M")
        if self.limit_bytes < 1000:
            raise ValueError("must be no less than 1000 bytes")


class RateLimiting(Guardrail):
    """So many runs a second, minute or hour (`30/m`), 60 a minute if it does not say; as many may come at once."""

    def __init__(self, parameter: str | None) -> None:
        match = _RATE.fullmatch(parameter or "60/m")
        if match is None or int(match[1]) == 0:
            raise ValueError("must be a number of runs a second, minute or hour, such as 30/m")
        self.burst = int(match[1])
        self.per_s = self.burst / _SECONDS[match[2]]


OURS: dict[str, type[Guardrail]] = {
    "max-output": MaxOutput,
    "no-network": NoNetwork,
    "no-pii-exposure": NoPiiExposure,
    "rate-limiting": RateLimiting,
}
