"""Every case is run for real: rewritten on this Python, and as it was on a Python from 3.12 on, if one is here."""

import json
import shutil
import subprocess
import sys
import textwrap
import time
import timeit
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import fstrings
from kernels.fstrings import LONGEST_CELL, for_python_before_312

NAMES: dict[str, Any] = {
    "n": 7,
    "pi": 3.14159,
    "width": 10,
    "d": {"k": "v", "#": 1, "n": {"m": "deep"}, "w": 9},
    "words": ["a", "b"],
    "w": 9,
    "format": "shadowed",
    "repr": "shadowed",
    "str": "shadowed",
}

CASES = {
    "same_quotes": ('v = f"{d["k"]}"', "v"),
    "same_single_quotes": ("v = f'{d['k']}'", "v"),
    "same_triple_quotes": ('v = f"""{d["""k"""]}"""', "v"),
    "same_triple_single_quotes": ("v = f'''{d['''k''']}'''", "v"),
    "text_with_the_other_quote": ('v = f"it\'s {d["k"]}"', "it's v"),
    "text_with_both_quotes": ('v = f"it\'s \\"{d["k"]}\\""', 'it\'s "v"'),
    "text_that_ends_in_the_other_quote": ('v = f"\'{d["k"]}\'"', "'v'"),
    "all_four_quotes": ('v = f"{d["k"] + \'a\' + \'\'\'b\'\'\' + """c"""}"', "vabc"),
    "four_deep": ('v = f"{f"{f"{f"{d["n"]["m"]}"}"}"}"', "deep"),
    "six_deep": ('v = f"{f"{f"{f"{f"{f"{n}"}"}"}"}"}"', "7"),
    "a_join": ('v = f"{", ".join(words)}"', "a, b"),
    "backslash": ('v = f"{"\\n".join(words)}"', "a\nb"),
    "backslash_in_other_quotes": ("v = f\"{'\\t'.join(words)}\"", "a\tb"),
    "backslash_in_triple_quotes": ("v = f'''x\n{\"\\n\".join(words)}y'z'{1}'''", "x\na\nby'z'1"),
    "backslash_before_a_field": ('v = f"\\\\{"\\n"}"', "\\\n"),
    "continued_line": ('v = f"{n + \\\n 1}"', "8"),
    "comment": ('v = f"{\n  n  # the number, f"{n}"\n}!"', "7!"),
    "comment_in_triple_quotes": ('v = f"""a\n{n # }\n}\nb"""', "a\n7\nb"),
    "newline": ('v = f"{\nn\n}"', "7"),
    "newline_after_conversion": ('v = f"{d["k"]!r\n}"', "'v'"),
    "space_after_conversion": ('v = f"{n!r }{n!s :>3}"', "7  7"),
    "spec": ('v = f"{d["k"]:>3}|{d["k"]:^{width}}"', "  v|    v     "),
    "spec_with_quotes": ('v = f"{n:{"*"}>{"5"}}"', "****7"),
    "spec_with_backslash": ('v = f"{n:\\x2a>{"5"}}{"\\n"}"', "****7\n"),
    "spec_within_spec": ('v = f"{n:{w:{"1"}}}"', "        7"),
    "spec_of_many_parts": ('v = f"{pi:{"0"}{width}.{2}f}{"\\n"}"', "0000003.14\n"),
    "empty_spec": ('v = f"{d["k"]:}{"\\n"!r:}"', "v'\\n'"),
    "conversions": ('v = f"{d["k"]!r}{d["k"]!s}{"é\\n"!a}"', "'v'v'\\xe9\\n'"),
    "debug": ('v = f"{d["k"]=} {d["k"] = !s} {n = :>3}"', 'd["k"]=\'v\' d["k"] = v n =   7'),
    "debug_with_empty_spec": ('v = f"{d["k"]=:}"', 'd["k"]=v'),
    "debug_of_an_f_string": ('v = f"{f"{n}"=}"', "f\"{n}\"='7'"),
    "debug_with_comment": ('v = f"{n # c\n = }"', "n \n = 7"),
    "raw_text": ('v = rf"\\d{d["k"]}\\n"', "\\dv\\n"),
    "raw_lowered": ('v = fR"\\d\\"{"\\n"}\\N{n}\\{n}"', '\\d\\"\n\\N7\\7'),
    "raw_over_lines": ("v = rf'''\\a\n'{\"\\n\"}\n\"'''", "\\a\n'\n\n\""),
    "braces": ('v = f"{{{d["k"]}}} {{}} {"\\n"}}}"', "{v} {} \n}"),
    "named_character": ('v = f"\\N{BULLET}{d["k"]}\\N{EM DASH}}}{"\\n"}"', "•v—}\n"),
    "concatenation": ('v = "{a}" f"{d["k"]}" \'b\'', "{a}vb"),
    "lowered_concatenation": ('v = ("{a}" # c\n  f"{"\\n"}" rf"\\{n}"\n  f"" f"{d["k"]}")', "{a}\n\\7v"),
    "concatenation_over_a_continued_line": ('v = f"{"\\n"}" \\\n  "b"', "\nb"),
    "two_statements": ('f"{"\\n"}"\n"b"\nv = f"{"\\n"}"; "b"', "\n"),
    "method_call": ('v = f"{"\\n"}{d["k"]}".upper()', "\nV"),
    "percent": ('v = f"%s{"\\n"}" % 1', "1\n"),
    "tuple": ('v = f"{"\\n", 1}{*words, "\\n"}"', "('\\n', 1)('a', 'b', '\\n')"),
    "dict": ('v = f"{ {"k": "\\n"}["k"] }"', "\n"),
    "lambda": ('v = f"{(lambda x: x + "\\n")("a")}"', "a\n"),
    "conditional": ('v = f"{"yes\\n" if n != 3 else "no"}"', "yes\n"),
    "comparisons": ('v = f"{n!=3}{n==7}{n<=7}{n>=8}{"k" in d}{(m:=n)}"', "TrueTrueTrueFalseTrue7"),
    "lambda_default": ('v = f"{(lambda x="k": d[x])()}"', "v"),
    "keyword_argument": ('v = f"{dict(a="b")["a"]}"', "b"),
    "after_a_keyword": ('v = 1 if 0 else"x"f"{d["k"]}"', "xv"),
    "nested_comprehension": ('v = f"{"".join(f"{w}{"\\n"}" for w in words)}"', "a\nb\n"),
    "walrus": ('v = f"{(w := "\\n")}" + w', "\n\n"),
    "shadowed_builtins": ('v = f"{d["k"]!r:>5}{"\\n"}"', "  'v'\n"),
    "non_ascii": ('ü = {"é": "ß"}\nv = f"→ {ü["é"]} 😀" + f"😀{ü["é"]}{"\\n"}"', "→ ß 😀😀ß\n"),
    "tabs": ('if n:\n\tv = f"{\td["k"]\t}"\n', "v"),
    "form_feed": ('\x0cx = 1\n\x0c\nv = f"{d["k"]}"\n', "v"),
    "crlf": ('v = f"{d["k"]}"\r\nw = f"""a\r\n{"\\n"}"""\r\nv += w\r\n', "va\n\n"),
    "crlf_debug": ('v = f"""{\r\nd["k"] # c\r\n=}"""\r\n', "\nd[\"k\"] \n='v'"),
    "strings_that_look_like_it": ('s = """f"{d[""" + \'f"{d["k"]}"\'\nv = f\'{s}\' + f"{d["k"]}"', 'f"{d[f"{d["k"]}"v'),
    "comments_that_look_like_it": ('# f"{d["k"]}" it\'s "\nv = f"{d["k"]}"  # f"{', "v"),
    "odd_escape": ('v = f"\\d{d["k"]}" f"\\{"\\n"}"', "\\dv\\\n"),
    "indented_cell": ('\n  v = f"{d["k"]}"\n  w = 1', "v"),
}


# The five cells of the reference pages that Python 3.11 refuses, and what they print.
PAGES = {
    "counter": (
        'counter += 1\nuser_data["score"] += 10\nprint(f"Counter: {counter}, Score: {user_data["score"]}")',
        "Counter: 1, Score: 10\n",
    ),
    "config": (
        'import json\nwith open("config.json", "r") as f:\n    config = json.load(f)\n'
        'print(f"API URL: {config["api_url"]}")',
        "API URL: https://api.example.com\n",
    ),
    "first cache run": (
        "import json\nimport os\n\ndef expensive_computation(n):\n    result = sum(range(n))\n    return result\n\n"
        'cache_file = "cache.json"\nif os.path.exists(cache_file):\n    with open(cache_file, "r") as f:\n'
        '        cache = json.load(f)\n    print("Using cached result")\nelse:\n'
        '    result = expensive_computation(1000000)\n    cache = {"result": result}\n'
        '    with open(cache_file, "w") as f:\n        json.dump(cache, f)\n'
        '    print("Computed and cached result")\n\nprint(f"Result: {cache["result"]}")',
        "Computed and cached result\nResult: 499999500000\n",
    ),
    "second cache run": (
        'import json\nwith open("cache.json", "r") as f:\n    cache = json.load(f)\n'
        'print(f"Cached result: {cache["result"]}")',
        "Cached result: 499999500000\n",
    ),
    "migration": (
        'import json\n\nVERSION = "2.0"\n\ntry:\n    with open("data.json", "r") as f:\n        data = json.load(f)\n'
        '    \n    # Migrate if needed\n    if data.get("version", "1.0") != VERSION:\n'
        '        print(f"Migrating from {data.get("version")} to {VERSION}")\n        # Perform migration...\n'
        '        data["version"] = VERSION\n        with open("data.json", "w") as f:\n            json.dump(data, f)\n'
        'except FileNotFoundError:\n    data = {"version": VERSION, "items": []}\n'
        '    with open("data.json", "w") as f:\n        json.dump(data, f)',
        "Migrating from 1.5 to 2.0\n",
    ),
}

BROKEN = 'v = f"{d["k"]}"\n'
MENDED = "v = f'{d[\"k\"]}'\n"

LEFT_ALONE = {
    "empty": "",
    "nothing_new": 'v = f"{d[\'k\']!r:>{w}} {{}} {f\'{n}\'} {n!=3} {n=}" f"""{d["k"]}\n{n\n}"""\n',
    "another_syntax_error": BROKEN + "x = = 1",
    "an_error_inside_the_f_string": 'v = f"{d["k"] +}"',
    "an_empty_field": BROKEN + 'v = f"{ }{"\\n"}"',
    "an_unknown_conversion": 'v = f"{d["k"]!x}"',
    "a_closing_brace_alone": 'v = f"{d["k"]} }"',
    "brackets_that_cross": 'v = f"{d["k"}]"',
    "a_spec_too_deep": 'v = f"{n:{n:{n:{n}}}}{"\\n"}"',
    "unterminated": BROKEN + 'v = f"{d["k"]}',
    "unterminated_field": BROKEN + 'v = f"{d["k"',
    "unterminated_triple_quotes": BROKEN + 'v = """',
    "return_outside_function": BROKEN + "return v",
    "break_outside_loop": BROKEN + "break",
    "lost_indentation": 'with open("x") as f:\nprint(f"{d["k"]}")',
    "unexpected_indentation": BROKEN + "  x = 1",
    "type_statement": BROKEN + "type X = int",
    "type_parameters": BROKEN + "def f[T](x: T) -> T: return x",
    "template_string": BROKEN + 'v = t"{d["k"]}"',
    "null_character": BROKEN + "\0",
    "lone_surrogate": BROKEN + "v = '\ud800'",
    "cell_magic_of_another_language": "%%bash\n" + BROKEN,
    "cell_magic_of_html": "\n\n%%html\n" + BROKEN,
    "code_of_a_line_magic": '%time print(f"{d["k"]}")',
    "code_of_a_command": '!echo f"{d["k"]}"\nx = !echo f"{d["k"]}"',
    "too_long": BROKEN + "#" * LONGEST_CELL,
    "too_deep": "v = " + 'f"{' * 50 + "n" + '}"' * 50,
    "brackets_without_end": BROKEN + "(" * 50_000,
    "brackets_by_the_thousand": BROKEN + "(" * 50_000 + ")" * 50_000,
    "operators_by_the_thousand": BROKEN + "x = " + "-" * 100_000 + "1",
    "attributes_by_the_thousand": BROKEN + "x = v" + ".x" * 50_000,
    "quotes_by_the_thousand": 'f"{' * 40_000,
}

IPYTHON = {
    "line_magic": f"%matplotlib inline\n{BROKEN}",
    "line_magic_with_a_quote": f"%config it's\n{BROKEN}%config it's",
    "command": f"!echo it's \\\n  and \"more\n{BROKEN}",
    "indented_command": f"if n:\n    !echo it's\n    {BROKEN}",
    "assigned_command": f"files['a'], x = !ls *'\n{BROKEN}",
    "assigned_magic": f"x = %time it's\n{BROKEN}",
    "help": f"?v\nv?\n{BROKEN}d.keys??\n",
    "time": f"%%time\n{BROKEN}",
    "capture_then_time": f"\n%%capture out --no-stderr\n%%time\n{BROKEN}",
    "await": f"import asyncio\nawait asyncio.sleep(0)\nasync with x: pass\n{BROKEN}",
    "leading_indent": f"  \n    %time it's\n    {BROKEN}    x = 1",
    "indented_comment_first": f"\t# c\n{BROKEN}",
    "blank_line_first": f"   \n{BROKEN}",
    "modulo": f"x = n %n\ny = 7\\\n %n\nz = (7\n%n)\n{BROKEN}",
}


def run(cell: str, names: dict[str, Any] = NAMES) -> dict[str, Any]:
    namespace = dict(names)
    with warnings.catch_warnings(action="ignore"):
        code = compile(textwrap.dedent(cell), "<cell>", "exec")
    exec(code, namespace)  # noqa: S102
    return namespace


def ask(python: str, program: str, question: object) -> Any:
    command = [python, "-W", "ignore", "-c", textwrap.dedent(program)]
    answer = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)


@pytest.fixture(scope="module")
def newer_python() -> str:
    """A Python from 3.12 on that really starts: with pyenv, `python3.12` is on PATH whether or not there is one."""
    for name in (sys.executable, "python3.12", "python3.13", "python3.14"):
        path = shutil.which(name)
        is_newer = "import sys; sys.exit(sys.version_info < (3, 12))"
        if path and subprocess.run([path, "-c", is_newer], capture_output=True, check=False).returncode == 0:
            return path
    pytest.skip("no Python from 3.12 on is here")


@pytest.mark.parametrize(("cell", "expected"), CASES.values(), ids=CASES)
def test_a_cell_means_the_same(cell: str, expected: str) -> None:
    rewritten = for_python_before_312(cell)

    assert rewritten != cell
    assert run(rewritten)["v"] == expected
    assert for_python_before_312(rewritten) is rewritten


def test_what_the_cases_expect_is_what_a_newer_python_gives(newer_python: str) -> None:
    program = """
        import json, sys, textwrap
        names, cells = json.load(sys.stdin)
        values = []
        for cell in cells:
            namespace = dict(names)
            exec(textwrap.dedent(cell), namespace)
            values.append(namespace["v"])
        json.dump(values, sys.stdout)
    """

    values = ask(newer_python, program, [NAMES, [cell for cell, _ in CASES.values()]])

    assert dict(zip(CASES, values, strict=True)) == {name: expected for name, (_, expected) in CASES.items()}


def test_a_gateway_on_a_newer_python_writes_the_same(newer_python: str) -> None:
    program = f"""
        import json, sys
        sys.path.insert(0, {str(Path(fstrings.__file__).parent)!r})
        from fstrings import for_python_before_312
        json.dump([for_python_before_312(cell) for cell in json.load(sys.stdin)], sys.stdout)
    """
    cells = [cell for cell, _ in (*CASES.values(), *PAGES.values())] + [*LEFT_ALONE.values(), *IPYTHON.values()]

    assert ask(newer_python, program, cells) == [for_python_before_312(cell) for cell in cells]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [('v = f"{d["#"]=}{"\\n"}"', 'd["#"]=1\n'), ('v = f"{"\\n"=}"', "\"\\n\"='\\n'")],
    ids=["hash", "backslash"],
)
def test_a_debug_field_shows_its_source(cell: str, expected: str) -> None:
    # Not among the cases: the first releases of 3.12 and 3.13 show d["2 and a newline (python/cpython#124363).
    assert run(for_python_before_312(cell))["v"] == expected


def test_the_cells_of_the_reference_pages_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text('{"api_url": "https://api.example.com"}')
    Path("data.json").write_text('{"version": "1.5"}')

    for cell, printed in PAGES.values():
        run(for_python_before_312(cell), {"counter": 0, "user_data": {"score": 0}})
        assert capsys.readouterr().out == printed

    assert json.loads(Path("data.json").read_text()) == {"version": "2.0"}


@pytest.mark.parametrize("cell", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_every_other_cell_comes_back_as_it_is(cell: str) -> None:
    assert for_python_before_312(cell) is cell


@pytest.mark.parametrize("cell", IPYTHON.values(), ids=IPYTHON)
def test_the_lines_of_ipython_stay(cell: str) -> None:
    assert for_python_before_312(cell) == cell.replace(BROKEN, MENDED)


def test_only_the_f_strings_change() -> None:
    before, after = "# é\tf'\r\nx  =  [ 1 ,\r\n 2]\x0c\n", " ;  y='''\n'''  # f\"{\r\n"

    assert for_python_before_312(before + BROKEN[:-1] + after) == before + MENDED[:-1] + after


def test_parts_are_made_and_formatted_in_their_order() -> None:
    cell = textwrap.dedent(r"""
        log = []
        class Value:
            def __init__(self, name): log.append(f"make {name}"); self.name = name
            def __format__(self, spec): log.append(f"format {self.name} {spec}"); return self.name
            def __repr__(self): log.append(f"repr {self.name}"); return self.name
        v = f"{Value("a"):{Value("b")}{Value("c")}}{"\n"}{Value("<d")!r:{Value(">"):x}5}" f"{Value("f")}"
    """)

    namespace = run(for_python_before_312(cell))

    assert namespace["v"] == "a\n   <df"
    assert namespace["log"] == [
        *["make a", "make b", "format b ", "make c", "format c ", "format a bc"],
        *["make <d", "make >", "format > x", "repr <d", "make f", "format f "],
    ]


@pytest.mark.parametrize("text", ["x", "\\n"])
def test_a_traceback_names_the_line_of_the_cell(text: str) -> None:
    parts = ['v = f"""a\n\nb{\n"TEXT".join(words)\n}\n\\\n{"TEXT"!r\n}{d[\n"k"]}"""', 'x = (\n f"{"TEXT"}"\n)', "1 / 0"]
    cell = "\n".join(parts).replace("TEXT", text)

    with pytest.raises(ZeroDivisionError) as raised:
        run(for_python_before_312(cell))

    assert traceback.extract_tb(raised.value.__traceback__)[-1].lineno == len(cell.splitlines())


def test_an_expression_that_fails_is_on_its_own_line() -> None:
    cell = 'v = f"""\n{"\\n"}\n{1 / 0}\n"""'

    with pytest.raises(ZeroDivisionError) as raised:
        run(for_python_before_312(cell))

    assert traceback.extract_tb(raised.value.__traceback__)[-1].lineno == 3


@pytest.mark.parametrize(
    ("cell", "most_s"),
    [
        ('import json\nrows = [{"a": i} for i in range(10)]\nprint(json.dumps(rows))\n' * 5, 20e-6),
        ("print(f\"{d['k']:>10} of {n!r}\")\n" * 5, 200e-6),
    ],
    ids=["without_f_strings", "with_f_strings"],
)
def test_ordinary_cells_cost_next_to_nothing(cell: str, most_s: float) -> None:
    cost_s = min(timeit.repeat(lambda: for_python_before_312(cell), number=100, repeat=10)) / 100

    assert cost_s < most_s


@pytest.mark.parametrize(
    "cell",
    ['v = f"{"\\n"}"\n' * (LONGEST_CELL // 16), 'f"{x}"\n' * 150_000, BROKEN + "x = [" + "1, " * 80_000 + "]"],
    ids=["all_to_rewrite", "a_megabyte", "one_to_rewrite"],
)
def test_a_long_cell_takes_bounded_time(cell: str) -> None:
    started = time.perf_counter()

    for_python_before_312(cell)

    assert time.perf_counter() - started < 10  # 0.7 s, where nothing else runs


@dataclass(frozen=True)
class Source:
    """Some Python, what a debug field shows of it, and its value, found without f-strings."""

    code: str
    shown: str
    value: Any


QUOTES = ["'", '"', "'''", '"""']
TEXTS = [
    *[("a", "a"), (" ", " "), ("{{", "{"), ("}}", "}"), ("é", "é"), ("😀", "😀"), ("#", "#"), (":", ":"), ("!r", "!r")],
    *[("\\n", "\n"), ("\\\\", "\\"), ("\\N{BULLET}", "•"), ('\\"', '"'), ("\\'", "'"), ("\\x41", "A")],
]
GAPS = [("", ""), (" ", " "), ("\n", "\n"), (" # it's {\n", " \n")]
SPECS = [("", ""), (":", ""), (":>9", ">9"), (":{'*'}>{d[\"w\"]}", "*>9"), (':{"\\x2a"}^{w:{1}}', "*^9")]
CONVERSIONS = {"": None, "!r": repr, "!s": str, "!a": ascii, "!r ": repr}


def plain(code: str, value: Any) -> Source:
    return Source(code, code, value)


@st.composite
def f_strings(draw: st.DrawFn, depth: int = 3) -> Source:
    quote = draw(st.sampled_from(QUOTES))
    raw = draw(st.booleans())
    texts = TEXTS + [("\n", "\n")] * (len(quote) == 3)
    code, value = "", ""
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            piece, meaning = draw(st.sampled_from(texts))
            if raw and "\\" in piece:
                piece = meaning = "\\d"
        else:
            piece, meaning = draw(fields(depth))
        code, value = code + piece, value + meaning
    prefix = draw(st.sampled_from(["rf", "fr", "fR", "RF"] if raw else ["f", "F"]))
    return plain(f"{prefix}{quote}{code}{quote}", value)


@st.composite
def fields(draw: st.DrawFn, depth: int) -> tuple[str, str]:
    expression = draw(expressions(depth - 1))
    before = draw(st.sampled_from([" ", "\n "]))
    gap, shown_gap = draw(st.sampled_from(GAPS))
    conversion, convert = draw(st.sampled_from(list(CONVERSIONS.items())))
    spec, spec_value = draw(st.sampled_from(SPECS))
    code, shown = f"{before}{expression.code}{gap}", ""
    if draw(st.booleans()):
        code, shown = f"{code}=", f"{before}{expression.shown}{shown_gap}="
        convert = convert or (None if spec else repr)
    value = convert(expression.value) if convert else expression.value
    return f"{{{code}{conversion}{spec}}}", shown + format(value, spec_value)


@st.composite
def expressions(draw: st.DrawFn, depth: int) -> Source:
    kind = draw(
        st.sampled_from(["number", "item", "string"] + ["f_string", "pair", "join", "lambda", "dict"] * (depth > 0))
    )
    quote = draw(st.sampled_from(QUOTES))
    if kind == "number":
        return plain("n", 7)
    if kind == "item":
        return plain(f"d[{quote}k{quote}]", "v")
    if kind == "string":
        body, value = draw(st.sampled_from([("x", "x"), ("{", "{"), ("\\n", "\n"), ("#", "#"), ("\\'\\\"", "'\"")]))
        return plain(f"{quote}{body}{quote}", value)
    one = draw(f_strings(depth))
    if kind == "f_string":
        return one
    if kind == "pair":
        two = draw(f_strings(depth))
        gap, shown_gap = draw(st.sampled_from(GAPS))
        return Source(one.code + gap + two.code, one.shown + shown_gap + two.shown, one.value + two.value)
    if kind == "join":
        return plain(f"{quote}-{quote}.join([{one.code}, 'b'])", f"{one.value}-b")
    if kind == "lambda":
        return plain(f"(lambda n=1: {one.code})()", one.value) if "n" not in one.code else one
    return plain(f"{{1: {one.code}}}[1]", one.value)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="3.12.1 and 3.13.0 print f\"{'#'=}\" wrong themselves")
@settings(max_examples=300, deadline=None)
@given(f_strings())
def test_any_f_string_means_the_same(source: Source) -> None:
    cell = f"v = ({source.code}\n)\nassert v is not None\n"

    rewritten = for_python_before_312(cell)

    assert run(rewritten)["v"] == source.value
    assert rewritten.count("\n") == cell.count("\n")
