"""The keys that tokens of windows are signed with: a ring in a file that its owner alone may read.

The newest one signs. Older ones are there for the tokens that they have signed, until they fall out of the ring.
"""

import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt

from gateway.errors import Unauthenticated, Unavailable
from gateway.models.agents import Window
from gateway.models.base import iso, now

KEPT = 4  # keys in a ring, the one that signs among them

_ALGORITHM = "HS256"
_ISSUER = "session-gateway"
_LONGEST_TOKEN = 4096
_KEY_BYTES = 32
_DECIDED_BY_THE_STORE: Any = {
    "verify_exp": False, "verify_iat": False, "verify_nbf": False, "verify_aud": False,
    "require": ["sub", "win", "exp", "iss"],
}  # fmt: skip


class WindowInvalid(Unauthenticated):
    code = "window_invalid"

    def __init__(self, why: str) -> None:
        super().__init__(f"X-Session-Token: {why}", field="X-Session-Token")


class BadKeyFile(Unavailable):
    code = "window_keys_unusable"


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    secret: bytes
    made_at: str


class WindowKeys:
    """Signs and reads tokens. The file is looked at each time, so a rotation counts at once, also in other gateways."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[tuple[int, int, int], list[Key]] | None = None

    def prepare(self) -> None:
        """Make the ring, if there is none. Raises `BadKeyFile`, `OSError`."""
        if not self._path.exists():
            _write(self._path, [_new_key()], replace=False)
        self._keys()

    def rotate(self, kept: int = KEPT) -> str:
        """Sign with a new key from now on; the id of it. Of the others the newest `kept - 1` stay."""
        self.prepare()
        with _alone(self._path):
            key = _new_key()
            _write(self._path, [key, *self._keys()][:kept], replace=True)
        return key.id

    def sign(self, window: Window) -> str:
        key = self._keys()[0]
        claims = {
            "iss": _ISSUER,
            "sub": window.agent_id,
            "win": window.id,
            "iat": int(window.started_at.timestamp()),
            "exp": int(window.expires_at.timestamp()),
            "jti": uuid4().hex,
        }
        return jwt.encode(claims, key.secret, _ALGORITHM, headers={"kid": key.id})

    def window_id(self, token: str) -> str:
        """The window that a token of ours is for, whatever has become of that. Raises `WindowInvalid`."""
        if len(token) > _LONGEST_TOKEN:
            raise WindowInvalid("is too long for a token of this gateway.")
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            key = next((key for key in self._keys() if key.id == key_id), None)
            if key is None:
                raise WindowInvalid(
                    "is signed with a key that this gateway does not have. It may have been rotated out; "
                    "gateways that share a store must share their window keys (GATEWAY_WINDOW_KEYS)."
                )
            claims = jwt.decode(
                token, key.secret, algorithms=[_ALGORITHM], issuer=_ISSUER, options=_DECIDED_BY_THE_STORE
            )
        except (jwt.PyJWTError, ValueError):
            raise WindowInvalid("is not a token that this gateway has signed.") from None
        window_id = claims["win"]
        if not isinstance(window_id, str):
            raise WindowInvalid("names no window.")
        return window_id

    def _keys(self) -> list[Key]:
        found = os.stat(self._path)
        version = (found.st_ino, found.st_mtime_ns, found.st_size)
        if self._read is None or self._read[0] != version:
            if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise BadKeyFile(f"{self._path} may be read by others than its owner: chmod 600 {self._path}")
            self._read = version, _load(self._path)
        return self._read[1]


def _load(path: Path) -> list[Key]:
    try:
        kept = json.loads(path.read_text(encoding="ascii"))["keys"]
        keys = [Key(one["id"], bytes.fromhex(one["secret"]), one["made_at"]) for one in kept]
    except (ValueError, KeyError, TypeError):
        keys = []
    if not keys or any(len(key.secret) < _KEY_BYTES for key in keys):
        raise BadKeyFile(f"{path} does not hold the keys of windows; without it a new one is made at the next start.")
    return keys


def _new_key() -> Key:
    return Key(secrets.token_hex(8), secrets.token_bytes(_KEY_BYTES), iso(now()))


def _write(path: Path, keys: list[Key], *, replace: bool) -> None:
    """Whole or not at all; unless it is to `replace` it, a file that somebody else made meanwhile stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    document = {"keys": [{"id": key.id, "secret": key.secret.hex(), "made_at": key.made_at} for key in keys]}
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "w", encoding="ascii") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.rename(beside, path)
        else:
            _link_unless_there(beside, path)
        _sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _link_unless_there(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        return


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Of several that rotate at once, one after the other."""
    with open(path.with_name(f"{path.name}.lock"), "a", opener=_private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
