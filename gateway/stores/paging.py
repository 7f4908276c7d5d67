"""What a page of a list needs in every store."""

from collections.abc import Callable
from typing import TypeVar

from gateway.models.executions import Execution
from gateway.models.pages import Page, PageRequest, Position, encode
from gateway.stores.packing import Filling

Item = TypeVar("Item")

AFTER_ALL = "~"  # sorts after every time and every number


def offset(page: PageRequest) -> int:
    """How many items to skip; a token says where to start by itself."""
    return 0 if page.token or not page.page else (page.page - 1) * page.limit


def cut(
    items: list[Item], total_count: int, page: PageRequest, digest: str, position: Callable[[Item], Position]
) -> Page[Item]:
    """A page out of `limit + 1` items, of which the last only tells that more follow."""
    more = len(items) > page.limit
    items = items[: page.limit]
    return Page(items, total_count, encode(position(items[-1]), digest) if more else None)


def executions_page(filling: Filling, total_count: int, digest: str) -> Page[Execution]:
    last = filling.executions[-1] if filling.more else None
    token = encode(Position(last.queued_at, last.id), digest) if last else None
    return Page(filling.executions, total_count, token)
