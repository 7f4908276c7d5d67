"""Python before 3.12: f-strings that only PEP 701 allows, such as `f"{user["name"]}"`, as Python 3.11 reads them.

Only those f-strings change: every other character, and the line of every statement, stays.
The lexer is our own. A parser of the whole cell would do as well, but libcst's recurses on the C stack:
a cell of 10,000 brackets ends the process that parses it, and some cells take it a minute.
"""

import ast
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

LONGEST_CELL = 256 * 1024
"""Longer cells come back as they are."""

DEEPEST_STRING = 30
DEEPEST_SPEC = 2  # f"{x:{y:{z}}}" is as deep as 3.12 goes; 3.11 stops one earlier
DEEPEST_SPEC_BEFORE_312 = 1
STRING_PREFIXES = frozenset(["f", "fr", "rf", "b", "br", "rb", "u", "r"])
T_STRING_PREFIXES = frozenset(["t", "tr", "rt"])
PYTHON_CELL_MAGICS = frozenset(["capture", "lprun", "memit", "mprun", "prun", "time", "timeit"])
QUOTES = ('"', "'", '"""', "'''")
OTHER_QUOTES = {'"': ("'", '"""', "'''"), "'": ('"', "'''", '"""'), '"""': ("'''",), "'''": ('"""',)}
CLOSING = {"(": ")", "[": "]", "{": "}"}

F_STRING = re.compile(r"""[fF][rR]?["']""")
NEWLINE = re.compile(r"\r\n|\r|\n")
LINE_END = re.compile(r"[\r\n]|\Z")
COMMENT = re.compile(r"#[^\r\n]*")
SPACE = re.compile(r"(?:[ \t\f\r\n]|\\(?:\r\n|\r|\n)|#[^\r\n]*)*+")
ODD_BACKSLASHES = re.compile(r"(?<!\\)\\(?:\\\\)*\Z")
CONVERSION = re.compile("!([rsa])")
STRING_OR_COMMENT = re.compile(r"""["'#]""")
STRING_OR_STRUCTURE = re.compile(r"""["'#()\[\]{}\\]|\r\n|\r|\n""")
IN_EXPRESSION = re.compile(r"""["'#()\[\]{}\\:!=]""")

CELL_MAGIC = re.compile(r"\s*%%(?P<name>\w+)[^\r\n]*")
FIRST_INDENT = re.compile(r"(?:[ \t\f]*[\r\n])*([ \t]+)")
MAYBE_IPYTHON = re.compile(r"^[ \t\f]*[%!?,;/]|=[ \t]*(?:!|%\w)|\?[ \t]*\r?$", re.MULTILINE)
IPYTHON_LINE = re.compile(
    r"""[ \t\f]*+(?P<line>
        (?: [%!?,;/]                                                                          # %magic, !command, ?help
        |   (?:[\w.,*\[\] \t]|"[^"\r\n]*"|'[^'\r\n]*')++ = [ \t]* (?:!|%\w)                   # files = !ls
        ) [^\r\n]* (?:(?<=\\)(?:\r\n|\r|\n)[^\r\n]*)*+
    |   [^\r\n\#"'?]+ \?{1,2} [ \t]* (?=[\r\n]|\Z)                                            # help?
    )""",
    re.VERBOSE,
)


def _plain_string(quote: str) -> re.Pattern[str]:
    """The rest of a string whose quotes were just opened."""
    one = quote[0]
    text = rf"[^{one}\\]|{one}(?!{one}{one})" if len(quote) == 3 else rf"[^{one}\\\r\n]"
    return re.compile(rf"(?:{text}|\\(?:\r\n|.))*+{quote}", re.DOTALL)


def _simple_f_string(quote: str) -> re.Pattern[str]:
    """The same for an f-string that is surely the same in every Python; others need a closer look."""
    one, newline = quote[0], "" if len(quote) == 3 else r"\r\n"
    text = rf"[^{one}\\{{}}{newline}]|\\[^N{{}}\r\n]|\{{\{{|\}}\}}"
    if len(quote) == 3:
        text += rf"|{one}(?!{one}{one})"
    nested = "|".join(rf"{q}(?!{q}{q})[^\"'\\{{}}\r\n]*{q}(?!{q})" for q in "\"'" if q != quote)
    code = rf"[^\"'\\#{{}}!{newline}]"
    value = rf"(?:{code}|{nested}|!=|![rsa](?=[:}}])|\{{{code}*+\}})*+"
    return re.compile(rf"(?:{text}|\{{{value}\}})*+{quote}")


PLAIN_STRING = {quote: _plain_string(quote) for quote in QUOTES}
SIMPLE_F_STRING = {quote: _simple_f_string(quote) for quote in QUOTES}
IN_TEXT = {quote: re.compile(rf"[{{}}\\]|{quote}" + (r"|[\r\n]" if len(quote) == 1 else "")) for quote in QUOTES}

Edit = tuple[int, int, str]


def for_python_before_312(code: str) -> str:
    """The cell as Python 3.11 reads it, if f-strings of 3.12 are all that keeps it from compiling there.

    In every other case, `code` itself. Never raises.
    """
    if not F_STRING.search(code) or len(code) > LONGEST_CELL:
        return code
    try:
        # Most cells are done when their strings are read; only the others have brackets and lines looked at.
        first_look = _Reader(code, closely=bool(MAYBE_IPYTHON.search(code)))
        if not any(_Writer(code).edits(first_look.groups)):
            return code
        cell = _Reader(code, closely=True)
        edits = list(_Writer(code).edits(cell.groups))
    except (_Unreadable, RecursionError):
        return code
    result = _edited(code, edits)
    before, after = _edited(code, cell.magics), _edited(code, sorted([*edits, *cell.magics]))
    return result if _line_count(result) == _line_count(code) and _compiles(before, after) else code


def _compiles(before: str, after: str) -> bool:
    """Whether `before` needs nothing newer than Python 3.11 but its f-strings, and `after` not even that."""
    if indent := FIRST_INDENT.match(before):  # IPython takes it away from every line
        line_indent = re.compile(f"^{indent[1]}", re.MULTILINE)
        before, after = line_indent.sub("", before), line_indent.sub("", after)
    with warnings.catch_warnings(action="ignore"):
        try:
            if sys.version_info >= (3, 12):
                ast.parse(before, feature_version=(3, 11))
            compile(after, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
            return False
    return True


def _edited(code: str, edits: Iterable[Edit], start: int = 0, end: int | None = None) -> str:
    pieces = []
    for edit_start, edit_end, text in edits:
        pieces += [code[start:edit_start], text]
        start = edit_end
    return "".join([*pieces, code[start:end]])


def _newlines(code: str) -> str:
    return "".join(NEWLINE.findall(code))


def _line_count(code: str) -> int:
    return len(NEWLINE.findall(code))


class _Unreadable(Exception):
    """Python 3.12 would not take this either, or it is nested deeper than we look."""


@dataclass(slots=True)
class _Text:
    """What stands between the fields of an f-string or of a format spec, as written."""

    start: int
    end: int


@dataclass(slots=True)
class _Field:
    """`{expression = !conversion : spec}`, and where each of these ends."""

    start: int
    groups: "list[list[_String]]" = field(default_factory=list)
    """The strings in the expression; those side by side are one."""
    has_comment: bool = False
    has_equals: bool = False
    conversion: str = ""
    spec: "list[_Text | _Field] | None" = None
    expression_end: int = 0
    equals_end: int = 0
    conversion_end: int = 0
    head_end: int = 0
    end: int = 0


@dataclass(slots=True)
class _String:
    start: int
    end: int
    prefix: str
    quote: str
    parts: list[_Text | _Field] | None = None
    """None for a plain string and for a simple f-string, which stay as they are."""

    @property
    def raw(self) -> bool:
        return "r" in self.prefix


class _Reader:
    """Finds the strings of a cell and takes f-strings apart, the way Python 3.12 does."""

    def __init__(self, code: str, *, closely: bool) -> None:
        self.code = code
        self.groups: list[list[_String]] = []
        self.magics: list[Edit] = []
        """IPython's own lines, and what could stand there in Python."""
        self._read(closely)

    def _read(self, closely: bool) -> None:
        find = (STRING_OR_STRUCTURE if closely else STRING_OR_COMMENT).search
        position = self._after_magics()
        depth = 0
        joins = False  # could this string be one with the last
        while found := find(self.code, position):
            mark, position = found.group(), found.end()
            if mark in "\"'":
                string = self._string(found.start(), 0)
                position = string.end
                if closely or string.parts is not None:
                    self._add(self.groups, string, joins)
                    joins = True
            elif mark == "#":
                position = self._line_end(position)
            elif mark == "\\":
                position = self._after_escape(found.start())
            elif mark in "([{":
                depth += 1
            elif mark in ")]}":
                depth = max(depth - 1, 0)
            elif depth == 0:
                position = self._after_ipython_line(position)
                joins = False

    def _after_magics(self) -> int:
        position = 0
        while magic := CELL_MAGIC.match(self.code, position):
            if magic["name"] not in PYTHON_CELL_MAGICS:
                raise _Unreadable
            position = magic.end()
            self.magics.append((magic.start("name") - 2, position, ""))
        return self._after_ipython_line(position)

    def _after_ipython_line(self, position: int) -> int:
        line = IPYTHON_LINE.match(self.code, position)
        if not line:
            return position
        self.magics.append((line.start("line"), line.end(), "pass" + _newlines(line["line"])))
        return line.end()

    def _line_end(self, position: int) -> int:
        end = LINE_END.search(self.code, position)
        return end.start() if end else len(self.code)

    def _after_escape(self, backslash: int) -> int:
        return backslash + (3 if self.code.startswith("\r\n", backslash + 1) else 2)

    def _add(self, groups: list[list[_String]], string: _String, joins: bool) -> None:
        if joins and groups and SPACE.fullmatch(self.code, groups[-1][-1].end, string.start):
            groups[-1].append(string)
        else:
            groups.append([string])

    def _string(self, at: int, nesting: int) -> _String:
        """The string whose first quote is at `at`."""
        start = at
        while start and at - start < 3 and (self.code[start - 1].isalnum() or self.code[start - 1] == "_"):
            start -= 1
        prefix = self.code[start:at].lower()
        if prefix in T_STRING_PREFIXES or nesting > DEEPEST_STRING:
            raise _Unreadable
        if prefix not in STRING_PREFIXES:  # the end of a keyword, as in: else"..."
            start, prefix = at, ""
        one = self.code[at]
        quote = one * 3 if self.code.startswith(one * 3, at) else one
        body = at + len(quote)
        pattern = (SIMPLE_F_STRING if "f" in prefix else PLAIN_STRING)[quote]
        if whole := pattern.match(self.code, body):
            return _String(start, whole.end(), prefix, quote)
        if "f" not in prefix:
            raise _Unreadable
        string = _String(start, at, prefix, quote)
        string.parts, end = self._parts(string, body, nesting, None)
        string.end = end + len(quote)
        return string

    def _parts(
        self, string: _String, start: int, nesting: int, spec_depth: int | None
    ) -> tuple[list[_Text | _Field], int]:
        """Texts and fields up to the end of the f-string, or of the format spec that starts here."""
        code, in_spec = self.code, spec_depth is not None
        parts: list[_Text | _Field] = []
        position = start
        while found := IN_TEXT[string.quote].search(code, position):
            mark, at = found.group(), found.start()
            position = found.end()
            if mark == "\\":
                if code.startswith("N{", position) and not string.raw:
                    position = code.find("}", position) + 1 or len(code)
                elif not code.startswith(("{", "}"), position):
                    position = self._after_escape(at)
            elif mark == "{" and (in_spec or not code.startswith("{", position)):
                nested = self._field(string, at, nesting, 0 if spec_depth is None else spec_depth + 1)
                parts += [_Text(start, at), nested] if at > start else [nested]
                start = position = nested.end
            elif mark in "{}" and not in_spec and code.startswith(mark, position):
                position += 1
            elif mark == ("}" if in_spec else string.quote):
                return ([*parts, _Text(start, at)] if at > start else parts), at
            else:
                raise _Unreadable
        raise _Unreadable

    def _field(self, string: _String, start: int, nesting: int, spec_depth: int) -> _Field:
        if spec_depth > DEEPEST_SPEC:
            raise _Unreadable
        result = _Field(start)
        at = result.expression_end = result.equals_end = self._expression_end(result, nesting)
        if SPACE.fullmatch(self.code, start + 1, at):
            raise _Unreadable
        if self.code[at] == "=":
            result.has_equals = True
            at = result.equals_end = self._after_space(result, at + 1)
        result.conversion_end = at
        if conversion := CONVERSION.match(self.code, at):
            result.conversion = conversion[0]
            result.conversion_end = conversion.end()
            at = self._after_space(result, conversion.end())
        result.head_end = at
        if self.code.startswith(":", at):
            result.spec, at = self._parts(string, at + 1, nesting, spec_depth)
        if not self.code.startswith("}", at):
            raise _Unreadable
        result.end = at + 1
        return result

    def _expression_end(self, result: _Field, nesting: int) -> int:
        """Where the `=`, `!`, `:` or `}` is that ends the field's expression."""
        code, open_brackets = self.code, []
        position = result.start + 1
        while found := IN_EXPRESSION.search(code, position):
            mark, at = found.group(), found.start()
            position = found.end()
            if mark in "\"'":
                string = self._string(at, nesting + 1)
                self._add(result.groups, string, joins=True)
                position = string.end
            elif mark == "#":
                result.has_comment = True
                position = self._line_end(position)
            elif mark == "\\":
                position = self._after_escape(at)
            elif mark in CLOSING:
                open_brackets.append(CLOSING[mark])
            elif open_brackets:
                if mark in ")]}" and open_brackets.pop() != mark:
                    raise _Unreadable
            elif mark in "=!" and code.startswith("=", position):
                position += 1
            elif mark in ")]":
                raise _Unreadable
            elif mark != "=" or code[at - 1] not in "<>":
                return at
        raise _Unreadable

    def _after_space(self, result: _Field, position: int) -> int:
        end = space.end() if (space := SPACE.match(self.code, position)) else position
        result.has_comment |= "#" in self.code[position:end]
        return end


class _Writer:
    """Writes f-strings for Python 3.11: with other quotes where that is enough, else as a join of their parts."""

    def __init__(self, code: str) -> None:
        self.code = code
        self._sources: dict[int, str | None] = {}

    def edits(self, groups: list[list[_String]]) -> Iterator[Edit]:
        """What to change in the code for these strings, in order; nothing for those that are fine."""
        for group in groups:
            sources = [self._source(string) for string in group]
            if None in sources:
                yield group[0].start, group[-1].end, self._joined(group)
                continue
            for string, source in zip(group, sources, strict=True):
                if source is not None and source != self.code[string.start : string.end]:
                    yield string.start, string.end, source

    def _source(self, string: _String) -> str | None:
        """The string as 3.11 reads it, or None if no single string says it."""
        if string.parts is None:
            return self.code[string.start : string.end]
        if string.start not in self._sources:
            self._sources[string.start] = self._f_string(string, string.parts)
        return self._sources[string.start]

    def _f_string(self, string: _String, parts: list[_Text | _Field]) -> str | None:
        values: list[str] = []
        texts: list[str] = []
        sources = []
        for part in parts:
            source = self._part(part, 0, values, texts)
            if source is None:
                return None
            sources.append(source)
        inside = "".join(sources)
        before = self.code[string.start : string.start + len(string.prefix)]
        for quote in (string.quote, *OTHER_QUOTES[string.quote]):
            if any(quote in value or (len(quote) == 1 and NEWLINE.search(value)) for value in values):
                continue
            if quote == string.quote or not (any(quote in text for text in texts) or inside.endswith(quote[0])):
                return f"{before}{quote}{inside}{quote}"
        return None

    def _part(self, part: _Text | _Field, spec_depth: int, values: list[str], texts: list[str]) -> str | None:
        """A part of an f-string for 3.11. Adds its expressions to `values` and its text to `texts`."""
        code = self.code
        if isinstance(part, _Text):
            texts.append(code[part.start : part.end])
            return texts[-1]
        if part.has_comment or spec_depth > DEEPEST_SPEC_BEFORE_312:
            return None
        if any(self._source(string) is None for group in part.groups for string in group):
            return None
        written = code[part.start + 1 : part.expression_end]
        value = _edited(code, self.edits(part.groups), part.start + 1, part.expression_end)
        after = code[part.expression_end : part.equals_end]
        space = code[part.conversion_end : part.head_end] if part.conversion else ""
        if "\\" in value + after or "\\" in space or NEWLINE.search(space) or (part.has_equals and value != written):
            return None
        values.append(value + after)
        pieces = ["{", value, after, part.conversion]
        if part.spec is not None:
            pieces.append(":")
            for nested in part.spec:
                source = self._part(nested, spec_depth + 1, values, texts)
                if source is None:
                    return None
                pieces.append(source)
        return "".join([*pieces, "}"])

    def _joined(self, group: list[_String]) -> str:
        """The group as one expression, its parts made in their order and each on its own line."""
        pieces = []
        end = group[0].start
        for string in group:
            source = self._source(string)
            if source is None:
                source = self._list(string, string.parts or [], in_spec=False)
            pieces += [self.code[end : string.start], source, ","]
            end = string.end
        return f'"".join([{"".join(pieces[:-1])}])'

    def _list(self, string: _String, parts: list[_Text | _Field], *, in_spec: bool) -> str:
        return ", ".join(
            self._text(string, part, in_spec) if isinstance(part, _Text) else self._value(string, part)
            for part in parts
        )

    def _text(self, string: _String, part: _Text, in_spec: bool) -> str:
        text = self.code[part.start : part.end]
        if not in_spec:
            text = text.replace("{{", "{").replace("}}", "}")
        if string.raw:
            return _literal(text) + _newlines(text)
        # As written, so that an odd escape warns as before. Only its end, which now stands before a quote, may change.
        if ODD_BACKSLASHES.search(text):
            text += "\\"
        elif text.endswith(string.quote[0]) and not ODD_BACKSLASHES.search(text[:-1]):
            text = f"{text[:-1]}\\{text[-1]}"
        return f"{string.quote}{text}{string.quote}"

    def _value(self, string: _String, part: _Field) -> str:
        """The value as format() makes it, which a str method does too, whatever `format` and `repr` are by now."""
        code = self.code
        conversion = part.conversion or ("!r" if part.has_equals and part.spec is None else "")
        value = _edited(code, self.edits(part.groups), part.start + 1, part.expression_end).strip(" \t")
        value += _newlines(code[part.expression_end : part.head_end])
        result = f'"{{{conversion}}}".format(({value}))'
        if part.spec:
            spec = self._list(string, part.spec, in_spec=True)
            if len(part.spec) > 1:
                spec = f'"".join([{spec}])'
            result = f'"{{{conversion}:{{}}}}".format(({value}), {spec})'
        if part.has_equals:
            return f"{_literal(self._equals_text(part))}, {result}"
        return result

    def _equals_text(self, part: _Field) -> str:
        """What `{value=}` shows before the value: its source, without the comments."""
        pieces = []
        end = part.start + 1
        for string in [string for group in part.groups for string in group]:
            pieces += [COMMENT.sub("", self.code[end : string.start]), self.code[string.start : string.end]]
            end = string.end
        return "".join([*pieces, COMMENT.sub("", self.code[end : part.equals_end])])


def _literal(text: str) -> str:
    return repr(NEWLINE.sub("\n", text))
