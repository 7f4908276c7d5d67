"""Reads `checkpoint_cases.txt`, which says itself how it is written."""

import re
from pathlib import Path
from typing import NamedTuple


class Case(NamedTuple):
    name: str
    outcome: str
    needs: str
    setup: str
    check: str


def read_cases() -> list[Case]:
    text = Path(__file__).with_suffix(".txt").read_text()
    return [
        read_case(part)
        for part in re.split(r"^## ", re.sub(r"^# .*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)[1:]
    ]


def read_case(part: str) -> Case:
    title, _, body = part.partition("\n")
    setup, _, check = body.rstrip().partition("\n=>\n")
    name, _, tags = title.rstrip(")").partition(" (")
    words = tags.split(", ") if tags else []
    needs = "".join(word[len("needs ") :] for word in words if word.startswith("needs "))
    outcome = next((word for word in words if not word.startswith("needs ")), "exact")
    return Case(name, outcome, needs, setup, check)


CASES = read_cases()
