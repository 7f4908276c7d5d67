"""A proxy that cuts connections, as networks do: the client is told nothing but that the connection is gone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

Cut = Callable[[int, bytes], bool]


class CuttingProxy:
    """Passes bytes on; `cut` looks at what comes from the gateway, and at which connection it is, and may end it."""

    def __init__(self, target: str, cut: Cut) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._cut = cut
        self.connections = 0
        self.requests: list[bytes] = []
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._serve(self.connections, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection(*self._target)
        asking = asyncio.ensure_future(self._pass_on(reader, onward))
        try:
            while received := await there.read(65536):
                if self._cut(number, received):
                    break
                writer.write(received)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            asking.cancel()
            await asyncio.wait({asking})
            for one in (writer, onward):
                one.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, onward: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while sent := await reader.read(65536):
                if sent.split(b" ", 1)[0] in (b"GET", b"POST", b"PUT", b"DELETE", b"PATCH"):
                    self.requests.append(sent)
                onward.write(sent)
                await onward.drain()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def cutting_proxy(target: str, cut: Cut) -> AsyncIterator[CuttingProxy]:
    """Before a gateway, until the block is left."""
    proxy = CuttingProxy(target, cut)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
