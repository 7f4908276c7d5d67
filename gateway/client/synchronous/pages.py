"""Lists that are longer than an answer."""

# Made of asynchronous/pages.py by deploy/sync_client.py: change that.

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from gateway.client.calls import get
from gateway.client.documents import Page
from gateway.client.errors import Unreadable
from gateway.client.synchronous.transport import Transport

Item = TypeVar("Item")


class Pages(Generic[Item]):
    """All items of a list, newest first: go through them, and pages are fetched as they are needed.

    What is added meanwhile is not seen, what is deleted is left out, and no item comes twice.
    """

    def __init__(
        self, transport: Transport, path: str, query: dict[str, Any], parse: Callable[[bytes], Page[Item]]
    ) -> None:
        self._transport = transport
        self._path = path
        self._query = query
        self._parse = parse

    def __iter__(self) -> Iterator[Item]:
        page = self.page()
        while True:
            for item in page.items:
                yield item
            if page.next_token is None:
                return
            page = self.page(token=page.next_token)

    def page(self, number: int | None = None, *, token: str | None = None) -> Page[Item]:
        """One page: the first, the one that a `next_token` leads to, or that of a number, counted from 1."""
        query = {**self._query, "page": number, "page_token": token}
        body = self._transport.send(get(self._path, **query))
        try:
            return self._parse(body)
        except ValueError as error:
            raise Unreadable(f"{self._transport.url}{self._path} did not answer with a list: {error}") from None

    def all(self) -> list[Item]:
        return [item for item in self]

    def first(self) -> Item | None:
        for item in self:
            return item
        return None

    def count(self) -> int:
        """How many there are in all."""
        body = self._transport.send(get(self._path, **{**self._query, "limit": 1}))
        return self._parse(body).total_count
