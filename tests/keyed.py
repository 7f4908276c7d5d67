"""A gateway that asks for keys, for tests: one key for each kind of caller, and sessions that are theirs or not."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.api import Api
from tests.gateways import GatewayProcess, gateway_process

_GUESSER = "127.0.0.9"  # whose wrong keys are counted for nobody else


async def command(*words: str, **more: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `gateway …`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *words,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, **more,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, words_ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), words_.decode()


async def first_key(data_dir: Path, *options: str) -> Any:
    """An admin's key, made as people make it."""
    code, out, words = await command(
        *("key", "create", "root", "--role", "admin", "--data-dir", str(data_dir), "--json"), *options
    )
    assert code == 0, words
    return json.loads(out)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@dataclass
class Keyed:
    """A gateway with keys, and its admin."""

    gateway: GatewayProcess
    root: Api
    root_key: str

    @property
    def url(self) -> str:
        return self.gateway.url

    def api(self, key: str | None) -> Api:
        client = Api(self.url)
        if key is not None:
            client.http.headers.update(bearer(key))
        return client

    async def key(self, name: str, **fields: Any) -> Any:
        """A new key of this name, with its secret."""
        return await self.root.post("/api/keys", {"name": name, **fields}, 201)


@asynccontextmanager
async def keyed_gateway(data_dir: Path, **settings: Any) -> AsyncIterator[Keyed]:
    key = (await first_key(data_dir))["key"]
    async with gateway_process(data_dir, **settings) as gateway, Api(gateway.url) as root:
        root.http.headers.update(bearer(key))
        yield Keyed(gateway, root, key)


async def ask_raw(url: str, request: bytes) -> bytes:
    """The status line of an answer to exactly these bytes; empty if there is none. Comes from an address of its own."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(_GUESSER, 0))
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(10):
            return await reader.readline()
    except ConnectionError:
        return b""
    finally:
        writer.close()
