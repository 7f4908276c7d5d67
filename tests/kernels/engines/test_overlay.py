"""A session's own environment goes along when the session is copied."""

import subprocess
import sys
from pathlib import Path

from kernels.engines.overlay import Overlay, copy_environment, probe


def output_of(program: Path) -> str:
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.strip()


def test_what_is_installed_at_a_place_is_installed_at_its_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    overlay = Overlay(source / "overlay")
    source.mkdir()
    overlay.prepare(probe(sys.executable))
    program = overlay.bin / "says"
    program.write_text(f"#!{overlay.python}\nimport sys\nprint(sys.prefix)\n")
    program.chmod(0o755)
    (source / "home").mkdir()
    (source / "home" / ".settings").write_text("mine")

    copy_environment(source, target)
    overlay.python.unlink()  # the copy must not need it

    assert output_of(target / "overlay" / "bin" / "says") == str(target / "overlay")
    assert (target / "home" / ".settings").read_text() == "mine"


def test_a_place_where_nothing_was_started_has_nothing_to_copy(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()

    copy_environment(tmp_path / "source", tmp_path / "target")

    assert not (tmp_path / "target").exists()
