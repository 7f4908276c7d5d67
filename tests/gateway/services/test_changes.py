"""Which of the changes that were counted meanwhile are in a state."""

import pytest

from gateway.services.changes import Counted
from kernels.checkpoint import Checkpoint


def taken(last_run: str, last_setting: str) -> Checkpoint:
    return Checkpoint(
        method="fork", method_reason="", pause_ms=0, taken_at=0, last_run=last_run, last_setting=last_setting,
        variables=[], unsaved=[], warnings=[], packages={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("last_run", "last_setting", "held"),
    [
        ("", "", 0),
        ("older", "older", 0),
        ("r1", "", 1),
        ("r1", "s1", 2),
        ("r1", "s2", 3),
        ("r2", "", 4),
        ("r2", "s1", 4),
        ("older", "s2", 0),  # the run before them is not in it, so what comes first is not
        ("r2", "s3", 5),
        ("r1", "s3", 3),  # the run between is not in it
    ],
)
def test_a_state_holds_changes_up_to_the_first_that_is_not_in_it(last_run: str, last_setting: str, held: int) -> None:
    counted = Counted("r1")
    counted.setting("s1")
    counted.setting("s2")
    counted.run("r2")
    counted.setting("s3")
    counted.run("r3")

    assert counted.held(taken(last_run, last_setting)) == held
