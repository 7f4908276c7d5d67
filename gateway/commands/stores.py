"""Work that a command does in the gateway's own store, whether a gateway runs or not."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from gateway.app import CannotStart, make_store, opened
from gateway.commands.settings import settings_of
from gateway.config import Settings
from gateway.errors import GatewayError
from gateway.stores.base import Store

DataDir = Annotated[Path | None, typer.Option(help="The folder that the gateway uses.")]
StoreUri = Annotated[str | None, typer.Option(help="The store that the gateway uses, if it is not in its folder.")]
Config = Annotated[
    Path | None, typer.Option(envvar="GATEWAY_CONFIG", help="TOML file with settings.", exists=True, dir_okay=False)
]

T = TypeVar("T")


def in_the_store(
    data_dir: Path | None, store: str | None, config: Path | None, work: Callable[[Store], Awaitable[T]],
    before: Callable[[Settings], object],
) -> T:  # fmt: skip
    """`before`: what has to be so before the store is opened. Raises `Exit`, having told what is wrong."""
    settings = settings_of({"data_dir": data_dir, "store": store}, config)

    async def done() -> T:
        before(settings)
        kept = make_store(settings)
        async with opened(kept, settings):
            return await work(kept)

    try:
        return asyncio.run(done())
    except (CannotStart, GatewayError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
