"""Bytes in any number, in both directions: a piece of them in memory at a time, and on from there after a cut."""

import os
from collections.abc import AsyncIterator
from typing import TypeVar

import httpx2
from pydantic import BaseModel

from gateway.client.asynchronous.transport import AsyncTransport
from gateway.client.asynchronous.waiting import in_thread
from gateway.client.calls import Call
from gateway.client.documents import read
from gateway.client.errors import GatewayError, Incomplete, refusal
from gateway.client.patience import Attempts
from gateway.client.progress import Progress, Told, told
from gateway.client.sources import Opened, Source, opened
from gateway.client.targets import replacing

Model = TypeVar("Model", bound=BaseModel)


async def upload(
    transport: AsyncTransport, kind: type[Model], call: Call, source: Source, progress: Progress, what: str
) -> Model:
    """Send a source as the body of a call; a connection that is lost is made anew if the source can be read again."""
    with opened(source) as given, told(progress, what, given.size) as tell:
        attempts = Attempts(transport.patience, given.repeatable)
        while True:
            attempts.begin()
            failure: Exception
            try:
                given.rewind()
                headers = {} if given.size is None else {"Content-Length": str(given.size)}
                answer = await transport.http.send(transport.request(call, _pieces(given, tell), headers))
                if answer.is_success:
                    return read(kind, answer.content)
                failure = refusal(answer.status_code, answer.content, answer.headers.get("Retry-After"))
            except httpx2.TransportError as error:
                failure = error
            if isinstance(failure, GatewayError) and not given.repeatable:
                raise failure
            await transport.wait_after(attempts, failure)


async def _pieces(given: Opened, tell: Told) -> AsyncIterator[bytes]:
    so_far = 0
    while piece := await in_thread(given.piece):
        yield piece
        so_far += len(piece)
        tell(so_far, given.size)


class AsyncDownload:
    """The body of an answer, piece by piece. After a cut it goes on where it was, as long as it is the same file."""

    def __init__(self, transport: AsyncTransport, call: Call, *, resumable: bool = True) -> None:
        self._transport = transport
        self._call = call
        self._resumable = resumable
        self._etag: str | None = None
        self.so_far = 0
        self.size: int | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises `Incomplete` if it has changed meanwhile, or was cut off and can't be gone on with."""
        attempts = Attempts(self._transport.patience, repeatable=True)
        while True:
            attempts.begin()
            failure: Exception
            try:
                request = self._transport.request(self._call, headers=self._range())
                async with self._transport.connected(request) as answer:
                    self._check(answer)
                    async for piece in answer.aiter_raw():
                        self.so_far += len(piece)
                        attempts.heard()
                        yield piece
                if self.size is None or self.so_far == self.size:
                    return
                failure = httpx2.RemoteProtocolError("The connection ended early.")
            except (httpx2.TransportError, GatewayError) as error:
                failure = error
            if self.so_far and (self._etag is None or not self._resumable):
                raise Incomplete(f"It was cut off after {self.so_far:,} bytes: {failure}") from failure
            await self._transport.wait_after(attempts, failure)

    def _range(self) -> dict[str, str]:
        if not self.so_far or self._etag is None:
            return {}
        return {"Range": f"bytes={self.so_far}-", "If-Range": self._etag}

    def _check(self, answer: httpx2.Response) -> None:
        """What is sent is what was asked for."""
        length = answer.headers.get("Content-Length")
        if not self.so_far:
            self._etag = answer.headers.get("ETag")
            self.size = int(length) if length is not None else None
        elif answer.status_code != 206 or answer.headers.get("ETag") != self._etag:
            raise Incomplete("The file has changed while it was read.")

    async def to_file(self, target: str | os.PathLike[str], progress: Progress, what: str) -> int:
        """Write it to a file, which is there once it is whole; bytes written."""
        with replacing(target) as file, told(progress, what, None) as tell:
            async for piece in self.pieces():
                await in_thread(file.write, piece)
                tell(self.so_far, self.size)
        return self.so_far

    async def to_bytes(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])
