"""Which walls this host can give a session, and the plan of those that one gets.

What a host can't give is found by trying, in a throw-away process, and told with the way to mend it.
"""

import glob
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kernels import cgroups

INSIDE = Path(__file__).parent / "inside"
CONFINE = INSIDE / "confine.py"
NAMESPACES = ("user", "mount", "pid", "ipc", "uts", "network")
FURTHER = ("own-uid", "capabilities", "no-new-privileges", "seccomp", "abstract-sockets", "limits")

# Above what systemd gives to containers and below what is a negative number to some programs.
_FIRST_UID = 1_900_000_000
_MOST_UIDS = 100_000
_PROBE_TIMEOUT_S = 30.0

# All that a session sees of /etc: what programs look up, none of it a secret. Not who may log in (passwd, shadow, ssh,
# sudoers), and not what services are told (their own folders). Few: each is a mount, for each session.
# fmt: off
_ETC = (
    "alternatives", "debian_version", "fonts", "gai.conf", "java-*", "ld.so.cache", "locale.alias", "locale.conf",
    "localtime", "mailcap", "matplotlibrc", "mime.types", "nsswitch.conf", "OpenCL", "openmpi", "os-release",
    "protocols", "R", "python3.*", "services", "ssl/certs", "ssl/cert.pem", "ssl/openssl.cnf", "pki/tls",
    "pki/ca-trust", "crypto-policies", "timezone", "vulkan",
)
# fmt: on
_ETC_WITH_NETWORK = ("hosts", "pip.conf", "resolv.conf")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
_SYS = ("/sys/devices/system/cpu", "/sys/devices/system/node")

_REMEDIES = {
    "user": "Allow user namespaces: `sysctl -w user.max_user_namespaces=100000`; on Debian and Ubuntu also "
    "`sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0`; in a container "
    "run it with `--security-opt seccomp=unconfined --security-opt apparmor=unconfined`.",
    "mount": "Linux 5.12 or later is needed; in a container run it with `--security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined`.",
    "pid": "In a container run it with `--security-opt systempaths=unconfined`, so that /proc can be mounted.",
    "own-uid": "Run the gateway as root, with its data on a file system that has idmapped mounts (ext4, xfs, btrfs, "
    "tmpfs from Linux 6.3).",
    "seccomp": "Linux with CONFIG_SECCOMP_FILTER on x86-64 or arm64 is needed.",
    "abstract-sockets": 'Linux 6.12 or later with Landlock is needed; or choose network "none".',
}


@dataclass(frozen=True, slots=True)
class Wall:
    """One wall on this host: whether it stands; if not, why, and what mends it."""

    name: str
    stands: bool
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class HostWalls:
    """What this host can give. `uids` are those that sessions may have to themselves; none where that is impossible."""

    walls: tuple[Wall, ...]
    uids: range
    cgroups: cgroups.Hierarchy | None

    def stands(self, name: str) -> bool:
        return any(wall.name == name and wall.stands for wall in self.walls)

    @property
    def missing(self) -> tuple[Wall, ...]:
        return tuple(wall for wall in self.walls if not wall.stands)

    @property
    def own_uids(self) -> bool:
        return len(self.uids) > 0


def host_walls(folder: Path | None = None) -> HostWalls:
    """Try each wall once; takes some tens of milliseconds. `folder`: on the file system of the sessions' files."""
    hierarchy, without = cgroups.found()
    uids = _free_uids() if os.geteuid() == 0 else range(0)
    reasons = _probed(folder or Path(tempfile.gettempdir()), uids)
    if reasons.get("own-uid") is not None:
        uids = range(0)
    walls = [_wall(name, reasons.get(name)) for name in (*NAMESPACES, *FURTHER)]
    remedy = "Run the gateway as root, or as a service of a user with `Delegate=yes` (systemd)."
    walls.append(Wall("cgroup", stands=hierarchy is not None, reason=without, remedy=remedy if without else ""))
    return HostWalls(tuple(walls), uids, hierarchy)


def _wall(name: str, reason: str | None) -> Wall:
    return Wall(name, stands=reason is None, reason=reason or "", remedy=_REMEDIES.get(name, "") if reason else "")


def _probed(folder: Path, uids: range) -> dict[str, str]:
    """The walls that can't be put up, and why."""
    if sys.platform != "linux":
        return dict.fromkeys((*NAMESPACES, *FURTHER), f"{sys.platform} has no walls of this kind")
    order = {
        "plan": _full_plan([INSIDE, *interpreter_paths(Path(sys.executable))], uids[0] if uids else None),
        "folder": str(folder),
    }
    try:
        tried = subprocess.run(  # noqa: S603 - our own script
            [sys.executable, "-I", "-S", str(INSIDE / "probe.py"), json.dumps(order)],
            capture_output=True, timeout=_PROBE_TIMEOUT_S, check=True,
        )  # fmt: skip
        reasons: dict[str, str] = json.loads(tried.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return dict.fromkeys((*NAMESPACES, *FURTHER), f"trying the walls failed: {error}")
    return reasons


def _full_plan(read_only: Iterable[Path], uid: int | None) -> dict[str, Any]:
    walls = HostWalls(tuple(Wall(name, stands=True) for name in (*NAMESPACES, *FURTHER)), range(0), None)
    return plan(walls, network="none", read_only=read_only, tmp_bytes=1 << 20, uid=uid)


def plan(
    host: HostWalls, *, network: Literal["none", "host"], read_only: Iterable[Path], tmp_bytes: int, uid: int | None
) -> dict[str, Any]:
    """The walls of one session, for `inside.walls`: those that this host can give; `{}` where it has none.

    `read_only`: what it may read besides the system, with all that is below: its interpreter, kernel files.
    `uid`: one of `host.uids` that no other session has, or None to share the gateway's own.
    """
    if sys.platform != "linux":
        return {}
    shared = network == "host"
    rest: dict[str, Any] = {
        "abstract_sockets": "own" if shared and host.stands("abstract-sockets") else "",
        "seccomp": host.stands("seccomp"),
        "cgroups": [],
    }
    if not (host.stands("user") and host.stands("mount")):
        return {"namespaces": [], **rest}
    system, links, files = _system(shared)
    readable: list[str] = []
    for path in read_only:
        real = os.path.realpath(path)
        if real != os.path.abspath(path):
            links.setdefault(os.path.abspath(path), real)
        if real not in readable and not any(_is_below(real, one) for one in system if os.path.isdir(one)):
            readable.append(real)
    readable = [path for path in readable if not any(_is_below(path, one) for one in readable if one != path)]
    return {
        "namespaces": [name for name in NAMESPACES if host.stands(name) and not (shared and name == "network")],
        "uid": uid,
        "system": system,
        "read_only": readable,
        "links": links,
        "files": files,
        "tmp_bytes": tmp_bytes,
        "shm_bytes": tmp_bytes,
        "cgroup_namespace": True,
        **rest,
    }


def interpreter_paths(python: Path) -> list[Path]:
    """What a Python needs to read: its own prefix and, of a virtual environment, that of its Python."""
    prefixes = [Path(os.path.abspath(python)).parent.parent, Path(os.path.realpath(python)).parent.parent]
    return [path for path in dict.fromkeys(prefixes) if path != Path("/")]


def _system(shared_network: bool) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """What every session sees of the host: folders and files, links, and files that are made for it."""
    system: list[str] = []
    links: dict[str, str] = {}
    files = {
        "/etc/passwd": "root:x:0:0::/:/usr/sbin/nologin\nsession:x:1000:1000::/tmp:/bin/sh\n"
        "nobody:x:65534:65534::/:/usr/sbin/nologin\n",
        "/etc/group": "root:x:0:\nsession:x:1000:\nnogroup:x:65534:\n",
        "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    }
    patterns = [f"/etc/{name}" for name in (*_ETC, *(_ETC_WITH_NETWORK if shared_network else ()))]
    paths = [*_SYSTEM, *_SYS, *(path for pattern in patterns for path in sorted(glob.glob(pattern)))]
    for path in paths:
        real = os.path.realpath(path)
        if not os.path.exists(real) or not _is_for_all(real):
            continue
        if not os.path.islink(path) and path != "/etc/hosts":
            system.append(path)
        elif any(_is_below(real, one) for one in system):
            links[path] = os.readlink(path)
        elif os.path.isfile(real):  # made anew, not mounted: what it was may be replaced
            files[path] = Path(real).read_text(errors="replace")
    return system, links, files


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_for_all(path: str) -> bool:
    mode = os.stat(path).st_mode
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    return mode & needed == needed


def _free_uids() -> range:
    """Users of this host, or of the container that we are in, that nobody is."""
    first, last = 0, 0
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        inside, _, count = map(int, line.split())
        if inside + count > last:
            first, last = inside, inside + count
    if last > _FIRST_UID + _MOST_UIDS:
        return range(_FIRST_UID, _FIRST_UID + _MOST_UIDS)
    half = (last - first) // 2  # the upper half of what we were given
    return range(first + half, max(first + half, last - 16)) if half > 1024 else range(0)
