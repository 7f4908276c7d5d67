"""What is thrown away is gone at once, and its bytes soon after, whoever ends meanwhile."""

import asyncio
from pathlib import Path

import pytest

from kernels.trash import Trash


def filled(folder: Path) -> Path:
    (folder / "deep" / "deeper").mkdir(parents=True)
    (folder / "deep" / "file").write_text("text")
    return folder


async def test_a_folder_that_is_thrown_away_is_gone_at_once_and_deleted_behind(tmp_path: Path) -> None:
    trash = Trash(tmp_path / "trash")
    async with trash.opened():
        trash.take(filled(tmp_path / "place"))

        assert not (tmp_path / "place").exists()
        async with asyncio.timeout(5):
            while list((tmp_path / "trash").iterdir()):
                await asyncio.sleep(0)


async def test_what_an_earlier_process_left_in_the_trash_is_deleted_by_the_next(tmp_path: Path) -> None:
    filled(tmp_path / "trash" / "left")

    async with Trash(tmp_path / "trash").opened():
        pass

    assert list((tmp_path / "trash").iterdir()) == []


async def test_a_folder_that_was_never_there_is_no_error_and_one_that_stays_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stays(folder: Path, target: Path) -> None:
        raise PermissionError("it stays")

    async with (trash := Trash(tmp_path / "trash")).opened():
        trash.take(tmp_path / "never")
        filled(tmp_path / "place")
        monkeypatch.setattr("kernels.trash.put_away", stays)
        with pytest.raises(PermissionError):
            trash.take(tmp_path / "place")
