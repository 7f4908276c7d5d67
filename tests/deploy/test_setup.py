"""deploy/setup.sh, from nothing: it downloads a few hundred megabytes if pip has not kept them."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COPIED = ("deploy", "gateway", "kernels", "pyproject.toml", "README.md", "LICENSE")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Checkout:
    """A copy of the project, in a place that scripts tend to stumble over."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.venv = root / ".venv"
        self.kernels = root / ".venv-kernels"
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, root / name)

    def begin(self) -> "subprocess.Popen[bytes]":
        env = {name: value for name, value in os.environ.items() if name not in {"GATEWAY_VENV_DIR", "PYTHON"}}
        return subprocess.Popen(
            ["/bin/bash", str(self.root / "deploy" / "setup.sh")], cwd="/", env=env, start_new_session=True
        )

    def setup(self) -> float:
        started = time.monotonic()
        assert self.begin().wait() == 0
        return time.monotonic() - started


def said(*command: str | Path) -> str:
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Set up by two calls at once, after a third was killed half-way."""
    checkout = Checkout(tmp_path_factory.mktemp("deploy") / "a path with 'spaces")
    killed = checkout.begin()
    while not (checkout.kernels / "bin" / "pip").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()

    both = [checkout.begin(), checkout.begin()]

    assert [each.wait() for each in both] == [0, 0]
    return checkout


def test_the_command_starts(checkout: Checkout) -> None:
    assert "serve" in said(checkout.venv / "bin" / "gateway", "--help")


def test_kernels_see_nothing_of_the_gateway(checkout: Checkout) -> None:
    spec = json.loads((checkout.venv / "share" / "jupyter" / "kernels" / "python3" / "kernel.json").read_text())
    python = spec["argv"][0]

    path = json.loads(said(python, "-c", "import json, sys; print(json.dumps(sys.path[1:]))"))

    assert python == str(checkout.kernels / "bin" / "python")
    assert spec["argv"][-4:] == ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    assert not [entry for entry in path if Path(entry) == checkout.root or Path(entry).is_relative_to(checkout.venv)]
    assert said(python, "-c", "import ipykernel, matplotlib, numpy, pandas, pip; print('all')") == "all\n"


def test_a_second_call_is_quick_and_changes_nothing(checkout: Checkout) -> None:
    before = {path: path.stat().st_mtime_ns for path in (checkout.venv, checkout.kernels)}

    took_s = checkout.setup()

    assert took_s < 5
    assert before == {path: path.stat().st_mtime_ns for path in (checkout.venv, checkout.kernels)}


def test_an_environment_that_no_longer_starts_is_made_again(checkout: Checkout) -> None:
    (checkout.venv / "bin" / "python").unlink()

    checkout.setup()

    assert "serve" in said(checkout.venv / "bin" / "gateway", "--help")


def test_a_folder_that_is_no_environment_is_left_alone(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    script = checkout.root / "deploy" / "setup.sh"

    result = subprocess.run(
        ["/bin/bash", str(script)], env={**os.environ, "GATEWAY_VENV_DIR": str(tmp_path)}, check=False
    )

    assert result.returncode == 1
    assert (tmp_path / "thesis.txt").exists()
