"""What a session can't reach, seen from within it through the API; and that its neighbours never notice."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kernels.sandbox import REQUIRED, host_walls
from tests.api import Api
from tests.gateways import GatewayProcess, gateway_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="walls need Linux")


async def ask(api: Api, session_id: str, code: str, **fields: Any) -> Any:
    """Run code that leaves JSON in `answer`."""
    run = await api.run(session_id, f"import json\n{code}\nprint(json.dumps(answer))", **fields)
    assert run["status"] == "ok", run["error"]
    return json.loads(run["stdout"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def walled(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """A gateway whose sessions reach nothing."""
    if lacking := [f"{wall.name} ({wall.reason})" for wall in host_walls().missing if wall.name in REQUIRED]:
        pytest.skip(f"This host can't give all walls: {', '.join(lacking)}")
    folder = tmp_path_factory.mktemp("walled")
    os.environ["WALLED_SECRET"] = "of the gateway"
    try:
        async with gateway_process(folder / "data", isolation="strict", network="none") as started:
            yield started
    finally:
        del os.environ["WALLED_SECRET"]


@pytest.fixture
async def inside(walled: GatewayProcess) -> AsyncIterator[Api]:
    async with Api(walled.url) as client:
        yield client


async def test_the_document_tells_which_walls_stand(inside: Api, session_id: str) -> None:
    await inside.run(session_id, "1")

    isolation = (await inside.get(f"/api/sessions/{session_id}"))["isolation"]

    assert {"user", "mount", "pid", "ipc", "uts", "network", "capabilities", "no-new-privileges", "seccomp"} <= set(
        isolation["walls"]
    )
    assert {one["wall"] for one in isolation["missing"]}.isdisjoint(isolation["walls"])
    assert all(one["reason"] for one in isolation["missing"])


async def test_files_of_others_and_of_the_gateway_are_not_there(
    inside: Api, walled: GatewayProcess, session_id: str, tmp_path: Path
) -> None:
    other = f"{session_id}-other"
    await inside.run(other, "open('secret.txt', 'w').write('mine')")
    (tmp_path / "hosts.txt").write_text("of the host")

    seen = await ask(
        inside, session_id,
        f"import os, pathlib\ndata = pathlib.Path({str(walled.data_dir)!r})\n"
        "answer = {'files': sorted(str(p) for p in data.rglob('*') if 'overlay' not in p.parts),"
        f" 'host': os.path.exists({str(tmp_path / 'hosts.txt')!r}),"
        " 'passwd': 'shadow' in os.listdir('/etc'), 'home': os.listdir('/root') if os.path.exists('/root') else [],"
        " 'env': dict(os.environ)}",
    )  # fmt: skip

    assert not any("secret.txt" in path or path.endswith((".sqlite", ".log", "gateway.id")) for path in seen["files"])
    assert (seen["host"], seen["passwd"]) == (False, False)
    assert "WALLED_SECRET" not in seen["env"]


async def test_processes_of_others_can_not_be_touched(inside: Api, walled: GatewayProcess, session_id: str) -> None:
    other = f"{session_id}-other"
    pid = json.loads((await inside.run(other, "import os; print(os.getpid())"))["stdout"])
    await inside.run(other, "secret = 'in memory'")

    seen = await ask(
        inside, session_id,
        "import os, signal\nown = [int(p) for p in os.listdir('/proc') if p.isdigit()]\n"
        "commands = [open(f'/proc/{p}/cmdline').read() for p in own]\n"
        f"def hit(pid):\n    try:\n        os.kill(pid, 0); return True\n    except OSError:\n        return False\n"
        f"answer = {{'count': len(own), 'gateway': hit({walled.pid}), 'commands': commands}}",
    )  # fmt: skip

    assert seen["count"] <= 4
    assert seen["gateway"] is False
    assert pid > 0
    assert (await inside.run(other, "secret"))["result"] == "'in memory'"


async def test_a_copy_and_its_source_are_strangers(inside: Api, session_id: str) -> None:
    await inside.run(session_id, "import os; mine = 'source'; open('private.txt', 'w').write('source')")
    copy = (await inside.post(f"/api/sessions/{session_id}/duplicate", None, 201))["id"]
    await inside.run(copy, "mine = 'copy'; open('private.txt', 'w').write('copy')")
    own = "[p for p in os.listdir('/proc') if p.isdigit()]"
    signalled = (
        "import os, signal\n"
        f"for p in {own}:\n"
        "    if int(p) not in (os.getpid(), 1):\n"
        "        try:\n            os.kill(int(p), signal.SIGKILL)\n        except OSError:\n            pass\n"
        "answer = []\n"
        f"for p in {own}:\n"
        "    for name in ('environ', 'mem', 'maps'):\n"
        "        if int(p) in (os.getpid(), 1):\n            continue\n"
        "        try:\n            open(f'/proc/{p}/{name}', 'rb').read(1); answer.append((p, name))\n"
        "        except OSError:\n            pass\n"
    )

    reached = [await ask(inside, session_id, signalled), await ask(inside, copy, signalled)]

    assert reached == [[], []]
    assert (await inside.run(copy, "mine, open('private.txt').read()"))["result"] == "('copy', 'copy')"
    assert (await inside.run(session_id, "mine, open('private.txt').read()"))["result"] == "('source', 'source')"


async def test_with_less_than_strict_isolation_a_copy_is_live_and_tells_what_its_source_can_do(
    api: Api, session_id: str
) -> None:
    await api.run(session_id, "import os; mine = 'source'; open('private.txt', 'w').write('source')")
    made = await api.post(f"/api/sessions/{session_id}/duplicate", None, 201)
    copy = made["id"]
    await api.run(copy, "mine = 'copy'; open('private.txt', 'w').write('copy')")
    look = (
        "import os\nanswer = []\n"
        "for p in [p for p in os.listdir('/proc') if p.isdigit() and int(p) not in (os.getpid(), 1)]:\n"
        "    for name in ('environ', 'mem', 'maps', 'root/etc', 'cwd/private.txt'):\n"
        "        try:\n            path = f'/proc/{p}/{name}'\n"
        "            os.stat(path) if '/' in name else open(path, 'rb').read(1)\n"
        "            answer.append((p, name))\n"
        "        except OSError:\n            pass\n"
    )

    reached = [await ask(api, session_id, look), await ask(api, copy, look)]
    seen = await ask(api, copy, "answer = [p for p in os.listdir('/proc') if p.isdigit()]")

    if made["method"] != "fork":
        pytest.skip(made["method_reason"])
    assert reached == [[], []]
    assert len(seen) == 2
    assert "source" in {one["wall"] for one in made["isolation"]["missing"]}
    assert (await api.run(copy, "mine, open('private.txt').read()"))["result"] == "('copy', 'copy')"
    assert (await api.run(session_id, "mine, open('private.txt').read()"))["result"] == "('source', 'source')"


async def test_nothing_is_reached_over_the_network(inside: Api, session_id: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, gateway_port = listening.getsockname()[1], int(inside.url.rsplit(":", 1)[1])
        seen = await ask(
            inside, session_id,
            "import socket\nanswer = {}\n"
            f"for host, port in (('127.0.0.1', {port}), ('127.0.0.1', {gateway_port}), ('192.0.2.1', 80)):\n"
            "    try:\n        socket.create_connection((host, port), 1).close(); answer[host + str(port)] = 'open'\n"
            "    except OSError as error:\n        answer[host + str(port)] = type(error).__name__\n"
            "with socket.create_server(('127.0.0.1', 0)) as own:\n"
            "    socket.create_connection(own.getsockname(), 1).close()\n",
        )  # fmt: skip

    assert "open" not in seen.values()


async def test_a_session_may_ask_for_the_hosts_network(inside: Api, session_id: str) -> None:
    await inside.create(session_id=session_id, resources={"network": "host"})
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        seen = await ask(
            inside, session_id, f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2).close()\nanswer = 1"
        )

    assert seen == 1
    assert "network" not in (await inside.get(f"/api/sessions/{session_id}"))["isolation"]["walls"]


FORBIDDEN = {
    "mount": "ctypes.CDLL(None, use_errno=True).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "chroot": "not fails(lambda: os.chroot('/tmp'))",
    "raw socket": "not fails(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))",
    "device": "not fails(lambda: os.mknod('/tmp/sda', 0o600 | stat.S_IFBLK, os.makedev(8, 0)))",
    "root": "not fails(lambda: os.setuid(0))",
    "namespaces": "ctypes.CDLL(None).unshare(0x10000000) == 0",
    "interpreter": "not fails(lambda: open(os.path.join(os.path.dirname(os.__file__), 'os.py'), 'a'))",
    "packages": "not fails(lambda: open(os.path.join(os.path.dirname(IPython.__file__), 'x.py'), 'w'))",
    "system": "not fails(lambda: open('/usr/bin/x', 'w'))",
    "kernel settings": "not fails(lambda: open('/proc/sys/kernel/hostname', 'w').write('x'))",
    "setuid": "bool(subprocess.run(['su', '-c', 'id -u'], capture_output=True).stdout.strip() == b'0')",
    "host name": "not fails(lambda: socket.sethostname('x'))",
    "nice": "not fails(lambda: os.nice(-5))",
    "clock": "not fails(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))",
}


async def test_what_only_the_host_may_do_is_refused(inside: Api, session_id: str) -> None:
    checks = ", ".join(f"{name!r}: {check}" for name, check in FORBIDDEN.items())
    seen = await ask(
        inside, session_id,
        "import ctypes, os, socket, stat, subprocess, time, IPython\n"
        "def fails(work):\n    try:\n        work()\n    except OSError:\n        return True\n    return False\n"
        f"answer = {{{checks}}}",
    )  # fmt: skip

    assert {name for name, done in seen.items() if done} == set()


async def test_links_do_not_lead_out(inside: Api, walled: GatewayProcess, session_id: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("of the host")
    await inside.run(session_id, f"import os; os.symlink({str(secret)!r}, 'out'); os.symlink({str(tmp_path)!r}, 'dir')")

    await inside.get(f"/api/sessions/{session_id}/files/out", 403)
    await inside.call("PUT", f"/api/sessions/{session_id}/files/dir/new.txt", expect=403, content=b"x")
    copy = (await inside.post(f"/api/sessions/{session_id}/duplicate", None, 201))["id"]
    seen = await inside.run(copy, "open('out').read()")

    assert seen["error"]["ename"] == "FileNotFoundError"
    assert not (tmp_path / "new.txt").exists()


BOMBS = {
    "processes": "import os, time\nwhile True:\n  try:\n    os.fork()\n  except OSError:\n    time.sleep(0.01)",
    "memory": "held = []\nwhile True:\n    held.append(bytearray(32 << 20))",
    "descriptors": "import os\nheld = []\nwhile True:\n    held.append(os.open('/dev/null', os.O_RDONLY))",
    "output": "while True:\n    print('x' * 100_000)",
    "disk": "import itertools\nfor n in itertools.count():\n    open(f'{n}.bin', 'wb').write(bytes(16 << 20))",
    "tmp": "import itertools\nfor n in itertools.count():\n    open(f'/tmp/{n}.bin', 'wb').write(bytes(16 << 20))",
}


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_bomb_is_contained(inside: Api, walled: GatewayProcess, session_id: str, bomb: str) -> None:
    limits = {"memory": "512Mi", "pids": 64, "disk": "256Mi", "cpu": 1}
    await inside.create(session_id=session_id, resources=limits)
    await inside.run(session_id, "1")
    neighbour = f"{session_id}-neighbour"
    await inside.run(neighbour, "kept = 1")

    burst = asyncio.create_task(inside.run(session_id, BOMBS[bomb], timeout=8))
    while not burst.done():
        async with asyncio.timeout(10):
            assert (await inside.run(neighbour, "kept"))["result"] == "1"
        await asyncio.wait({burst}, timeout=0.2)
    ended = burst.result()

    assert ended["status"] in ("error", "died", "timeout")
    if bomb == "memory":
        assert ended["status"] == "died"
        assert "memory" in ended["error"]["evalue"].lower()
    if bomb == "disk":
        files = await inside.get(f"/api/sessions/{session_id}/files")
        assert sum(one["size"] for one in files["files"]) < 2 * (256 << 20)
    assert (await inside.run(session_id, "1 + 1"))["result"] == "2"
    await inside.call("DELETE", f"/api/sessions/{session_id}", expect=200)


async def test_a_session_that_asks_for_nothing_has_a_limit_of_processes_too(inside: Api, session_id: str) -> None:
    """Idle ones: only that there is a limit is of interest here, and the machine is to survive if there is none."""
    seen = await ask(
        inside, session_id,
        "import os, signal\nkids = []\n"
        "try:\n    while len(kids) < 1500:\n        pid = os.fork()\n"
        "        if pid == 0:\n            signal.pause()\n        kids.append(pid)\n"
        "except OSError:\n    pass\n"
        "for pid in kids:\n    os.kill(pid, signal.SIGKILL)\n    os.waitpid(pid, 0)\nanswer = len(kids)",
    )  # fmt: skip

    assert 500 < seen < 1100


@pytest.mark.parametrize("fork_server", [True, False], ids=["forked", "started"])
async def test_without_isolation_a_session_may_do_what_the_gateway_may_and_its_document_says_so(
    tmp_path: Path, fork_server: bool
) -> None:
    fields = ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
    async with gateway_process(tmp_path / "data", isolation="none", fork_server=fork_server) as gateway:
        async with Api(gateway.url) as api:
            seen = await ask(
                api, "open", f"lines = [line.split() for line in open('/proc/self/status')]\n"
                f"answer = {{name[:-1]: value[0] for name, *value in lines if name[:-1] in {fields!r}}}"
            )  # fmt: skip
            isolation = (await api.get("/api/sessions/open"))["isolation"]
        with open(f"/proc/{gateway.pid}/status") as status:
            own = {name: value.strip() for name, value in (line.split(":", 1) for line in status) if name in fields}

    missing = {one["wall"] for one in isolation["missing"]}
    assert seen == own
    assert missing >= {*REQUIRED} - {"limits"}
    assert missing.isdisjoint(isolation["walls"])
    assert set(isolation["walls"]) <= {"limits", "cgroup"}
