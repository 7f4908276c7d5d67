"""Which changes of a session's variables are in a state that was taken while more of them were asked for.

Changes are runs, which go one after another, and variables that are set from outside, which go on beside them.
"""

from kernels.checkpoint import Checkpoint


class Counted:
    """Changes in the order in which they were counted, from the run that was under way at first."""

    def __init__(self, run_id: str | None) -> None:
        self._changes: list[tuple[bool, str]] = [] if run_id is None else [(True, run_id)]

    def __len__(self) -> int:
        return len(self._changes)

    def run(self, run_id: str) -> None:
        """A run is about to begin."""
        self._changes.append((True, run_id))

    def setting(self, change_id: str) -> None:
        """A variable was set from outside."""
        self._changes.append((False, change_id))

    def held(self, taken: Checkpoint) -> int:
        """How many of them, from the first, are in this state."""
        held = self._until((True, taken.last_run))  # what was set before a run was sent is there when it ends
        settings = self._until((False, taken.last_setting))
        while held < settings and not self._changes[held][0]:
            held += 1
        return held

    def _until(self, change: tuple[bool, str]) -> int:
        return self._changes.index(change) + 1 if change in self._changes else 0
