"""What tests of files share."""

import time
from pathlib import Path
from typing import Any

import pytest

from kernels.engine import SnapshotInfo
from kernels.manifests import decode
from kernels.snapshots import LocalSnapshots
from kernels.workspace import LocalWorkspace


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace's folder, with a file beside it that nothing may reach."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    return folder


class Vault:
    """Snapshots of places under one folder, and those places' workspaces."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.snapshots = LocalSnapshots(folder / "snapshots", self.workspace, **settings)
        self._workspaces: dict[str, LocalWorkspace] = {}

    def root(self, place: str = "one") -> Path:
        root = self.folder / "sessions" / place / "workspace"
        root.mkdir(parents=True, exist_ok=True)
        return root

    async def workspace(self, place: str = "one") -> LocalWorkspace:
        if place not in self._workspaces:
            self._workspaces[place] = LocalWorkspace(self.root(place), None)
        return self._workspaces[place]

    def kept(self, place: str = "one") -> list[Path]:
        return sorted((self.folder / "snapshots" / place).glob("*"))

    async def save(self, snapshot_id: str, place: str = "one", **facts: Any) -> SnapshotInfo:
        return await self.snapshots.save(place, snapshot_id, state=None, facts=facts)

    async def save_state(
        self, snapshot_id: str, buffers: bytes | bytearray, segments: bytes = b"segments"
    ) -> SnapshotInfo:
        async with self.snapshots.state_folder("one") as name:
            folder = Path(name)
            (folder / "state.json").write_bytes(b'{"format": 1}')
            (folder / "segments.bin").write_bytes(segments)
            (folder / "buffers.bin").write_bytes(buffers)
            return await self.snapshots.save("one", snapshot_id, state=name, facts={})

    def leftovers(self) -> list[str]:
        """Files that are neither a manifest nor named by one, in any place and on the way; old files get time to go."""
        end = time.monotonic() + 5
        while (left := self._left()) and time.monotonic() < end:
            time.sleep(0.01)
        return left

    def _left(self) -> list[str]:
        working = self.folder / "snapshots" / ".working"
        left = [str(path) for desk in working.glob("*") for path in desk.iterdir()]
        left += [str(path) for path in self.folder.glob("sessions/*/.workspace-*")]
        for place in self.folder.glob("snapshots/[!.]*"):
            manifests = list(place.glob("*.snapshot"))
            needed = {name for it in manifests for name in decode(it.read_bytes(), it.stem).packs}
            left += [str(it) for it in place.iterdir() if it not in manifests and it.name not in needed]
        return left


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)
