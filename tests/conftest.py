"""What all tests share: one gateway for those that do no harm, and a way to start more for those that do."""

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.api import Api
from tests.gateways import GatewayProcess, gateway_process


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """A gateway with default settings, shared by all tests of a run."""
    async with gateway_process(tmp_path_factory.mktemp("gateway") / "data") as started:
        yield started


@pytest.fixture
async def api(gateway: GatewayProcess) -> AsyncIterator[Api]:
    async with Api(gateway.url) as client:
        yield client


@pytest.fixture
def session_id() -> str:
    """An id that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"
