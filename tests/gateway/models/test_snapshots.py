"""What a snapshot's documents tell of what is not in it."""

import pytest
from pydantic import ValidationError

from gateway.models.base import now
from gateway.models.executions import Execution, ExecutionView
from gateway.models.snapshots import RestoreSnapshot
from gateway.models.unsaved import MOST_NAMED, UnsavedVariable


def unsaved(count: int) -> list[UnsavedVariable]:
    return [UnsavedVariable(name=f"v{number}", type="generator", reason="can't be kept") for number in range(count)]


def execution(not_carried: list[UnsavedVariable]) -> Execution:
    return Execution(
        id="e", session_uid="u", session_id="s", code="1", queued_at=now(), resumed=True, not_carried=not_carried
    )


def test_a_list_that_fits_is_whole_and_one_that_does_not_ends_with_how_many_more_there_were() -> None:
    assert execution(unsaved(MOST_NAMED)).not_carried == unsaved(MOST_NAMED)

    cut = execution(unsaved(MOST_NAMED + 1))

    assert cut.not_carried[:-1] == unsaved(MOST_NAMED - 1)
    assert cut.not_carried[-1].reason == "and 2 more"
    assert Execution.model_validate_json(cut.model_dump_json()) == cut


def test_a_run_tells_what_was_not_carried_over_when_its_session_woke() -> None:
    view = ExecutionView.of(execution(unsaved(1))).model_dump(mode="json")

    assert view["resumed"]
    assert view["not_carried"] == [{"name": "v0", "type": "generator", "reason": "can't be kept", "part": False}]


def test_a_restore_brings_back_files_and_variables_unless_told_otherwise() -> None:
    request = RestoreSnapshot.model_validate({"snapshot_id": "snap_1"})

    assert (request.files, request.state) == (True, True)
    for wrong in ({}, {"snapshot_id": ""}, {"snapshot_id": "a\0b"}, {"snapshot_id": "snap_1", "variables": True}):
        with pytest.raises(ValidationError):
            RestoreSnapshot.model_validate(wrong)
