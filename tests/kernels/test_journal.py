"""The journal of a kernel: what is kept of what it published, and that nobody is told a half."""

import os
from pathlib import Path

import pytest

from kernels.journal import Entry, JournalReader, JournalWriter


def all_of(folder: Path, after: int = 0) -> list[Entry]:
    reader = JournalReader(folder, after)
    found: list[Entry] = []
    while more := reader.read(1000):
        found += more
    reader.close()
    return found


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_what_was_added_is_read_in_order(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "journal")
    messages = [(b"", b"<IDS|MSG>", os.urandom(n)) for n in range(500)]

    writer.add(messages[:200])
    writer.add([])
    writer.add(messages[200:])

    found = all_of(tmp_path / "journal")
    assert [one.frames for one in found] == messages
    assert [one.number for one in found] == list(range(1, 501))
    assert all(one.lost == 0 for one in found)
    assert [one.number for one in all_of(tmp_path / "journal", after=498)] == [499, 500]


def test_it_never_grows_past_its_bound_and_tells_what_was_lost(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "journal", limit_bytes=100_000)
    largest = 0
    for n in range(1000):
        writer.add([(b"%d" % n, b"x" * 1000)] * (n % 3 + 1))
        largest = max(largest, bytes_of(tmp_path / "journal"))

    found = all_of(tmp_path / "journal")

    assert 50_000 < bytes_of(tmp_path / "journal") <= largest <= 100_000
    assert found[-1].number == writer.number
    assert found[0].lost == found[0].number - 1
    assert all(one.lost == 0 for one in found[1:])


def test_a_message_larger_than_its_bound_leaves_a_gap_that_is_seen(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "journal", limit_bytes=100_000)
    writer.add([(b"before",), (b"x" * 60_000,), (b"after",)])

    assert [one.frames for one in all_of(tmp_path / "journal")] == [(b"before",), (), (b"after",)]


@pytest.mark.parametrize("limit_bytes", [100_000, 10_000_000])
def test_it_can_be_read_while_it_is_written(tmp_path: Path, limit_bytes: int) -> None:
    writer, reader = JournalWriter(tmp_path / "journal", limit_bytes), JournalReader(tmp_path / "journal")
    assert reader.read() == []
    found: list[Entry] = []

    for n in range(1000):
        writer.add([(b"%d" % n, b"x" * 1000)])
        if n % 7 == 0:
            found += reader.read()
    found += reader.read(10_000_000)
    reader.close()

    assert [one.frames[0] for one in found] == [b"%d" % n for n in range(1000)]


def test_half_a_message_is_not_there_yet(tmp_path: Path) -> None:
    writer, reader = JournalWriter(tmp_path / "journal"), JournalReader(tmp_path / "journal")
    writer.add([(b"first",), (b"second",)])
    (segment,) = (tmp_path / "journal").iterdir()
    whole = segment.read_bytes()

    found: list[list[bytes]] = []
    for size in range(len(whole) + 1):
        segment.write_bytes(whole[:size])
        found += [list(one.frames) for one in reader.read()]
    reader.close()

    assert found == [[b"first"], [b"second"]]


def test_a_disk_that_takes_nothing_loses_messages_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = JournalWriter(tmp_path / "journal", limit_bytes=1000)
    writer.add([(b"first",)])
    aside = (tmp_path / "journal").rename(tmp_path / "aside")
    for _ in range(10):
        writer.add([(b"x" * 400,)])
    aside.rename(tmp_path / "journal")
    writer.add([(b"last",)])

    found = all_of(tmp_path / "journal")
    assert found[-1].frames == (b"last",)
    assert sum(one.lost for one in found) + len(found) == 12
    assert "can't be written" in caplog.text
