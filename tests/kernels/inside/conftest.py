"""What tests of kernels without a gateway share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import zmq

from tests.kernels.inside.kernels import Client, Forked, forked, identity_at, ordinary

Start = Callable[..., Client]


@pytest.fixture(scope="session")
def zygote() -> Iterator[Forked]:
    with forked() as found:
        yield found


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="k-") as name:  # socket paths are limited to 107 bytes
        yield Path(name)


@pytest.fixture
def context() -> Iterator["zmq.Context[Any]"]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture(params=["forked", "ordinary"])
def start(request: pytest.FixtureRequest, zygote: Forked, folder: Path, context: "zmq.Context[Any]") -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(name: str = "one", way: str = request.param, **env: str) -> Client:
            identity = identity_at(folder / name, **env)
            pid = zygote.start(identity) if way == "forked" else stack.enter_context(ordinary(identity))
            client = Client(context, identity, pid)
            stack.callback(client.kill)
            return client

        yield begin
