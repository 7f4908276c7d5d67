"""Schemathesis asks every operation of the OpenAPI document with data that fits it and data that does not.

No answer is a 500, and each is one that the document names, in the shape that it says.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.generation import GenerationMode

from gateway.handlers.openapi import document
from gateway.handlers.routes import ROUTES
from tests.keyed import Keyed, bearer, keyed_gateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SESSION = "fuzzed"
ENDLESS = "/api/sessions/{session_id}/events"  # its answer ends with the session; tests of events follow it

load_all_checks()
LEFT_OUT: list[Any] = CHECKS.get_by_names(
    [
        "not_a_server_error",  # a 503 is an answer like others when there is no room for one more kernel
        "positive_data_acceptance",  # a schema can't say which page tokens were given out, or what a selector is
    ]
)

schemathesis.serializer.alias("application/zstd", "application/octet-stream")
schema = schemathesis.openapi.from_dict(document(ROUTES)).exclude(path=ENDLESS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Keyed]:
    """A gateway for few kernels: sessions that nobody asked to run are created without one.

    It has keys from the start: the first that is made in the middle would have all that follows refused.
    """
    data_dir = tmp_path_factory.mktemp("fuzzed") / "data"
    async with keyed_gateway(data_dir, live_limit=2, auto_create=False, log_level="WARNING") as started:
        yield started


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client(timeout=60, trust_env=False) as client:
        yield client


def existing(fuzzed: Keyed, client: httpx2.Client, case: Case[Any]) -> dict[str, str]:
    """What is there, for the parameters of a path that name something."""
    url = f"{fuzzed.url}/api/sessions/{SESSION}"
    kernel_id = client.get(url, headers=bearer(fuzzed.root_key)).json()["jupyter"]["kernel_id"]
    there = {"session_id": SESSION, "kernel_id": kernel_id, "opened_id": kernel_id}
    if case.path.startswith("/jupyter/"):
        there |= {"name": "python3", "path": f"{SESSION}/{case.path_parameters.get('path', '')}"}
    return {name: value for name, value in there.items() if name in case.path_parameters}


@schema.parametrize()
@settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_no_answer_is_a_500_or_one_that_the_document_does_not_name(
    fuzzed: Keyed, client: httpx2.Client, case: Case[Any]
) -> None:
    client.post(
        f"{fuzzed.url}/api/sessions", json={"id": SESSION}, headers=bearer(fuzzed.root_key)
    )  # the case before may have deleted it
    if isinstance(case.body, dict):
        case.body.pop("setup", None)  # it would be installed
    if case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE:
        case.headers.pop("Idempotency-Key", None)  # the same one for two bodies is refused
        case.path_parameters |= existing(fuzzed, client, case)

    answer = case.call(base_url=fuzzed.url, timeout=60, headers=bearer(fuzzed.root_key))

    assert answer.status_code != 500
    case.validate_response(answer, excluded_checks=LEFT_OUT)
