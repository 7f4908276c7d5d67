"""The import rules of `[tool.importlinter]` in pyproject.toml are kept, and every module has its place in them."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "kernels")


def test_every_import_keeps_the_rules() -> None:
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"

    result = subprocess.run(
        [sys.executable, "-c", lint, "--no-cache", "--no-logo"],
        cwd=ROOT,
        env={"PATH": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, f"Imports break the rules in pyproject.toml:\n{result.stdout}{result.stderr}"


def test_every_module_has_a_layer() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(rule["layers"] for rule in rules if rule["type"] == "layers")
    placed = {name.strip("()") for layer in layers for name in layer.replace("|", " ").replace(":", " ").split()}

    modules = {
        f"{package}.{path.stem}"
        for package in PACKAGES
        for path in (ROOT / package).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {f"{package}.__init__" for package in PACKAGES}

    assert modules <= placed, f"Give them a layer in pyproject.toml: {sorted(modules - placed)}"
