"""Blobs in a folder and in object stores: the same promises, and snapshots on top of each."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import LocalStore, MemoryStore

from kernels.blobs import Blobs, FolderBlobs, ObjectBlobs
from tests.kernels.conftest import Vault
from tests.kernels.test_snapshots import MIB, loaded, noise

KINDS: dict[str, Callable[[Path], Blobs]] = {
    "folder": lambda folder: FolderBlobs(folder),
    "memory": lambda _: ObjectBlobs(MemoryStore(), "some/prefix"),
    "local": lambda folder: ObjectBlobs(LocalStore(folder, mkdir=True)),
    "by address": lambda _: ObjectBlobs.at("memory:///"),
}


@pytest.fixture(params=KINDS)
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return KINDS[request.param](tmp_path / "blobs")


def test_blobs_are_put_read_listed_copied_and_deleted(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(noise(MIB))
    blobs.put_file("one/pack", tmp_path / "file")
    blobs.put("one/manifest", b"0123456789")
    blobs.copy("one/pack", "two/pack")

    assert blobs.sizes("one") == {"pack": MIB, "manifest": 10}
    assert blobs.sizes("two") == {"pack": MIB}
    assert blobs.get("one/manifest") == b"0123456789"
    assert blobs.get("one/manifest", 3) == b"3456789"
    assert blobs.get("one/manifest", 3, 5) == b"34"
    assert blobs.get("one/manifest", 8, 50) == b"89"

    blobs.fetch("one/pack", tmp_path / "fetched")
    blobs.delete("one/pack")
    blobs.delete("one/pack")
    assert (tmp_path / "fetched").read_bytes() == noise(MIB)
    assert blobs.get("two/pack") == noise(MIB)
    blobs.remove("two")
    blobs.remove("two")
    assert blobs.sizes("two") == {}
    assert blobs.sizes("one") == {"manifest": 10}


def test_a_blob_that_is_not_there_is_told(blobs: Blobs, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        blobs.get("one/none")
    with pytest.raises(FileNotFoundError):
        blobs.get("one/none", 1, 2)
    with pytest.raises(FileNotFoundError):
        blobs.fetch("one/none", tmp_path / "fetched")
    with pytest.raises(FileNotFoundError):
        blobs.copy("one/none", "two/none")
    assert blobs.local_path("one/none") is None
    assert blobs.sizes("one") == {}


def test_a_folder_keeps_files_without_copying_them(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    (tmp_path / "file").write_bytes(b"data")
    inode = (tmp_path / "file").stat().st_ino
    blobs.put_file("one/pack", tmp_path / "file")
    blobs.copy("one/pack", "two/pack")

    path = blobs.local_path("two/pack")
    assert path is not None
    assert path.stat().st_ino == inode


def test_what_a_crash_left_half_written_is_deleted_by_the_next_to_change_the_place(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    blobs.put("one/manifest", b"data")
    (tmp_path / "one" / ".other.new").write_bytes(b"half")

    with blobs.locked("one"):
        assert os.listdir(tmp_path / "one") == ["manifest"]


async def test_snapshots_work_on_any_blobs(blobs: Blobs, tmp_path: Path) -> None:
    vault = Vault(tmp_path, blobs=blobs)
    (vault.root() / "file").write_bytes(noise(MIB))
    await vault.save_state("first", noise(9 * MIB, 1))
    second = await vault.save_state("second", noise(9 * MIB, 1))
    await vault.snapshots.copy("one", "first", "two", "copy")
    await vault.snapshots.delete("one", "first")

    again = Vault(tmp_path, blobs=blobs)
    assert await again.snapshots.ids("one") == ["second"]
    assert second.stored_bytes < 100_000
    (vault.root() / "file").unlink()
    await again.snapshots.restore_files("one", "second")
    assert (vault.root() / "file").read_bytes() == noise(MIB)
    assert (await loaded(again, "second"))["buffers.bin"] == noise(9 * MIB, 1)
    await again.snapshots.remove("one")
    await again.snapshots.verify("two", "copy")
    assert await again.snapshots.usage("one") == 0
    assert await again.snapshots.usage("two") > 10 * MIB
