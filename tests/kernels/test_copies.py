"""A folder copied beside itself is the same in all that matters, and nothing outside of it is read."""

import os
import socket
from pathlib import Path

from kernels.engines.overlay import copy_folder


def test_everything_is_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "empty").touch()
    (source / "deep" / "er" / "text.txt").write_text("words")
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o750)
    os.utime(source / "run.sh", ns=(1, 1_600_000_000_123_456_789))
    os.link(source / "run.sh", source / "deep" / "same.sh")
    (source / "link").symlink_to("deep/er/text.txt")
    with open(source / "sparse", "wb") as sparse:
        sparse.truncate(1 << 30)
        sparse.seek(1 << 29)
        sparse.write(b"middle")
    (source / "deep").chmod(0o700)
    target = tmp_path / "target"

    assert copy_folder(source, target) == []

    assert (target / "deep" / "er" / "text.txt").read_text() == "words"
    assert (target / "empty").stat().st_size == 0
    copied = (target / "run.sh").stat()
    assert (copied.st_mode & 0o777, copied.st_mtime_ns) == (0o750, 1_600_000_000_123_456_789)
    assert copied.st_ino == (target / "deep" / "same.sh").stat().st_ino
    assert os.readlink(target / "link") == "deep/er/text.txt"
    sparse_copy = (target / "sparse").stat()
    assert sparse_copy.st_size == 1 << 30
    assert sparse_copy.st_blocks * 512 < 1 << 20
    with open(target / "sparse", "rb") as sparse:
        sparse.seek(1 << 29)
        assert sparse.read(6) == b"middle"


def test_a_copy_is_changed_without_the_other_one(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "a").write_text("before")
    copy_folder(source, target)

    (target / "a").write_text("copy")
    assert (source / "a").read_text() == "before"
    (source / "a").write_text("source")
    assert (target / "a").read_text() == "copy"


def test_links_that_lead_out_are_copied_as_links(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    (source / "folder").symlink_to(tmp_path / "secret")
    (source / "file").symlink_to(tmp_path / "secret" / "key")

    copy_folder(source, target)

    assert os.readlink(target / "folder") == str(tmp_path / "secret")
    assert os.readlink(target / "file") == str(tmp_path / "secret" / "key")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(source / "socket"))
        skipped = copy_folder(source, target)

    assert {one.path for one in skipped} == {"fifo", "socket"}
    assert list(target.iterdir()) == []
