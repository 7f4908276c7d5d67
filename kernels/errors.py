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
