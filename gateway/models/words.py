"""Text as the words that it is found by: the same ones for what is kept, for what is asked, and in every store.

A word is a run of letters, digits and their marks, in small letters, without the accents of Latin script. Scripts that
put no spaces between words give every character and every pair of neighbours. A word in an index carries a letter
before it, which tells it from a tag, and holds nothing by which a database would split it.
"""

import re
import unicodedata
from collections import Counter

LONGEST_WORD = 64

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_ACCENTS = re.compile("[\u0300-\u036f]")
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]+)"  # Thai, Lao, Burmese, Khmer, Japanese and Chinese
)


class _Kept(dict[int, int]):
    """What `str.translate` makes of a character: itself if it is part of a word, else a space."""

    def __missing__(self, number: int) -> int:
        character = chr(number)
        kept = character.isalnum() or unicodedata.category(character).startswith("M")
        if len(self) < 100_000:
            self[number] = number if kept else 32
        return number if kept else 32


_KEPT = _Kept()


def words(text: str) -> list[str]:
    """Every word of a text, in order, as often as it occurs."""
    if text.isascii():
        return [word[:LONGEST_WORD] for word in _ASCII_WORD.findall(text.lower())]
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    folded = unicodedata.normalize("NFC", plain).casefold()
    found: list[str] = []
    for run in folded.translate(_KEPT).split():
        if run.isascii():
            found.append(run[:LONGEST_WORD])
            continue
        for number, part in enumerate(_UNSPACED.split(run)):
            if number % 2:
                found += part
                found += [part[at : at + 2] for at in range(len(part) - 1)]
            elif part:
                found.append(part[:LONGEST_WORD])
    return found


def asked_words(text: str) -> list[str]:
    """The different words of a question, in order; of unspaced scripts the pairs, if there are any."""
    found = dict.fromkeys(words(text))
    pairs = [word for word in found if len(word) == 2 and _UNSPACED.fullmatch(word)]
    paired = {character for pair in pairs for character in pair}
    return [word for word in found if word not in paired]


def word_name(word: str) -> str:
    """What a word is called in an index."""
    return f"a{word}"


def mark_name(kind: str, text: str) -> str:
    """What a tag, a type or the like is called in an index; `kind` is one letter, and not `a`."""
    return f"{kind}{text.encode().hex()}"


def counted(text: str) -> tuple[str, int]:
    """How often each word occurs, as ` name:count name:count `, which `count_of` reads, and how many there are."""
    found = words(text)
    pairs = " ".join(f"{word_name(word)}:{count}" for word, count in Counter(found).items())
    return f" {pairs} ", len(found)


def count_of(name: str, counts: str) -> int:
    """How often the word of this name occurs in a text, of which `counts` was made."""
    at = counts.find(f" {name}:")
    if at < 0:
        return 0
    start = at + len(name) + 2
    return int(counts[start : counts.index(" ", start)])


def names_in(counts: str) -> list[str]:
    """The names of all words in `counts`."""
    return [pair.rpartition(":")[0] for pair in counts.split()]
