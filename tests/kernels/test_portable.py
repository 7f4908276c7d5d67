"""Snapshots that travel as tarballs, most of them made to do harm on the way."""

import io
import json
import os
import sys
import tarfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from kernels import manifests
from kernels.engine import SnapshotInfo
from kernels.errors import BadArchive, KernelsError, NewerSnapshot, OutsideWorkspace, QuotaExceeded
from kernels.manifests import Chunk, Entry, Manifest, StateFile, portable
from tests.kernels.conftest import Vault
from tests.kernels.test_archives import everything
from tests.kernels.test_snapshots import MIB, loaded, noise

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


async def exported(vault: Vault, snapshot_id: str = "first") -> bytes:
    return b"".join([piece async for piece in vault.snapshots.export("one", snapshot_id)])


async def taken_in(vault: Vault, data: bytes, limit_bytes: int = 1 << 30, max_files: int = 1000) -> SnapshotInfo:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1 << 16):
            yield data[start : start + (1 << 16)]

    return await vault.snapshots.take_in("two", "new", pieces(), limit_bytes=limit_bytes, max_files=max_files)


def tarball(*members: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                header = tarfile.TarInfo(member[0])
                header.size = len(member[1])
                tar.addfile(header, io.BytesIO(member[1]))
    return zstd.compress(made.getvalue(), 1)


def a_manifest(*entries: Entry, **fields: Any) -> Manifest:
    return Manifest("x", datetime(2026, 1, 1, tzinfo=UTC), entries, fields.pop("state", {}), {}, **fields)


def a_file(name: bytes, data: bytes) -> Entry:
    chunks = (Chunk(0, len(data), blake3(data).digest()),) if data else ()
    return Entry(tuple(name.split(b"/")), "file", 0o644, 0, len(data), chunks=chunks)


def with_manifest(*entries: Entry, **fields: Any) -> tuple[str, bytes]:
    return "manifest.json", portable(a_manifest(*entries, **fields))


async def test_a_snapshot_travels_whole(vault: Vault, tmp_path: Path) -> None:
    root = vault.root()
    (root / "folder").mkdir()
    (root / "folder" / "large").write_bytes(noise(2 * MIB + 5))
    (root / os.fsdecode(b"caf\xe9\n")).write_text("odd")
    (root / "link").symlink_to("folder/large")
    os.link(root / "folder" / "large", root / "same")
    (root / "sparse").touch()
    os.truncate(root / "sparse", 30 * MIB)
    os.utime(root / "folder", ns=(1, -1_500_000_000))
    before = everything(root)
    first = await vault.save_state("first", noise(9 * MIB, 1), noise(5000, 2))

    data = await exported(vault)
    other = Vault(tmp_path / "elsewhere")
    new = await taken_in(other, data)

    assert new == replace(first, id="new", stored_bytes=new.stored_bytes)
    await other.snapshots.restore_files("two", "new")
    assert everything(other.root("two")) == before
    assert (other.root("two") / "sparse").stat().st_blocks == 0
    await other.snapshots.copy("two", "new", "one", "copy")
    assert (await loaded(other, "copy"))["buffers.bin"] == noise(9 * MIB, 1)
    assert other.leftovers() == vault.leftovers() == []


async def test_any_tar_can_unpack_one(vault: Vault, tmp_path: Path) -> None:
    (vault.root() / "folder").mkdir()
    (vault.root() / "folder" / "file").write_text("text")
    await vault.save("first", python="3.12.1")

    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(await exported(vault)))) as tar:
        tar.extractall(tmp_path / "out", filter="data")

    assert (tmp_path / "out" / "files" / "folder" / "file").read_text() == "text"
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (told["format"], told["content"]["facts"]) == (1, {"python": "3.12.1"})
    assert "stamp" not in json.dumps(told)


def links_out(target: bytes) -> bytes:
    header = tarfile.TarInfo("files/link")
    header.type, header.linkname = tarfile.SYMTYPE, target.decode()
    return tarball(with_manifest(Entry((b"link",), "link", target=target)), header)


def raw_manifest(change: Callable[[dict[str, Any]], object]) -> bytes:
    content = json.loads(portable(a_manifest(a_file(b"a", b"x"))))["content"]
    change(content)
    body = manifests._json(content)
    told = {"format": 1, "digest": blake3(body).hexdigest(), "content": content}
    return tarball(("manifest.json", json.dumps(told).encode()), ("files/a", b"x"))


def device() -> bytes:
    header = tarfile.TarInfo("files/a")
    header.type = tarfile.CHRTYPE
    return tarball(with_manifest(a_file(b"a", b"")), header)


def set_entry(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["entries"][0].update(fields)


def bomb() -> bytes:
    header = tarfile.TarInfo("files/a")
    header.size = 1 << 40
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        name, data = with_manifest(a_file(b"a", b"")._replace(size=1 << 40))
        first = tarfile.TarInfo(name)
        first.size = len(data)
        tar.addfile(first, io.BytesIO(data))
        raw.write(header.tobuf(tarfile.PAX_FORMAT))
    return zstd.compress(raw.getvalue() + bytes(100 * MIB), 1)


HOSTILE: dict[str, tuple[Callable[[], bytes], type[KernelsError]]] = {
    "traversal": (lambda: raw_manifest(set_entry(path="../a")), BadArchive),
    "traversal within": (lambda: raw_manifest(set_entry(path="b/../../a")), BadArchive),
    "absolute": (lambda: raw_manifest(set_entry(path="/etc/passwd")), BadArchive),
    "two forms of a name": (lambda: raw_manifest(set_entry(path="./a")), BadArchive),
    "hidden": (lambda: raw_manifest(set_entry(path=".workspace-" + "0" * 32)), BadArchive),
    "in no folder": (lambda: raw_manifest(set_entry(path="b/a")), BadArchive),
    "NUL": (lambda: raw_manifest(set_entry(path="a\0")), BadArchive),
    "device in manifest": (lambda: raw_manifest(set_entry(kind="device")), BadArchive),
    "negative": (lambda: raw_manifest(set_entry(size=-1)), BadArchive),
    "no number": (lambda: raw_manifest(set_entry(size="1")), BadArchive),
    "beyond the end": (lambda: raw_manifest(set_entry(size=0)), BadArchive),
    "huge": (lambda: raw_manifest(set_entry(size=1 << 59)), QuotaExceeded),
    "twice": (lambda: raw_manifest(lambda it: it["entries"].append(it["entries"][0])), BadArchive),
    "surplus fields": (lambda: raw_manifest(set_entry(more=1)), BadArchive),
    "strange state": (
        lambda: raw_manifest(lambda it: it["state"].update({"../x": {"size": 0, "chunks": []}})),
        BadArchive,
    ),
    "half a state": (
        lambda: tarball(with_manifest(state={"state.json": StateFile(0, ())}), ("state/state.json", b"")),
        BadArchive,
    ),
    "hard link to nothing": (
        lambda: tarball(with_manifest(Entry((b"a",), "hard link", target=b"../b"))),
        BadArchive,
    ),
    "link out": (lambda: links_out(b"../../etc/passwd"), OutsideWorkspace),
    "absolute link": (lambda: links_out(b"/etc/passwd"), OutsideWorkspace),
    "device": (device, BadArchive),
    "bomb": (bomb, QuotaExceeded),
    "zeros without end": (
        lambda: zstd.compress(zstd.decompress(tarball(with_manifest())) + bytes(100 * MIB), 1),
        QuotaExceeded,
    ),
    "missing": (lambda: tarball(with_manifest(a_file(b"a", b"x"))), BadArchive),
    "surplus": (lambda: tarball(with_manifest(a_file(b"a", b"x")), ("files/a", b"x"), ("files/b", b"")), BadArchive),
    "other bytes": (lambda: tarball(with_manifest(a_file(b"a", b"x")), ("files/a", b"y")), BadArchive),
    "other size": (lambda: tarball(with_manifest(a_file(b"a", b"x")), ("files/a", b"xx")), BadArchive),
    "other name": (lambda: tarball(with_manifest(a_file(b"a", b"x")), ("files/../a", b"x")), BadArchive),
    "data in a hole": (
        lambda: tarball(with_manifest(a_file(b"a", b"")._replace(size=3)), ("files/a", b"\0x\0")),
        BadArchive,
    ),
    "no manifest": (lambda: tarball(("files/a", b"x")), BadArchive),
    "empty": (lambda: b"", BadArchive),
    "noise": (lambda: noise(100_000), BadArchive),
    "no JSON": (lambda: tarball(("manifest.json", b"{")), BadArchive),
    "a list": (lambda: tarball(("manifest.json", b"[]")), BadArchive),
    "deep JSON": (lambda: tarball(("manifest.json", b"[" * 500_000)), BadArchive),
    "false digest": (
        lambda: tarball(("manifest.json", portable(a_manifest()).replace(b'"digest":"', b'"digest":"0'))),
        BadArchive,
    ),
    "too many": (
        lambda: tarball(with_manifest(*(Entry((b"%d" % number,), "folder") for number in range(2000)))),
        QuotaExceeded,
    ),
    "newer": (lambda: tarball(("manifest.json", b'{"format": 2, "anything": []}')), NewerSnapshot),
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_tarball_is_refused_and_nothing_is_kept(vault: Vault, case: str) -> None:
    make, error = HOSTILE[case]

    with pytest.raises(error):
        await taken_in(vault, make())

    assert await vault.snapshots.ids("two") == []
    assert vault.kept("two") == []
    assert vault.leftovers() == []
    assert everything(vault.root("two")) == {}


async def test_a_tarball_that_is_cut_off_or_changed_is_refused(vault: Vault) -> None:
    (vault.root() / "file").write_bytes(noise(300_000))
    await vault.save("first")
    data = await exported(vault)

    for size in (10, 1000, len(data) // 2, len(data) - 1):
        with pytest.raises(BadArchive):
            await taken_in(vault, data[:size])
    for at in range(0, len(data), len(data) // 20):
        with pytest.raises((BadArchive, QuotaExceeded)):
            await taken_in(vault, data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
    assert await vault.snapshots.ids("two") == []
    assert vault.leftovers() == []


async def test_a_tarball_larger_than_allowed_is_refused(vault: Vault) -> None:
    (vault.root() / "file").write_bytes(noise(300_000))
    await vault.save("first")
    data = await exported(vault)

    with pytest.raises(QuotaExceeded, match="holds more than 299999 bytes"):
        await taken_in(vault, data, limit_bytes=299_999)
    with pytest.raises(QuotaExceeded, match="holds more than 0 files and folders"):
        await taken_in(vault, data, max_files=0)
    assert (await taken_in(vault, data, limit_bytes=300_000, max_files=1)).file_count == 1
