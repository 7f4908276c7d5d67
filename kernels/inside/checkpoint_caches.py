"""What the caches of functools hold: they tell nobody but the garbage collector."""

from __future__ import annotations

import gc
from typing import Any


def cached_calls(made: Any) -> list[tuple[tuple[Any, ...], dict[str, Any], Any]] | None:
    """What a functools cache holds, oldest first; None if that can't be told."""
    info = made.cache_info()
    if not info.currsize:
        return []
    parts = gc.get_referents(made)
    marks = [it for it in parts if type(it) is object]
    tables = [it for it in parts if type(it) is dict and len(it) == info.currsize and it is not made.__dict__]
    if info.maxsize is not None:
        tables = [it for it in tables if all(type(link).__name__ == "_lru_list_elem" for link in it.values())]
    if len(tables) != 1:
        return None
    pairs = list(tables[0].items())
    if info.maxsize is not None:
        before = parts[: next(at for at, it in enumerate(parts) if it is tables[0])]
        listed = [it for it in before if it is not type(made) and getattr(it, "__name__", "") != "_lru_list_elem"]
        pairs = list(zip(listed[::2], listed[1::2]))  # noqa: B905 - `strict` is younger than 3.9
        known = {id(key) for key in tables[0]}
        if len(listed) != 2 * info.currsize or any(id(key) not in known for key, _ in pairs):
            return None
    typed = made.cache_parameters()["typed"]
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    for key, result in pairs:
        if type(key) is not tuple:
            calls.append(((key,), {}, result))
            continue
        at = next((at for at, it in enumerate(key) if any(it is mark for mark in marks)), None)
        count = (len(key) // 2 if typed else len(key)) if at is None else at
        end = count if at is None else (at + 1 + (len(key) - 2 * at - 1) // 3 * 2 if typed else len(key))
        named = key[count + 1 : end]
        calls.append((key[:count], dict(zip(named[::2], named[1::2])), result))  # noqa: B905 - `strict` is younger than 3.9
    return calls
