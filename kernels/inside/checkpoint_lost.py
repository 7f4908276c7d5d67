"""What stands where something could not be carried over: using it says so."""

from __future__ import annotations

from typing import Any, NoReturn


class NotCarriedOver(RuntimeError):
    """Something was used that did not survive the checkpoint."""


class Lost:
    """In the place of one object, deep inside another. Every use of it raises `NotCarriedOver`."""

    __slots__ = ("__weakref__", "_kind", "_reason")

    def __init__(self, kind: str, reason: str) -> None:
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_reason", reason)

    def __repr__(self) -> str:
        return f"<{described(self)[0]}, not carried over>"

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return Lost, described(self)


_kind: Any = Lost.__dict__["_kind"]
_reason: Any = Lost.__dict__["_reason"]


def described(lost: Lost) -> tuple[str, str]:
    """What it was, and why it is gone."""
    return _kind.__get__(lost), _reason.__get__(lost)


def _refuse(self: Lost, *args: object, **kwargs: object) -> NoReturn:
    kind, reason = described(self)
    raise NotCarriedOver(f"This was a {kind}, which was not carried over when the session was restored: {reason}")


def _refuse_attribute(self: Lost, name: str) -> NoReturn:
    if name[:2] == name[-2:] == "__":  # Python, and what shows objects, asks for these and expects a no
        raise AttributeError(name)
    _refuse(self)


Lost.__getattr__ = _refuse_attribute  # type: ignore[attr-defined]
for _name in (
    *("call", "len", "iter", "next", "bool", "contains", "getitem", "setitem", "delitem", "enter", "exit", "await"),
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "mod", "pow", "matmul", "neg"),
    *("and", "or", "xor", "lt", "le", "gt", "ge", "int", "float", "index", "str", "format", "bytes", "setattr"),
    *("aiter", "anext", "aenter", "aexit", "fspath", "abs", "invert", "lshift", "rshift", "divmod", "reversed"),
):
    setattr(Lost, f"__{_name}__", _refuse)
