"""Personal data in text: where it is, and how much of a text's end may still become some.

Of what a pattern finds, check digits decide where there are any: few numbers are taken for what they are not.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

KINDS = ("email", "phone", "card", "id")

_LONGEST = 320  # characters of anything that is found
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_HINT = re.compile(r"@|%40|\d\D{0,3}\d\D{0,3}\d")  # what has neither holds nothing

_BEGINS = r"(?<!\w)(?<!\w-)(?<!\d\.)"  # no part of a word, of an id with dashes, or of a decimal number

_EMAIL = re.compile(r"(?<![\w%+\-])[\w%+\-][\w.%+\-]{0,255}(?:@|%40)(?:\w[\w\-]{0,62}\.){1,8}[^\W\d_]{2,24}(?![\w\-])")
_CARD = re.compile(_BEGINS + r"(?:\d[ \-]?){11,18}\d(?![\w\-])")
_PHONE = re.compile(
    _BEGINS + r"(?<!\+)(?:"
    r"(?:\+|00)[1-9]\d{0,2}[ .\-/]?(?:\(\d{1,4}\)[ .\-/]?)?\d{1,4}(?:[ .\-/]?\d{2,4}){1,4}"
    r"|(?:1[ .\-])?\(\d{3}\) ?\d{3}[ .\-]\d{4}"
    r"|(?:1[ .\-])?\d{3}([ .\-])\d{3}\1\d{4}"
    r")(?![\w\-])"
)
_SSN = re.compile(_BEGINS + r"(?!000|666|9)\d{3}([ \-])(?!00)\d{2}\1(?!0000)\d{4}(?![\w\-])")
_IBAN = re.compile(_BEGINS + r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![\w\-])")
_NINO = re.compile(
    _BEGINS + r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?![\w\-])"
)
_DNI = re.compile(_BEGINS + r"[XYZ\d]\d{7}-?[A-Z](?![\w\-])")

# First digits and lengths of what is in use; ten in a hundred numbers pass Luhn's test by chance.
_CARDS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"
    r"|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}"
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12}"
    r"|35(?:2[89]|[3-8]\d)\d{12}"
    r"|62\d{14,17}"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{8,15}"
)


@dataclass(frozen=True, slots=True)
class Found:
    """From `start` to before `end`, in characters; `kind` is one of `KINDS`."""

    start: int
    end: int
    kind: str


def find(text: str, kinds: tuple[str, ...] = KINDS) -> list[Found]:
    """Personal data of these kinds, in order; nothing of it overlaps."""
    if not _HINT.search(text):
        return []
    if "\x1b" not in text:
        return _sorted(_find(text, kinds))
    plain, places = _without_colours(text)
    return [Found(places[one.start], places[one.end - 1] + 1, one.kind) for one in _sorted(_find(plain, kinds))]


def unfinished(text: str) -> int:
    """Where the end of a text begins that may go on as personal data in what follows."""
    at, least = len(text), max(0, len(text) - _LONGEST)
    while at > least:
        before = text[at - 1]
        joins = before.isalnum() or before in "@._%+-()/\x1b[;"
        spaced = before == " " and at > 1 and (text[at - 2].isdigit() or text[at - 2].isupper() or text[at - 2] == ")")
        if not (joins or spaced):
            break
        at -= 1
    while at < len(text) and text[at] in "._%-)/; ":  # nothing begins so: dots are progress
        at += 1
    return at


def luhn(digits: str) -> bool:
    """Whether the check digit of a card number fits."""
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(two - 9 if two > 9 else two for two in doubled)) % 10 == 0


def _find(text: str, kinds: tuple[str, ...]) -> Iterator[Found]:
    for kind, pattern, is_one in _PATTERNS:
        if kind in kinds:
            for match in pattern.finditer(text):
                if is_one(match[0]):
                    yield Found(match.start(), match.end(), kind)


def _sorted(found: Iterator[Found]) -> list[Found]:
    """Of those that overlap the first, of those the longest."""
    kept: list[Found] = []
    for one in sorted(found, key=lambda one: (one.start, -one.end)):
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
    return kept


def _without_colours(text: str) -> tuple[str, list[int]]:
    """The text that a terminal shows, and the place of each of its characters."""
    pieces: list[str] = []
    places: list[int] = []
    at = 0
    for code in _ANSI.finditer(text):
        pieces.append(text[at : code.start()])
        places.extend(range(at, code.start()))
        at = code.end()
    pieces.append(text[at:])
    places.extend(range(at, len(text)))
    return "".join(pieces), places


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return bool(_CARDS.fullmatch(digits)) and luhn(digits) and len(set(digits)) > 1


def _is_phone(text: str) -> bool:
    return 7 <= sum(one.isdigit() for one in text) <= 15


def _is_iban(text: str) -> bool:
    code = text.replace(" ", "")
    if not 15 <= len(code) <= 34:
        return False
    return int("".join(str(int(one, 36)) for one in code[4:] + code[:4])) % 97 == 1


def _is_dni(text: str) -> bool:
    code = text.replace("-", "")
    number = int({"X": "0", "Y": "1", "Z": "2"}.get(code[0], code[0]) + code[1:8])
    return "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] == code[-1]


def _always(text: str) -> bool:
    return True


_PATTERNS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("email", _EMAIL, _always),
    ("card", _CARD, _is_card),
    ("id", _SSN, _always),
    ("id", _IBAN, _is_iban),
    ("id", _NINO, _always),
    ("id", _DNI, _is_dni),
    ("phone", _PHONE, _is_phone),
)
