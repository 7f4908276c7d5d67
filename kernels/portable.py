"""A snapshot as a tar.zst to take elsewhere, and back from whoever had it since.

The first member says what all others are, in which order, and what their bytes hash to; an archive that has
anything else, anything less or anything more is refused. Any tar unpacks one: holes are written out as zeros.
"""

import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from kernels import archives
from kernels.errors import BadArchive, DamagedSnapshot, OutsideWorkspace, QuotaExceeded
from kernels.manifests import CHUNK_BYTES, Chunk, Entry, Manifest, from_portable, portable
from kernels.packs import Packer, Packs
from kernels.paths import Root, show

_MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 128 << 20
_TYPES = {
    "file": tarfile.REGTYPE,
    "folder": tarfile.DIRTYPE,
    "link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
}


@dataclass(frozen=True, slots=True)
class _Member:
    """What a member of the archive must be."""

    header: tarfile.TarInfo
    size: int = 0
    chunks: tuple[Chunk, ...] = ()
    aligned: bool = False


def _members(manifest: Manifest) -> Iterator[_Member]:
    for entry in manifest.entries:
        yield _Member(_header(entry), entry.size, entry.chunks)
    for name, file in manifest.state.items():
        header = tarfile.TarInfo(f"state/{name}")
        header.size, header.mode = file.size, 0o600
        header.mtime = int(manifest.created_at.timestamp())
        yield _Member(header, file.size, file.chunks, aligned=True)


def _header(entry: Entry) -> tarfile.TarInfo:
    header = tarfile.TarInfo("files/" + _text(b"/".join(entry.parts)))
    header.type = _TYPES[entry.kind]
    header.size, header.mode = entry.size, entry.mode or 0o777
    archives.set_time(header, entry.modified_ns)
    if entry.kind == "link":
        header.linkname = _text(entry.target)
    elif entry.kind == "hard link":
        header.linkname = "files/" + _text(entry.target)
    return header


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def export(manifest: Manifest, packs: Packs) -> Iterator[bytes]:
    """The archive, made as it is asked for, every chunk checked; pieces may be empty."""
    return archives.compressed(_tar(manifest, packs))


def _tar(manifest: Manifest, packs: Packs) -> Iterator[bytes | memoryview]:
    data = portable(manifest)
    header = tarfile.TarInfo(_MANIFEST)
    header.size, header.mode = len(data), 0o600
    yield archives.header_bytes(header)
    yield data
    yield bytes(-len(data) % tarfile.BLOCKSIZE)
    for member in _members(manifest):
        yield archives.header_bytes(member.header)
        at = 0
        for chunk in member.chunks:
            yield from _zeros(chunk.offset - at)
            key = chunk.digest, member.aligned
            yield packs.chunk(key, manifest.locations[key])
            at = chunk.offset + chunk.length
        yield from _zeros(member.size - at)
        yield bytes(-member.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield archives.ZEROS[:count]
        count -= min(count, len(archives.ZEROS))


def read(
    spool: IO[bytes],
    packer: Packer,
    snapshot_id: str,
    root: Root,
    stopped: threading.Event,
    *,
    limit_bytes: int,
    max_files: int,
) -> Manifest:
    """Pack what an archive holds. Raises the `KernelsError` of the first thing that is not as it must be."""
    try:
        with archives.reading(spool, stopped) as (tar, meter):
            manifest = _read_manifest(tar, meter, snapshot_id)
            _check(manifest, root, limit_bytes, max_files)
            taken = [(member, _take(member, tar, meter, packer)) for member in _members(manifest)]
            if tar.next_header() is not None:
                raise BadArchive("", "it holds more than its manifest says")
            meter.drain()
        packer.finish()
        for member, sink in taken:
            if tuple(sink) != member.chunks:
                raise BadArchive(member.header.name, "its bytes are not those that the manifest was written for")
    except DamagedSnapshot as error:
        raise BadArchive("", error.what) from error
    return manifest


def _read_manifest(tar: archives.Tar, meter: archives.Meter, snapshot_id: str) -> Manifest:
    header = tar.next_header()
    if header is None or header.name != _MANIFEST or not header.isreg():
        raise BadArchive("", f"not a snapshot: its first entry is not {_MANIFEST!r}")
    if not 0 < header.size <= _MAX_MANIFEST_BYTES:
        raise QuotaExceeded("", "its manifest is larger than it may be")
    meter.grant(header.size)
    source = tar.extractfile(header)
    return from_portable(source.read() if source is not None else b"", snapshot_id)


def _check(manifest: Manifest, root: Root, limit_bytes: int, max_files: int) -> None:
    info = manifest.info()
    if info.size_bytes > limit_bytes:
        raise QuotaExceeded("", f"the snapshot holds more than {limit_bytes} bytes")
    if len(manifest.entries) > max_files:
        raise QuotaExceeded("", f"the snapshot holds more than {max_files} files and folders")
    for entry in manifest.entries:
        if entry.kind == "link" and not archives.stays_inside(entry.parts, entry.target, root):
            raise OutsideWorkspace(show(entry.parts), "a link that leads, or could lead, out of the workspace")


def _take(member: _Member, tar: archives.Tar, meter: archives.Meter, packer: Packer) -> list[Chunk]:
    """Give a member's bytes to the packer; what comes out of it must be what the manifest says."""
    header, wanted = tar.next_header(), member.header
    if header is None:
        raise BadArchive(wanted.name, "it is missing")
    same = (header.name, header.type) == (wanted.name, wanted.type) and (
        header.size == member.size if wanted.isreg() else header.linkname == wanted.linkname
    )
    if not same or header.issparse() or any(key.startswith("GNU.") for key in header.pax_headers):
        raise BadArchive(header.name, f"the manifest says that {wanted.name!r} must be here, and what it is")
    meter.grant(member.size)
    if not wanted.isreg():
        return []
    source = tar.extractfile(header)
    assert source is not None
    sink: list[Chunk] = []
    at = 0
    for chunk in member.chunks:
        _skip_zeros(source, chunk.offset - at, wanted.name)
        packer.add(source.read(chunk.length), chunk.offset, sink, aligned=member.aligned)
        at = chunk.offset + chunk.length
    _skip_zeros(source, member.size - at, wanted.name)
    return sink


def _skip_zeros(source: IO[bytes], count: int, name: str) -> None:
    while count > 0:
        piece = source.read(min(count, CHUNK_BYTES))
        if not piece or piece.count(0) != len(piece):
            raise BadArchive(name, "data where the manifest says that there is none")
        count -= len(piece)
