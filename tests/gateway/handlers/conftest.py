"""Sessions of one test are gone before the next: their kernels would fill the machine."""

from collections.abc import AsyncIterator

import pytest

from tests.api import Api
from tests.gateways import GatewayProcess


@pytest.fixture
async def api(gateway: GatewayProcess) -> AsyncIterator[Api]:
    async with Api(gateway.url) as client:
        yield client
        await client.call("DELETE", "/api/sessions", expect=200)
