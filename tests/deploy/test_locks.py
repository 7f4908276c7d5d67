"""The locks pin what pyproject.toml asks for, on every Python, and work on any machine."""

import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS = PROJECT["dependency-groups"]
ASKED = {
    "gateway": PROJECT["project"]["dependencies"] + GROUPS["build"],
    "dev": PROJECT["project"]["dependencies"] + GROUPS["build"] + GROUPS["dev"],
    "kernels": GROUPS["kernels"],
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
Pins = dict[str, list[tuple[Version, Marker | None]]]

each_lock = pytest.mark.parametrize("lock", ASKED)
each_python = pytest.mark.parametrize("python", PYTHONS)


def lines(lock: str) -> list[str]:
    text = (ROOT / "deploy" / f"{lock}.lock").read_text()
    return [line.removesuffix("\\").strip() for line in text.splitlines() if not line.lstrip().startswith("#")]


def pins(lock: str) -> Pins:
    found: Pins = defaultdict(list)
    for line in lines(lock):
        if not line.startswith("--hash"):
            pin = Requirement(line)
            found[canonicalize_name(pin.name)].append((Version(str(pin.specifier).removeprefix("==")), pin.marker))
    return found


def environment(python: str) -> dict[str, str]:
    return {**default_environment(), "python_version": python, "python_full_version": f"{python}.1"}  # type: ignore[dict-item]


def pinned(pins: Pins, name: str, python: str) -> list[Version]:
    return [version for version, marker in pins[name] if not marker or marker.evaluate(environment(python))]


@each_lock
@each_python
def test_every_dependency_is_pinned_once(lock: str, python: str) -> None:
    asked = [Requirement(text) for text in ASKED[lock]]
    wanted = [each for each in asked if not each.marker or each.marker.evaluate(environment(python))]
    found = pins(lock)

    wrong = {
        str(each): versions
        for each in wanted
        if len(versions := pinned(found, canonicalize_name(each.name), python)) != 1
        or not each.specifier.contains(versions[0])
    }

    assert not wrong, f"deploy/{lock}.lock differs from pyproject.toml; run deploy/lock.sh: {wrong}"


@each_lock
def test_a_lock_names_no_machine(lock: str) -> None:
    pin = re.compile(r"[a-z0-9-]+==[0-9][a-z0-9.]*( ; [a-z0-9_.*<>=!' ()-]+)?", re.IGNORECASE)
    digest = re.compile(r"--hash=sha256:[0-9a-f]{64}")

    strange = [line for line in lines(lock) if not pin.fullmatch(line) and not digest.fullmatch(line)]

    assert not strange


@each_python
def test_tests_run_with_what_the_gateway_runs_with(python: str) -> None:
    gateway, dev = pins("gateway"), pins("dev")

    differing = {name for name in gateway if pinned(gateway, name, python) not in ([], pinned(dev, name, python))}

    assert not differing
