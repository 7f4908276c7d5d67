"""What can go wrong with kernels and workspaces."""


class KernelsError(Exception):
    """The base of all errors of this package."""


class NoSuchKernelspec(KernelsError):
    def __init__(self, wanted: str, found: list[str]) -> None:
        super().__init__(f"No kernel for {wanted!r}; installed: {', '.join(sorted(found)) or 'none'}.")
        self.wanted = wanted
        self.found = found


class StartFailed(KernelsError):
    """A kernel did not come up; the sentence says why. Its text ends with what the kernel printed, not for logs."""

    def __init__(self, sentence: str, printed: str = "") -> None:
        super().__init__(f"{sentence}\n{printed}".strip())
        self.sentence = sentence


class KernelGone(KernelsError):
    """The kernel has ended, or ended while it was asked."""


class NeverArrived(KernelsError):
    """The kernel does not run this, and nothing tells that it ever has."""


class Refused(KernelsError):
    """The kernel was adopted by somebody who came later: nobody else commands it."""


class NotOffered(KernelsError):
    """This kernel can't do that."""


class KernelBusy(KernelsError):
    """A cell, or another checkpoint, was under way for as long as the caller would wait. Nothing was done."""


class CheckpointFailed(KernelsError):
    """The variables could not be saved, or not be brought back; the sentence says why."""


class WorkspaceError(KernelsError):
    """Something about a path in a workspace; nothing was changed."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path!r}: {why}")
        self.path = path


class BadPath(WorkspaceError):
    """Not a name for anything in a workspace: empty, absolute, NUL, too long."""


class OutsideWorkspace(WorkspaceError):
    """The path, a link on it, or an archive entry leads out of the workspace."""


class NoSuchFile(WorkspaceError):
    pass


class FileConflict(WorkspaceError):
    """A folder where a file must be, or the other way round, or the target is there already."""


class QuotaExceeded(WorkspaceError):
    """It would take more bytes or files than the workspace may hold."""


class BadArchive(WorkspaceError):
    """Not an archive that can be unpacked here."""


class WallsMissing(KernelsError):
    """This host can't give walls that were insisted on: (wall, reason, remedy) for each."""

    def __init__(self, missing: list[tuple[str, str, str]]) -> None:
        told = [f"{wall} ({reason}). {remedy}".strip() for wall, reason, remedy in missing]
        super().__init__("This host can't give all walls: " + " ".join(told))
        self.missing = missing


class SnapshotError(KernelsError):
    """A snapshot that can't be made, read or brought back; nothing was changed."""


class NoSuchSnapshot(SnapshotError):
    def __init__(self, snapshot_id: str) -> None:
        super().__init__(f"There is no snapshot {snapshot_id!r}.")
        self.snapshot_id = snapshot_id


class DamagedSnapshot(SnapshotError):
    """What is kept of it is not what was saved; `what` says which part."""

    def __init__(self, snapshot_id: str, what: str) -> None:
        super().__init__(f"The snapshot {snapshot_id!r} is damaged: {what}.")
        self.snapshot_id = snapshot_id
        self.what = what


class NewerSnapshot(SnapshotError):
    """It was written by a version that knows more than this one."""

    def __init__(self, snapshot_id: str, found: int, known: int) -> None:
        super().__init__(f"The snapshot {snapshot_id!r} has format {found}; this version reads up to {known}.")


class BlobsAway(KernelsError):
    """The object store of the snapshots can't be reached, or refuses; later it may work."""


class NoSpace(SnapshotError):
    """The disk is full, or a limit on files is reached."""
