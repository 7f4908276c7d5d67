"""Times, as clients give them."""

import pytest
from pydantic import ValidationError

from gateway.models.audit import AuditQuery


@pytest.mark.parametrize("given", ["0.5", "1700000000", "-1", " 2 ", "1e9", "yesterday", ""])
def test_what_is_no_written_time_is_refused(given: str) -> None:
    with pytest.raises(ValidationError) as refused:
        AuditQuery.model_validate({"to": given})

    assert [one["loc"] for one in refused.value.errors()] == [("to",)]


def test_a_written_time_is_taken() -> None:
    assert str(AuditQuery.model_validate({"to": "2026-01-20T10:00:00+01:00"}).to) == "2026-01-20 09:00:00+00:00"
