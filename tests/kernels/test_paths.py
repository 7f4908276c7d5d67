"""Every path either leads to something inside, or to an error of ours."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.errors import BadPath, FileConflict, NoSuchFile, OutsideWorkspace, WorkspaceError
from kernels.paths import Folders, Parts, delete_tree, is_hidden, open_root, parse, resolve, show, walk


@pytest.fixture
def as_nobody(root: Path) -> Iterator[None]:
    """Root may open anything; whoever runs a gateway may not."""
    if os.geteuid():
        yield
        return
    for folder in (root, *root.parents):
        if folder.stat().st_uid == 0 and folder.is_relative_to(tempfile.gettempdir()) and folder.name != "tmp":
            folder.chmod(0o755)
    os.chown(root, 65534, 65534)
    os.seteuid(65534)
    yield
    os.seteuid(0)


def found(root: Path, path: str, *, follow: bool = True) -> tuple[Parts, int]:
    """Where a path leads, and the inode there."""
    with open_root(root, path) as opened, resolve(opened, path, follow=follow) as place:
        return place.parts, place.status().st_ino


def test_a_path_leads_to_its_file(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "c").touch()

    parts, inode = found(root, "a/./b/c")

    assert parts == (b"a", b"b", b"c")
    assert inode == (root / "a/b/c").stat().st_ino


@pytest.mark.parametrize("path", ["", ".", "./."])
def test_the_empty_path_is_the_workspace(root: Path, path: str) -> None:
    assert found(root, path) == ((), root.stat().st_ino)


@pytest.mark.parametrize(
    "path", ["..", "../secret", "a/../../secret", "a/..", "/etc/passwd", "/", "//etc", "./../secret", "..//"]
)
def test_climbing_out_is_refused(root: Path, path: str) -> None:
    with pytest.raises(OutsideWorkspace):
        found(root, path)


@pytest.mark.parametrize(
    "path", ["a//b", "a/", "a\0b", "x" * 256, "é" * 128, "ab/" * 1400 + "c", "\ud800", ".workspace-" + "0" * 32]
)
def test_what_is_no_name_is_refused(root: Path, path: str) -> None:
    with pytest.raises(BadPath):
        found(root, path)


def test_a_path_may_be_as_long_as_the_system_allows(root: Path) -> None:
    path = "/".join(["x" * 255] * 16)

    with pytest.raises(NoSuchFile):
        found(root, path)


@pytest.mark.parametrize("target", ["real/file", "./real/file", "real/../real/file", "other/../real/file"])
def test_a_link_inside_is_followed(root: Path, target: str) -> None:
    (root / "real").mkdir()
    (root / "other").symlink_to("real")
    (root / "real" / "file").touch()
    (root / "link").symlink_to(target)

    assert found(root, "link") == ((b"real", b"file"), (root / "real/file").stat().st_ino)


def test_an_absolute_link_to_the_inside_is_followed(root: Path) -> None:
    (root / "real").mkdir()
    (root / "real" / "file").touch()
    (root / "link").symlink_to(root / "real")

    assert found(root, "link/file")[0] == (b"real", b"file")


def test_an_absolute_link_is_inside_whichever_way_the_workspace_is_named(root: Path) -> None:
    (root / "file").touch()
    (root / "link").symlink_to(root / "file")
    (root.parent / "alias").symlink_to(root.parent)
    (root / "aliased").symlink_to(root.parent / "alias" / "workspace" / "file")
    by_alias = root.parent / "alias" / "workspace"

    assert found(by_alias, "link")[0] == (b"file",)
    assert found(by_alias, "aliased")[0] == (b"file",)


def test_the_steps_up_of_a_link_start_at_the_real_folder(root: Path) -> None:
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "file").touch()
    (root / "short").symlink_to("deep/er")
    (root / "link").symlink_to("short/../file")

    assert found(root, "link")[0] == (b"deep", b"file")


@pytest.mark.parametrize(
    "target", ["..", "../secret", "/", "/etc/passwd", "real/../../secret", "up/..", "up/../secret", "/proc/self/root"]
)
def test_a_link_that_leads_out_is_refused(root: Path, target: str) -> None:
    (root / "real").mkdir()
    (root / "real" / "up").symlink_to("..")
    (root / "real" / "link").symlink_to(target if target.startswith("/") else f"../{target}")
    (root / "up").symlink_to("real/up")
    (root / "link").symlink_to(target)

    for path in ("link", "link/x", "real/link"):
        with pytest.raises(OutsideWorkspace):
            found(root, path)


def test_a_chain_of_links_that_leads_out_is_refused(root: Path) -> None:
    (root / "one").symlink_to("two/secret")
    (root / "two").symlink_to("three")
    (root / "three").symlink_to("..")

    with pytest.raises(OutsideWorkspace):
        found(root, "one")


def test_a_sibling_that_starts_with_the_same_letters_is_outside(root: Path) -> None:
    sibling = root.parent / "workspace-of-another"
    sibling.mkdir()
    (root / "link").symlink_to(sibling)

    with pytest.raises(OutsideWorkspace):
        found(root, "link")


def test_a_link_that_leads_out_can_still_be_named(root: Path) -> None:
    (root / "link").symlink_to("/etc/passwd")

    assert found(root, "link", follow=False)[0] == (b"link",)


def test_links_in_a_circle_are_an_error(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    (root / "self").symlink_to("self/self/self")

    for path in ("a", "a/x", "self"):
        with pytest.raises(FileConflict, match="links"):
            found(root, path)


def test_forty_links_are_followed_and_no_more(root: Path) -> None:
    (root / "0").touch()
    for number in range(1, 42):
        (root / str(number)).symlink_to(str(number - 1))

    assert found(root, "40")[0] == (b"0",)
    with pytest.raises(FileConflict, match="40 links"):
        found(root, "41")


def test_a_file_is_no_folder(root: Path) -> None:
    (root / "file").touch()

    with pytest.raises(FileConflict):
        found(root, "file/below")


def test_a_missing_path_is_no_such_file(root: Path) -> None:
    (root / "dangling").symlink_to("nothing/../here")

    for path in ("nothing", "nothing/below", "dangling"):
        with pytest.raises(NoSuchFile):
            found(root, path)


def test_a_missing_workspace_is_no_such_file(root: Path) -> None:
    root.rmdir()

    with pytest.raises(NoSuchFile):
        found(root, "")


def test_folders_made_for_a_file_go_when_the_file_fails(root: Path) -> None:
    (root / "there").mkdir()

    with (
        suppress(ZeroDivisionError),
        open_root(root) as opened,
        resolve(opened, "there/a/b/file") as place,
        place.made() as folder,
    ):
        assert os.fstat(folder).st_ino == (root / "there/a/b").stat().st_ino
        raise ZeroDivisionError

    assert list((root / "there").iterdir()) == []


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"/" not in name and b"\0" not in name))
@example(b"caf\xe9")
@example(rb"\xe9")
@example(rb"\x5cxe9")
@example(rb"a\b\x5c" + b"\xff\\\\x")
@example("日本 é".encode())
def test_every_name_has_one_form_that_is_shown_and_taken_back(name: bytes) -> None:
    shown = show((name,))

    shown.encode()
    if name not in (b".", b"..") and not is_hidden(name):
        assert parse(shown) == (name,)


names = st.sampled_from(["..", ".", "", "a", "b", "in", "out", "up", "loop", "abs", "file", "missing", "..."])
paths = st.lists(names, max_size=8).map("/".join) | st.text(max_size=30) | names.map(lambda name: f"/{name}")


@settings(max_examples=200, deadline=None)
@given(paths, st.booleans())
@example("up/up/secret", True)
@example("abs/in/../../out", True)
def test_any_text_stays_inside_or_is_refused(path: str, follow: bool) -> None:
    top = Path(tempfile.mkdtemp())
    try:
        root = top / "workspace"
        (root / "a" / "b").mkdir(parents=True)
        (root / "a" / "b" / "file").touch()
        (root / "in").symlink_to("a/b")
        (root / "a" / "up").symlink_to("..")
        (root / "a" / "b" / "up").symlink_to("../../..")
        (root / "up").symlink_to("a/up")
        (root / "out").symlink_to("/etc")
        (root / "abs").symlink_to(root / "a")
        (root / "loop").symlink_to("a/up/loop")

        with suppress(WorkspaceError), open_root(root, path) as opened, resolve(opened, path, follow=follow) as place:
            real = os.path.realpath(f"/proc/self/fd/{place.folder}")
            assert Path(real).is_relative_to(os.path.realpath(root))
            assert b".." not in place.left
            if place.left[1:] or place.status_or_none() is None:
                return
            if follow:
                assert not os.path.islink(Path(real, *map(os.fsdecode, place.left)))
    finally:
        shutil.rmtree(top)


def test_a_folder_swapped_for_a_link_never_leads_out(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("secret")
    (root / "folder").mkdir()
    (root / "folder" / "file").write_text("inside")
    secret, inside = (outside / "file").stat().st_ino, (root / "folder" / "file").stat().st_ino
    (root / "link").symlink_to(outside)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            for source, target in (("folder", "away"), ("link", "folder"), ("folder", "link"), ("away", "folder")):
                os.rename(root / source, root / target)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    for _ in range(20_000):
        with suppress(WorkspaceError):
            seen.add(found(root, "folder/file")[1])
    over.set()
    thread.join()

    assert seen == {inside}
    assert secret not in seen


def test_a_walk_sees_each_folder_and_follows_no_link(root: Path) -> None:
    (root / "b" / "c").mkdir(parents=True)
    (root / "a").mkdir()
    (root / "a" / "round").symlink_to("..")
    (root / "a" / "out").symlink_to("/etc")

    with open_root(root) as opened:
        seen = {show(parts): [name for name, _ in entries] for parts, _, entries in walk(opened.fd, skip=is_hidden)}

    assert seen == {"": [b"a", b"b"], "a": [b"out", b"round"], "b": [b"c"], "b/c": []}


def make_deep(root: Path, depth: int) -> None:
    with closing(Folders(os.open(root, os.O_RDONLY))) as folders:
        parts: list[bytes] = []
        for _ in range(depth):
            os.mkdir(b"d", dir_fd=folders.open(parts))
            parts.append(b"d")
        os.close(os.open(b"leaf", os.O_CREAT | os.O_WRONLY, dir_fd=folders.open(parts)))
        os.close(folders._root)


def test_a_tree_too_deep_to_walk_is_refused_and_can_be_deleted(root: Path) -> None:
    make_deep(root, 3000)

    with open_root(root) as opened:
        with pytest.raises(FileConflict, match="deep"):
            list(walk(opened.fd, skip=is_hidden))
        delete_tree(b"d", opened.fd)

    assert list(root.iterdir()) == []


def test_deleting_a_tree_leaves_what_its_links_point_to(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (root / "tree" / "deep").mkdir(parents=True)
    (root / "tree" / "link").symlink_to(outside)
    (root / "tree" / "deep" / "link").symlink_to(outside / "file")

    with open_root(root) as opened:
        delete_tree(b"tree", opened.fd)

    assert list(root.iterdir()) == []
    assert (outside / "file").exists()


@pytest.mark.usefixtures("as_nobody")
def test_modes_do_not_keep_the_owner_from_walking_or_deleting(root: Path) -> None:
    (root / "tree" / "closed" / "deep").mkdir(parents=True)
    (root / "tree" / "closed" / "deep" / "file").touch()
    (root / "tree" / "closed" / "deep").chmod(0o500)
    (root / "tree" / "closed").chmod(0)
    (root / "tree").chmod(0o500)

    with open_root(root) as opened:
        walked = [show(parts) for parts, _, _ in walk(opened.fd, skip=is_hidden)]
        modes = (root / "tree" / "closed").stat().st_mode & 0o777
        delete_tree(b"tree", opened.fd)

    assert walked == ["", "tree", "tree/closed", "tree/closed/deep"]
    assert modes == 0
    assert list(root.iterdir()) == []
