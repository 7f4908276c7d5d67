"""Guardrails: which hold for a session or a run, and the one place where code that is to run passes them.

Those of the settings hold for all, a session's for all who use it, a key's for what comes with it. Those on outputs
are a session's: a key that has one may only use sessions that have it too, and those that it makes do.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from gateway.config import Settings
from gateway.errors import Denied, Exhausted, Invalid
from gateway.models.access import Caller
from gateway.models.executions import Execution
from gateway.models.guardrails import GuardrailAct
from gateway.models.sessions import Session
from gateway.services.buckets import Buckets
from gateway.services.guardrail import OURS, Guardrail, MaxOutput, NoNetwork, RateLimiting
from gateway.services.origin import present
from gateway.services.sieve import Redactor, Sieve, Tally
from kernels.engine import Walls
from kernels.messages import NewSieve

GROUP = "session_gateway.guardrails"


class GuardrailRefused(Denied):
    code = "guardrail"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"Guardrail {name}: {why}", guardrail=name)


class GuardrailLimited(Exhausted):
    code = "rate_limited"

    def __init__(self, name: str, rule: RateLimiting, wait_s: float) -> None:
        super().__init__(
            f"Guardrail {name}: no more than {rule.burst} runs in {rule.burst / rule.per_s:g} s are allowed.",
            retry_after_s=max(1, math.ceil(wait_s)),
            guardrail=name,
        )


class Named(NamedTuple):
    """A guardrail with its parameter, as `spec` has both."""

    spec: str
    name: str
    rule: Guardrail

    @property
    def is_of_session(self) -> bool:
        """Whether it can't hold for one caller alone: what a session has, or puts out, it has for all."""
        return self.rule.redacts or isinstance(self.rule, NoNetwork)


class Known:
    """All guardrails that there are here, made when they are first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Named] = {}

    @property
    def names(self) -> list[str]:
        return sorted({*OURS, *(found.name for found in entry_points(group=GROUP))})

    def named(self, specs: Iterable[str], field: str = "guardrails") -> tuple[Named, ...]:
        """Each once, in order. Raises `Invalid`, which names the field and those that there are."""
        return tuple(self._named(spec, field) for spec in dict.fromkeys(specs))

    def _named(self, spec: str, field: str) -> Named:
        if spec not in self._made:
            name, colon, parameter = spec.partition(":")
            try:
                self._made[spec] = Named(spec, name, self._kind(name, field)(parameter if colon else None))
            except ValueError as error:
                raise Invalid(f"{field}: {spec!r} {error}.", field=field) from None
        return self._made[spec]

    def _kind(self, name: str, field: str) -> type[Guardrail]:
        if name in OURS:
            return OURS[name]
        for found in entry_points(group=GROUP, name=name):
            kind = found.load()
            if isinstance(kind, type) and issubclass(kind, Guardrail):
                return kind
            raise Invalid(f"{field}: what is installed as {name!r} is no Guardrail.", field=field)
        raise Invalid(f"{field}: no guardrail {name!r}; there are {', '.join(self.names)}.", field=field)


class Guards:
    """The guardrails of one session, on its kernels and all that they say."""

    def __init__(self, rules: tuple[Named, ...]) -> None:
        self.rules = rules
        redacting = [(one.name, one.rule) for one in rules if one.rule.redacts]
        self._tally = Tally()
        self._redactor = Redactor(redacting)
        self.new_sieve: NewSieve | None = partial(Sieve, self._redactor, self._tally) if redacting else None

    @property
    def bars_network(self) -> bool:
        return any(isinstance(one.rule, NoNetwork) for one in self.rules)

    def check_walls(self, walls: Walls) -> None:
        """Raises `GuardrailRefused` for a kernel that reaches what it must not."""
        if self.bars_network and "network" not in walls.standing:
            why = walls.missing.get("network", "it was not asked for when this kernel began")
            raise GuardrailRefused("no-network", f"This session's kernel can't be kept off the network: {why}.")

    def output_limit_bytes(self, settings: Settings, more: Iterable[Named] = ()) -> int:
        """Of one run, with `more` guardrails than the session's."""
        most = [one.rule.limit_bytes for one in (*self.rules, *more) if isinstance(one.rule, MaxOutput)]
        return min([settings.output_limit_bytes, *most])

    def text(self, text: str) -> str:
        return self._redactor.text(text) if self.new_sieve is not None else text

    def json(self, value: Any) -> Any:
        return self._redactor.json(value, numbers=True) if self.new_sieve is not None else value

    def acts(self, record: Execution, output_limit_bytes: int, settings: Settings) -> list[GuardrailAct]:
        """What was done to the outputs of a run that had this limit."""
        done = self._tally.of(record.id)
        if record.truncated and output_limit_bytes < settings.output_limit_bytes:
            done["max-output"] = {"cut": 1}
        return [GuardrailAct(guardrail=name, counts=counts) for name, counts in done.items()]


class Guardrails:
    """Raises `Invalid` when it is made, if the settings name what is not there."""

    def __init__(self, settings: Settings, note: Callable[..., None]) -> None:
        """`note` writes into the audit log, as `Recorder.note` does."""
        self._known = Known()
        self._write_down = note
        self._for_all = self._known.named(settings.guardrails)
        self._buckets = Buckets()

    def check(self, specs: Iterable[str]) -> None:
        """Raises `Invalid` for those that are not there."""
        self._known.named(specs)

    def of(self, session: Session) -> Guards:
        return Guards(tuple(dict.fromkeys((*self._for_all, *self._known.named(session.guardrails)))))

    def of_caller(self) -> tuple[Named, ...]:
        """Those of the key that the request under way came with."""
        return self._known.named(present().who.limits.guardrails)

    def of_new(self, asked: Iterable[str]) -> list[str]:
        """What a session that is made now has: what is asked for, and what the key has. Raises `Invalid`."""
        return [one.spec for one in dict.fromkeys((*self._known.named(asked), *self.of_caller()))]

    def check_session(self, who: Caller, session: Session) -> None:
        """Raises `GuardrailRefused` for a session that lacks what all that this caller uses must have."""
        if not who.limits.guardrails:
            return
        has = {*session.guardrails, *(one.spec for one in self._for_all)}
        for one in self._known.named(who.limits.guardrails):
            if one.is_of_session and has.isdisjoint((one.spec, one.name)):
                raise GuardrailRefused(one.name, "your key may use only sessions that have it, and this one does not.")

    def check_setup(self, session: Session) -> None:
        """Raises `GuardrailRefused` for what a session's setup is not to run."""
        for command in session.setup.commands if session.setup is not None else ():
            self.check_code(session, self.of(session).rules, command)

    def admit(self, session: Session, rules: tuple[Named, ...], code: str) -> tuple[Named, ...]:
        """Let code run in a session; those of the caller that hold for this run beside the session's `rules`.

        Raises `GuardrailRefused`, `GuardrailLimited`, having noted it.
        """
        own = tuple(one for one in self.of_caller() if one not in rules)
        if not (rules or own):
            return own
        self.check_code(session, (*rules, *own), code)
        who = present().who
        limited = [(one, session.uid) for one in rules] + [(one, who.key_id or who.acts_as) for one in own]
        taken = [
            (one.name, one.rule, f"{one.spec} {scope}") for one, scope in limited if isinstance(one.rule, RateLimiting)
        ]
        for name, rule, bucket in taken:
            if (left := self._buckets.left(bucket, rule.per_s, rule.burst)) < 1:
                self._note(session, name, "limited")
                raise GuardrailLimited(name, rule, (1 - left) / rule.per_s)
        for _, rule, bucket in taken:
            self._buckets.spend(bucket, rule.per_s, rule.burst)
        return own

    def check_code(self, session: Session, rules: Iterable[Named], code: str) -> None:
        """Raises `GuardrailRefused`, having noted it. A guardrail that fails lets nothing run."""
        for one in rules:
            try:
                why = one.rule.refusal(code)
            except Exception as error:
                why = f"it failed ({type(error).__name__}), so nothing is run."
            if why is not None:
                self._note(session, one.name, "denied")
                raise GuardrailRefused(one.name, why)

    def _note(self, session: Session, name: str, outcome: str) -> None:
        self._write_down("guardrail", session.id, outcome, uid=session.uid, guardrail=name)
