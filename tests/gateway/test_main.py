"""The command line: what it prints, where settings come from, and what it refuses to start with."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.api import Api
from tests.gateways import GatewayProcess, gateway_process


def environment(**settings: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return {
        **own,
        **{f"GATEWAY_{name.upper()}": value for name, value in settings.items()},
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }


async def refused(folder: Path, *options: str, **settings: str) -> tuple[int, str]:
    """Exit code and last words of a gateway that does not start; it says nothing on stdout."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        "serve",
        "--port",
        "0",
        "--data-dir",
        str(folder / "refused"),
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(**settings),
    )
    try:
        async with asyncio.timeout(30):
            out, words = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert out == b""
    assert b"Traceback" not in words
    assert process.returncode is not None
    return process.returncode, words.decode()


@asynccontextmanager
async def serving(*options: str, **settings: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """The first line of a gateway, and the gateway; it must end well."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        "serve",
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment(**settings),
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
        yield line, process
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            rest, _ = await process.communicate()
    assert (process.returncode, rest) == (0, b"")


async def test_the_first_line_says_where_once_it_is_ready(tmp_path: Path) -> None:
    async with serving("--port", "0", "--data-dir", str(tmp_path)) as (line, _):
        address = urlsplit(line.removeprefix("Listening on ").strip())
        async with Api(address.geturl()) as api:
            health = await api.get("/api/health")

    assert line == f"Listening on http://127.0.0.1:{address.port}\n"
    assert address.port
    assert health["status"] == "ok"


async def test_an_interrupt_from_the_keyboard_ends_it_as_well(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway:
        gateway.signal(signal.SIGINT)

        assert await gateway.ended() == 0


async def test_two_gateways_never_share_a_data_folder(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "refused") as gateway, Api(gateway.url) as api:
        code, words = await refused(tmp_path)

        assert code == 1
        assert str(tmp_path / "refused") in words
        assert "--data-dir" in words
        assert (await api.get("/api/ready"))["status"] == "ready"


async def test_a_folder_is_free_again_after_a_kill(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path / "data", {})
    await gateway.start()
    await gateway.kill()

    await gateway.start()

    assert await gateway.stop() == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.com"])  # noqa: S104
async def test_beyond_loopback_it_serves_only_on_insistence(tmp_path: Path, host: str) -> None:
    code, words = await refused(tmp_path, "--host", host)

    assert code == 1
    assert host in words
    assert "127.0.0.1" in words
    assert "--insecure" in words
    assert not (tmp_path / "refused").exists()


async def test_on_insistence_it_serves_beyond_loopback(tmp_path: Path) -> None:
    options = ("--host", "0.0.0.0", "--insecure", "--port", "0", "--data-dir", str(tmp_path))  # noqa: S104
    async with serving(*options) as (line, _):
        port = line.strip().rsplit(":", 1)[1]
        async with Api(f"http://127.0.0.1:{port}") as api:
            answer = await api.http.get("/api/health", headers={"Host": "anything.example"})

    assert answer.status_code == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2"])
async def test_every_name_of_loopback_is_served(tmp_path: Path, host: str) -> None:
    options = ("--host", host, "--port", "0", "--data-dir", str(tmp_path))
    async with serving(*options) as (line, _), Api(line.removeprefix("Listening on ").strip()) as api:
        assert (await api.get("/api/health"))["status"] == "ok"

    assert line.startswith(f"Listening on http://{host}:")


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway:
        port = gateway.url.rsplit(":", 1)[1]

        code, words = await refused(tmp_path, "--port", port)

    assert code == 1
    assert f"127.0.0.1:{port}" in words


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--no-such-option",), "--no-such-option"),
        (("--port", "many"), "--port"),
        (("--port", "70000"), "port"),
        (("--log-level", "LOUD"), "log_level"),
        (("--config", "/no/such/file"), "--config"),
        (("extra",), "extra"),
    ],
)
async def test_a_wrong_option_is_named(tmp_path: Path, options: tuple[str, ...], named: str) -> None:
    code, words = await refused(tmp_path, *options)

    assert code == 2
    assert named in words
    assert not (tmp_path / "refused").exists()


async def test_a_store_that_is_none_is_named(tmp_path: Path) -> None:
    code, words = await refused(tmp_path, "--store", "mysql://here")

    assert code in (1, 2)
    assert "--store" in words
    assert "sqlite:///" in words


@pytest.mark.parametrize(
    "store",
    [
        "mongo://u:hush-hush@h/",
        "mongodb://u:hush-hush",
        "mongodb://u:hush-hush@h:port/",
        "mongodb://u:hush-hush@/x",
        "mongodb://u:hush-hush@h/a b.c",
        "mongodb://u:hush-hush@h/?tls=true&tlsCAFile=/no/such/file",
        "sqlite:////proc/no/such/folder.sqlite",
        "sqlite:///",
        "sqlite:////dev/null/file",
        "sqlite:///{text}",
        "sqlite:///{newer}",
    ],
)
async def test_a_store_that_can_not_be_opened_is_one_sentence_without_its_password(tmp_path: Path, store: str) -> None:
    (tmp_path / "text").write_text("not a database, and long enough to be looked at " * 100)
    with contextlib.closing(sqlite3.connect(tmp_path / "newer")) as connection:
        connection.execute("PRAGMA user_version = 1000000")

    code, words = await refused(tmp_path, "--store", store.format(text=tmp_path / "text", newer=tmp_path / "newer"))

    assert code == 1
    assert words.startswith("gateway: --store: ")
    assert words.count("\n") == 1
    assert "hush-hush" not in words


@pytest.mark.parametrize("planted", ["keeper.log", "keepers"])
async def test_a_keeper_that_can_not_start_is_one_sentence(tmp_path: Path, planted: str) -> None:
    path = tmp_path / "refused" / planted
    path.parent.mkdir()
    if planted == "keepers":
        path.touch()
    else:
        path.mkdir()

    code, words = await refused(tmp_path)

    assert code == 1
    assert words.startswith("gateway: --data-dir: ")
    assert words.count("\n") == 1
    assert str(path) in words


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("run_timeout_s", "soon"),
        ("run_timeout_s", "-1"),
        ("body_limit_bytes", "1"),
        ("images", "{"),
        ("images", "[1]"),
        ("log_format", "xml"),
        ("allowed_hosts", "a,b"),
        ("config", "/no/such/file"),
    ],
)
async def test_a_wrong_setting_in_the_environment_is_named(tmp_path: Path, setting: str, value: str) -> None:
    code, words = await refused(tmp_path, **{setting: value})

    assert code == 2
    assert setting in words.lower()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('run_timeout_s = "soon"', "run_timeout_s"),
        ("no_such_setting = 1", "no_such_setting"),
        ("not toml at all", "line 1"),
    ],
)
async def test_a_wrong_setting_in_the_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)

    code, words = await refused(tmp_path, "--config", str(file))

    assert code == 2
    assert named in words


async def test_settings_come_from_the_command_line_over_the_environment_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        f'data_dir = "{tmp_path / "from-file"}"\nwaiting_timeout_s = 11\ndefault_language = "klingon"\nport = 1\n'
        '[images.sci]\nkernel = "python3"\nresources = { cpu = 3 }\n'
    )
    settings = {"waiting_timeout_s": "22", "data_dir": str(tmp_path / "from-environment"), "default_language": "python"}
    options = ("--config", str(file), "--data-dir", str(tmp_path / "from-option"), "--port", "0")

    async with serving(*options, **settings) as (line, _), Api(line.removeprefix("Listening on ").strip()) as api:
        created = await api.create(image_id="sci")

    assert created["waiting_timeout_seconds"] == 22  # environment over file
    assert created["language"] == "python"
    assert created["resources"] == {"cpu": 3}  # the file alone
    assert (tmp_path / "from-option").is_dir()  # command line over environment
    assert not (tmp_path / "from-environment").exists()
    assert not (tmp_path / "from-file").exists()


async def test_the_file_may_be_named_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("waiting_timeout_s = 11\n")
    options = ("--port", "0", "--data-dir", str(tmp_path / "data"))

    async with serving(*options, config=str(file)) as (line, _), Api(line.removeprefix("Listening on ").strip()) as api:
        created = await api.create()

    assert created["waiting_timeout_seconds"] == 11


async def test_sessions_are_kept_where_the_store_option_says(tmp_path: Path) -> None:
    store = tmp_path / "elsewhere" / "sessions.sqlite"
    store.parent.mkdir()
    options = ("--port", "0", "--data-dir", str(tmp_path / "data"), "--store", f"sqlite:///{store}")

    async with serving(*options) as (line, _), Api(line.removeprefix("Listening on ").strip()) as api:
        await api.create()

    assert store.stat().st_size > 0


async def test_what_a_kernel_printed_before_it_failed_is_told_but_not_logged(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.create(id="a", env={"PYTHONIOENCODING": "hush-hush"})
        told = await api.run("a", "1")
        await gateway.stop()
        logged = gateway.log()

    assert "hush-hush" in told["error"]["evalue"]
    assert "did not start" in logged
    assert "hush-hush" not in logged


async def test_no_secret_code_or_output_is_in_the_log(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.run("a", "print('hush-hush')", env={"TOKEN": "top-secret"})
        await api.http.get("/api/sessions/a/files/not-there?x=hush-hush")
        await gateway.stop()
        logged = gateway.log()

    assert "hush-hush" not in logged
    assert "top-secret" not in logged


def doctor(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gateway", "doctor", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment())


def test_the_doctor_tells_what_this_host_can_give(tmp_path: Path) -> None:
    asked = doctor("--data-dir", str(tmp_path / "data"), "--json")

    findings = {one["name"]: one for one in json.loads(asked.stdout)}

    assert asked.returncode == 0
    assert findings["kernels"]["fine"]
    assert "python3" in findings["kernels"]["told"]
    assert {"wall mount", "wall network", "wall cgroup", "fork server", "open files", "store"} <= set(findings)
    assert all(one["told"] for one in findings.values() if not one["fine"])


def test_the_doctor_says_what_mends_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    asked = doctor("--data-dir", str(tmp_path / "file"))

    assert asked.returncode == 1
    assert "MISSING  data folder" in asked.stdout
    assert "Choose another one with --data-dir." in asked.stdout
