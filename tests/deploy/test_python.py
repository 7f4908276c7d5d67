"""deploy/python.sh takes the newest Python that really works."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / "deploy" / "python.sh"
SHIM = "echo 'command not found' >&2; exit 127"
REAL = f'exec "{sys.executable}" "$@"'


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def chosen(path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", str(SCRIPT)], env={"PATH": str(path), **env}, capture_output=True, text=True, check=False
    )


def test_a_shim_without_its_python_is_passed_over(tmp_path: Path) -> None:
    program(tmp_path / "python3.13", SHIM)
    program(tmp_path / "python3", REAL)

    result = chosen(tmp_path)

    assert (result.returncode, result.stdout, result.stderr) == (0, f"{sys.executable}\n", "")


def test_without_any_it_says_what_to_install(tmp_path: Path) -> None:
    program(tmp_path / "python3", SHIM)

    result = chosen(tmp_path)

    assert result.returncode == 1
    assert result.stdout == ""
    assert "apt-get install python3 python3-venv" in result.stderr


def test_one_that_was_asked_for_is_never_replaced(tmp_path: Path) -> None:
    program(tmp_path / "broken", SHIM)
    program(tmp_path / "python3", REAL)

    result = chosen(tmp_path, PYTHON=str(tmp_path / "broken"))

    assert result.returncode == 1
    assert str(tmp_path / "broken") in result.stderr
