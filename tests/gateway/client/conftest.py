"""Clients of the gateway that all tests share. Sessions of one test are gone before the next."""

from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.client import AsyncGateway, AsyncSession, Gateway, Session
from tests.gateways import GatewayProcess


@pytest.fixture
async def client(gateway: GatewayProcess) -> AsyncIterator[AsyncGateway]:
    async with AsyncGateway(gateway.url) as client:
        yield client
        await client.delete_all()


@pytest.fixture
async def session(client: AsyncGateway, session_id: str) -> AsyncSession:
    return await client.create(session_id)


@pytest.fixture
def blocking(gateway: GatewayProcess) -> Iterator[Gateway]:
    with Gateway(gateway.url) as client:
        yield client
        client.delete_all()


@pytest.fixture
def blocking_session(blocking: Gateway, session_id: str) -> Session:
    return blocking.create(session_id)
