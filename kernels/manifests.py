"""What a snapshot holds, as one file: entries, where their chunks are kept, and facts that the caller gave.

A manifest is believed only if its digest holds and every name, number and reference in it makes sense: it may
come from elsewhere. Its content (without ids, packs and stamps) is what the portable form carries.
"""

import json
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from blake3 import blake3

from kernels.engine import Skipped, SnapshotInfo
from kernels.errors import DamagedSnapshot, NewerSnapshot, WorkspaceError
from kernels.paths import Parts, parse, read_name, show, show_name

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT = 1
CHUNK_BYTES = 1 << 20
PAGE_BYTES = 4096
STATE_FILES = ("state.json", "segments.bin", "buffers.bin")
MAX_FILE_BYTES = 1 << 60

_MAGIC = b"session-gateway-snapshot"
_HEADER = re.compile(rb"session-gateway-snapshot (\d{1,9}) ([0-9a-f]{64})\n")
_LENGTHS = struct.Struct("<QQQ")
_ROW = struct.Struct("<32sIQIIIIB")
_HEX = re.compile(r"[0-9a-f]{64}")
_LEVEL = 1

Kind = Literal["file", "folder", "link", "hard link"]
_KINDS = ("file", "folder", "link", "hard link")


class Chunk(NamedTuple):
    """Bytes of a file from `offset` on; between chunks there are holes."""

    offset: int
    length: int
    digest: bytes


class Location(NamedTuple):
    """Where a chunk is kept: `inner` bytes into a block of a pack, which is compressed if it is shorter than it was."""

    pack: str
    offset: int
    stored: int
    raw: int
    inner: int
    length: int


Stamp = tuple[int, int, int, int]  # what tells that a file is as it was: size, mtime_ns, ctime_ns, inode


class Entry(NamedTuple):
    """One thing of a workspace. `target` is a link's text, or the path of the file that a hard link stands for."""

    parts: Parts
    kind: Kind
    mode: int = 0
    modified_ns: int = 0
    size: int = 0
    target: bytes = b""
    chunks: tuple[Chunk, ...] = ()
    stamp: Stamp | None = None


@dataclass(frozen=True, slots=True)
class StateFile:
    size: int
    chunks: tuple[Chunk, ...]


Key = tuple[bytes, bool]  # a digest, and whether it is of the state: kept as it is, page by page, to be mapped


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot. `locations` has a place for every chunk, `packs` are those with all of them."""

    id: str
    created_at: datetime
    entries: tuple[Entry, ...]
    state: Mapping[str, StateFile]
    facts: Mapping[str, Any]
    skipped: tuple[Skipped, ...] = ()
    changed: tuple[str, ...] = ()
    locations: Mapping[Key, Location] = field(default_factory=dict)
    added_bytes: int = 0

    @property
    def packs(self) -> set[str]:
        return {location.pack for location in self.locations.values()}

    def wanted(self) -> Iterator[tuple[Key, int]]:
        """Every chunk, with its length; some more than once."""
        for entry in self.entries:
            for chunk in entry.chunks:
                yield (chunk.digest, False), chunk.length
        for file in self.state.values():
            for chunk in file.chunks:
                yield (chunk.digest, True), chunk.length

    def info(self, digest: str | None = None) -> SnapshotInfo:
        """`digest` is that of the content, if it is known already."""
        files = [entry for entry in self.entries if entry.kind in ("file", "link")]
        return SnapshotInfo(
            id=self.id,
            digest=digest or blake3(content(self)).hexdigest(),
            created_at=self.created_at,
            size_bytes=sum(entry.size or len(entry.target) for entry in files)
            + sum(file.size for file in self.state.values()),
            stored_bytes=self.added_bytes,
            file_count=len(files),
            has_state=bool(self.state),
            facts=self.facts,
            skipped=self.skipped,
            changed=self.changed,
        )


def content(manifest: Manifest) -> bytes:
    """What is the same wherever the snapshot is: JSON, in one form only."""
    return _json(
        {
            "created_at": manifest.created_at.isoformat(),
            "entries": [_told(entry) for entry in manifest.entries],
            "state": {
                name: {"size": file.size, "chunks": _told_chunks(file.chunks)} for name, file in manifest.state.items()
            },
            "facts": manifest.facts,
            "skipped": [[it.path, it.reason] for it in manifest.skipped],
            "changed": manifest.changed,
        }
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _told(entry: Entry) -> dict[str, Any]:
    told: dict[str, Any] = {"path": show(entry.parts), "kind": entry.kind}
    if entry.kind != "hard link":
        told["mtime_ns"] = entry.modified_ns
    if entry.kind in ("file", "folder"):
        told["mode"] = entry.mode
    if entry.kind == "file":
        told["size"] = entry.size
        told["chunks"] = _told_chunks(entry.chunks)
    elif entry.kind != "folder":
        told["target"] = show_name(entry.target)
    return told


def _told_chunks(chunks: tuple[Chunk, ...]) -> list[list[Any]]:
    return [[chunk.offset, chunk.length, chunk.digest.hex()] for chunk in chunks]


def portable(manifest: Manifest) -> bytes:
    """The first member of a tarball."""
    body = content(manifest)
    return b'{"format":%d,"digest":"%s","content":%s}\n' % (FORMAT, blake3(body).hexdigest().encode(), body)


def from_portable(data: bytes, snapshot_id: str) -> Manifest:
    """Raises `NewerSnapshot`, and `DamagedSnapshot` for all that could not have been exported."""
    try:
        told = json.loads(data)
        newer = told["format"] if type(told["format"]) is int and told["format"] > FORMAT else None
        digest = "" if newer else blake3(_json(told["content"])).hexdigest()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedSnapshot(snapshot_id, f"its manifest can't be read ({type(error).__name__})") from None
    if newer:
        raise NewerSnapshot(snapshot_id, newer, FORMAT)
    if told["format"] != FORMAT or digest != told.get("digest"):
        raise DamagedSnapshot(snapshot_id, "its manifest is not the one that was written")
    manifest = _read_content(told["content"], snapshot_id)
    if content(manifest) != _json(told["content"]):
        raise DamagedSnapshot(snapshot_id, "its manifest is not in the form in which it is written")
    return manifest


def _read_content(told: Any, snapshot_id: str, stamps: Iterator[Any] | None = None) -> Manifest:
    try:
        manifest = Manifest(
            id=snapshot_id,
            created_at=datetime.fromisoformat(told["created_at"]).astimezone(UTC),
            entries=tuple(_read_entry(it, stamps or iter(())) for it in told["entries"]),
            state={
                str(name): StateFile(_number(it["size"]), _read_chunks(it["chunks"], it["size"]))
                for name, it in told["state"].items()
            },
            facts=dict(told["facts"]),
            skipped=tuple(Skipped(str(path), str(reason)) for path, reason in told["skipped"]),
            changed=tuple(map(str, told["changed"])),
        )
        _check(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, WorkspaceError) as error:
        what = str(error) if isinstance(error, WorkspaceError | ValueError) else type(error).__name__
        raise DamagedSnapshot(snapshot_id, f"its manifest makes no sense ({what})") from None
    return manifest


def _read_entry(told: Any, stamps: Iterator[Any]) -> Entry:
    parts, kind = parse(told["path"]), told["kind"]
    if not parts or kind not in _KINDS or show(parts) != told["path"]:
        raise ValueError("an entry that can't be one")
    size = _number(told["size"]) if kind == "file" else 0
    target = told.get("target", "")
    stamp = next(stamps, None) if kind == "file" else None
    return Entry(
        parts=parts,
        kind=kind,
        mode=_number(told["mode"]) & 0o7777 if kind in ("file", "folder") else 0,
        modified_ns=_time(told["mtime_ns"]) if kind != "hard link" else 0,
        size=size,
        target=read_name(target.encode()),
        chunks=_read_chunks(told["chunks"], size) if kind == "file" else (),
        stamp=tuple(stamp) if stamp else None,
    )


def _read_chunks(told: Any, size: int) -> tuple[Chunk, ...]:
    chunks = []
    end = 0
    for offset, length, digest in told:
        if not (end <= _number(offset) and 0 < _number(length) <= CHUNK_BYTES and _HEX.fullmatch(digest)):
            raise ValueError("a chunk that can't be one")
        end = offset + length
        chunks.append(Chunk(offset, length, bytes.fromhex(digest)))
    if end > size:
        raise ValueError("a chunk beyond the end of its file")
    return tuple(chunks)


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_FILE_BYTES:
        raise ValueError("a number that can't be one")
    return value


def _time(value: Any) -> int:
    if type(value) is not int or abs(value) >= 1 << 63:
        raise ValueError("a time that can't be one")
    return value


def _check(manifest: Manifest) -> None:
    """Every name once, below a folder that came before it; hard links to files that came before them."""
    kinds: dict[Parts, str] = {(): "folder"}
    for entry in manifest.entries:
        if entry.parts in kinds or kinds.get(entry.parts[:-1]) != "folder":
            raise ValueError(f"{show(entry.parts)!r} is there twice, or in no folder")
        if entry.kind == "hard link" and kinds.get(tuple(entry.target.split(b"/"))) != "file":
            raise ValueError(f"{show(entry.parts)!r} is a hard link to no file")
        if entry.kind == "link" and (not entry.target or b"\0" in entry.target or len(entry.target) >= 4096):
            raise ValueError(f"{show(entry.parts)!r} is a link to what can't be a path")
        kinds[entry.parts] = entry.kind
    if set(manifest.state) not in (set(), set(STATE_FILES)):
        raise ValueError("a state of other files than it should have")
    for file in manifest.state.values():
        at = 0
        for chunk in file.chunks:
            if chunk.offset != at or at % PAGE_BYTES:
                raise ValueError("a state with holes")
            at += chunk.length
        if at != file.size:
            raise ValueError("a state with holes")


def encode(manifest: Manifest) -> tuple[bytes, str]:
    """The file that is the snapshot, and the digest of its content."""
    packs = sorted(manifest.packs)
    numbers = {name: number for number, name in enumerate(packs)}
    table = b"".join(
        _ROW.pack(digest, numbers[at.pack], at.offset, at.stored, at.raw, at.inner, at.length, aligned)
        for (digest, aligned), at in manifest.locations.items()
    )
    local = {
        "id": manifest.id,
        "created_at": manifest.created_at.isoformat(),
        "packs": packs,
        "added_bytes": manifest.added_bytes,
        "stamps": sum(entry.stamp is not None for entry in manifest.entries),
    }
    stamps = [entry.stamp for entry in manifest.entries if entry.kind == "file"]
    told = content(manifest)
    sections = [_json(local), zstd.compress(table, _LEVEL), zstd.compress(_json(stamps) + b"\n" + told, _LEVEL)]
    body = _LENGTHS.pack(*map(len, sections)) + b"".join(sections)
    return b"%s %d %s\n%s" % (_MAGIC, FORMAT, _digest(FORMAT, body), body), blake3(told).hexdigest()


def _digest(version: int, body: bytes) -> bytes:
    return blake3(b"%d\n" % version + body).hexdigest().encode()


@dataclass(frozen=True, slots=True)
class Stored:
    """A manifest's file, found undamaged: what is cheap to know of it, and the rest when it is asked for."""

    id: str
    created_at: datetime
    packs: tuple[str, ...]
    added_bytes: int
    size_bytes: int
    stamp_count: int
    _table: bytes
    _rest: bytes

    def locations(self) -> Iterator[tuple[Key, Location]]:
        for digest, pack, offset, stored, raw, inner, length, aligned in _ROW.iter_unpack(zstd.decompress(self._table)):
            yield (digest, bool(aligned)), Location(self.packs[pack], offset, stored, raw, inner, length)

    def manifest(self) -> Manifest:
        try:
            stamps, _, body = zstd.decompress(self._rest).partition(b"\n")
            told, marks = json.loads(body), json.loads(stamps)
        except (zstd.ZstdError, ValueError):  # written so
            raise DamagedSnapshot(self.id, "its manifest can't be read") from None
        manifest = _read_content(told, self.id, iter(marks))
        locations = dict(self.locations())
        for key, length in manifest.wanted():
            if key not in locations or locations[key].length != length:
                raise DamagedSnapshot(self.id, "its manifest does not say where its chunks are")
        return replace(
            manifest,
            locations=locations,
            added_bytes=self.added_bytes + self.size_bytes,
        )


def decode(data: bytes, snapshot_id: str) -> Stored:
    """Raises `DamagedSnapshot` if one bit is not as it was written, `NewerSnapshot`."""
    header = _HEADER.match(data)
    if header is None:
        raise DamagedSnapshot(snapshot_id, "its manifest does not begin like one")
    version, body = int(header[1]), data[header.end() :]
    if _digest(version, body) != header[2]:
        raise DamagedSnapshot(snapshot_id, "its manifest is not as it was written")
    if version > FORMAT:
        raise NewerSnapshot(snapshot_id, version, FORMAT)
    local_bytes, table_bytes, _ = _LENGTHS.unpack_from(body)
    start = _LENGTHS.size
    local = json.loads(body[start : start + local_bytes])
    start += local_bytes
    if local["id"] != snapshot_id:
        raise DamagedSnapshot(snapshot_id, f"its manifest is that of {local['id']!r}")
    return Stored(
        id=snapshot_id,
        created_at=datetime.fromisoformat(local["created_at"]),
        packs=tuple(local["packs"]),
        added_bytes=local["added_bytes"],
        size_bytes=len(data),
        stamp_count=local["stamps"],
        _table=body[start : start + table_bytes],
        _rest=body[start + table_bytes :],
    )
