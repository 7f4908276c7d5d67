"""Files of a checkpoint that are given as extents of others."""

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kernels.inside import checkpoint_files
from kernels.inside.checkpoint_files import CheckpointError, mapped

BLOCK = 4096


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two packs of random bytes."""
    for name in ("pack-a", "pack-b"):
        (tmp_path / name).write_bytes(os.urandom(20 * BLOCK + 5))
    return tmp_path


def load(folder: Path, extents: Any, size: int | None = None) -> memoryview:
    (folder / "extents.json").write_text(json.dumps({"buffers.bin": extents}))
    return mapped(str(folder), {"buffers.bin": sum(one[2] for one in extents) if size is None else size})["buffers.bin"]


def joined(folder: Path, extents: list[Any]) -> bytes:
    return b"".join((folder / name).read_bytes()[start : start + length] for name, start, length in extents)


EXTENTS = [
    *(["pack-a", 0, BLOCK], ["pack-a", BLOCK, 2 * BLOCK], ["pack-b", 5 * BLOCK, BLOCK], ["pack-a", 0, BLOCK]),
    *(["pack-b", 0, 0], ["pack-a", 19 * BLOCK, BLOCK + 5]),
]


@pytest.mark.parametrize("most_mapped", [0, 1, 10_000])
def test_extents_follow_each_other(folder: Path, most_mapped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "_MOST_MAPPED", most_mapped)

    view = load(folder, EXTENTS)

    assert bytes(view) == joined(folder, EXTENTS)


def test_writing_changes_no_file(folder: Path) -> None:
    before = (folder / "pack-a").read_bytes()

    view = load(folder, [["pack-a", 0, BLOCK], ["pack-a", 0, BLOCK]])
    view[0:4] = b"mine"

    assert bytes(view[BLOCK : BLOCK + 4]) == before[:4]
    assert (folder / "pack-a").read_bytes() == before


def test_memory_stays_as_long_as_something_refers_to_it(folder: Path) -> None:
    part = load(folder, EXTENTS)[BLOCK : 2 * BLOCK]
    for path in folder.iterdir():
        if path.name != "pack-a":
            path.unlink()
    expected = (folder / "pack-a").read_bytes()[BLOCK : 2 * BLOCK]
    (folder / "pack-a").unlink()
    gc.collect()

    assert bytes(part) == expected

    maps = Path("/proc/self/maps")
    assert "pack-a" in maps.read_text()
    del part
    gc.collect()
    assert "pack-a" not in maps.read_text()


def test_extents_that_are_small_and_many_are_read(folder: Path) -> None:
    (folder / "pack-a").write_bytes(os.urandom(BLOCK) * 2)
    extents = [["pack-a", 0, BLOCK]] * 70_000

    assert len(load(folder, extents)) == 70_000 * BLOCK
    assert Path("/proc/self/maps").read_text().count("pack-a") < 20_000


def test_nothing_is_nothing(folder: Path) -> None:
    assert bytes(load(folder, [])) == b""


@pytest.mark.parametrize(
    "extent",
    [
        ["../pack-a", 0, BLOCK],
        ["folder/pack-a", 0, BLOCK],
        ["/etc/passwd", 0, BLOCK],
        ["..", 0, BLOCK],
        ["", 0, BLOCK],
        ["pack-a\0", 0, BLOCK],
        [5, 0, BLOCK],
        ["pack-c", 0, BLOCK],
        ["link", 0, BLOCK],
        ["fifo", 0, BLOCK],
        ["pack-a", 1, BLOCK],
        ["pack-a", -BLOCK, BLOCK],
        ["pack-a", 0, -BLOCK],
        ["pack-a", True, BLOCK],
        ["pack-a", 0.0, BLOCK],
        ["pack-a", 0, BLOCK, 0],
        ["pack-a", 20 * BLOCK, BLOCK],
        ["pack-a", 2**80 * BLOCK, BLOCK],
        "pack-a",
        None,
    ],
)
def test_a_hostile_extent_is_refused(folder: Path, extent: Any) -> None:
    (folder / "link").symlink_to("pack-a")
    os.mkfifo(folder / "fifo")

    with pytest.raises(CheckpointError):
        load(folder, [extent], BLOCK)


@pytest.mark.parametrize(
    ("extents", "size"),
    [
        ([["pack-a", 0, BLOCK]], BLOCK + 1),
        ([["pack-a", 0, 5], ["pack-a", BLOCK, BLOCK]], BLOCK + 5),
        ([["pack-a", 0, 2**70]], 2**70),
        (5, 5),
    ],
)
def test_extents_that_do_not_fit_are_refused(folder: Path, extents: Any, size: int) -> None:
    with pytest.raises(CheckpointError):
        load(folder, extents, size)


@pytest.mark.parametrize("text", ["", "[]", "5", "{", "[" * 100_000, '{"buffers.bin": {}}', '{"buffers.bin": 5}'])
def test_a_list_of_extents_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "extents.json").write_text(text)

    with pytest.raises(CheckpointError):
        mapped(str(folder), {"buffers.bin": BLOCK})
