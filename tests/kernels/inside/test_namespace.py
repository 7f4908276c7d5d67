import base64
import collections
import dataclasses
import datetime
import enum
import json
import math
import subprocess
import sys
import threading
import time
import types
import unittest.mock
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, ClassVar, NoReturn

import pytest

from kernels.inside.namespace import (
    MOST_VARIABLES,
    PREVIEW_CHARS,
    VALUE_CHARS,
    delete_variable,
    get_variable,
    list_variables,
    set_variable,
)


def listed(obj: Any) -> dict[str, Any]:
    (variable,) = list_variables({"x": obj}, set())
    json.dumps(variable, allow_nan=False).encode()
    assert len(variable["preview"]) <= PREVIEW_CHARS
    return variable


def looked_at(obj: Any, offset: int = 0, limit: int = 100) -> dict[str, Any]:
    variable = get_variable({"x": obj}, "x", offset, limit)
    assert len(json.dumps(variable, allow_nan=False)) < VALUE_CHARS * 1.1
    return variable


class Color(enum.IntEnum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int
    y: int


class RaisesEverywhere:
    """Every way of looking at it fails."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise RuntimeError(name)

    def __repr__(self) -> NoReturn:
        raise SystemExit

    __len__ = __str__ = __sizeof__ = __hash__ = __iter__ = __bool__ = __repr__

    def __eq__(self, other: object) -> NoReturn:
        raise KeyboardInterrupt


class Exits:
    """And takes the kernel with it, if it can."""

    def __repr__(self) -> NoReturn:
        sys.exit("no")


class ReturnsNoText:
    def __repr__(self) -> str:
        return 1  # type: ignore[return-value]


class Recurses:
    def __repr__(self) -> str:
        return f"<{self!r}>"


class Prints:
    def __repr__(self) -> str:
        print("printed by a repr")
        return "<prints>"


class Huge:
    def __repr__(self) -> str:
        return "x" * 5_000_000


class Surrogate:
    def __repr__(self) -> str:
        return "\ud800"


class Lies:
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return dict


class NoLength:
    def __len__(self) -> int:
        return -1


class HostileList(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise ValueError

    def __len__(self) -> int:
        raise ValueError

    def __getitem__(self, index: Any) -> Any:
        raise ValueError


class Text(str):
    def __getitem__(self, index: Any) -> NoReturn:
        raise ValueError

    def __str__(self) -> NoReturn:
        raise ValueError


def odd_class() -> Any:
    """A class that fails in every way; pytest itself would stumble over it in this module."""

    def fail(*args: Any) -> NoReturn:
        raise ValueError

    names = ["__repr__", "__eq__", "__hash__", "__instancecheck__", "__subclasscheck__", "__len__"]
    meta = type(
        "Meta", (type,), {**dict.fromkeys(names, fail), "__mro__": property(fail), "__module__": property(fail)}
    )
    return meta("OddClass", (), {"__slots__": ()})


ODD: dict[str, Callable[[], Any]] = {
    "raises everywhere": RaisesEverywhere,
    "exits": Exits,
    "returns no text": ReturnsNoText,
    "recurses": Recurses,
    "prints": Prints,
    "huge": Huge,
    "surrogate": Surrogate,
    "lies": Lies,
    "no length": NoLength,
    "hostile list": lambda: HostileList([1]),
    "hostile text": lambda: Text("abc"),
    "odd class": odd_class,
    "object of an odd class": lambda: odd_class()(),
    "half a surrogate pair": lambda: {"\ud800": "\ud800"},
    "odd object as an attribute": lambda: types.SimpleNamespace(a=Exits()),
    "odd object as a key": lambda: {odd_class: RaisesEverywhere()},
    "bare module": lambda: types.ModuleType("m"),
    "generator": lambda: (i for i in "ab"),
    "type": lambda: type,
    "mock": unittest.mock.MagicMock,
    "descriptor": lambda: type.__dict__["__mro__"],
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_no_object_is_too_odd_to_look_at(make: Callable[[], Any]) -> None:
    obj = make()

    variable = listed(obj)
    value = looked_at(obj)
    inside = looked_at([obj, {"key": obj}])

    assert variable["name"] == "x"
    assert variable["preview"]
    assert variable["type"]
    assert value["type"] == variable["type"]
    assert len(inside["value"]) == 2


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (None, {"type": "NoneType", "shape": None, "preview": "None"}),
        (3, {"type": "int", "shape": None, "preview": "3", "size_bytes": sys.getsizeof(3)}),
        ("it's", {"type": "str", "shape": None, "preview": '"it\'s"'}),
        ([1, "a"], {"type": "list", "shape": [2], "preview": "[1, 'a']"}),
        ((1,), {"type": "tuple", "shape": [1], "preview": "(1,)"}),
        (set(), {"type": "set", "shape": [0], "preview": "set()"}),
        (frozenset([1]), {"type": "frozenset", "shape": [1], "preview": "frozenset({1})"}),
        ({"a": [1, {}]}, {"type": "dict", "shape": [1], "preview": "{'a': [1, {}]}"}),
        ({}.keys(), {"type": "dict_keys", "shape": [0], "preview": "dict_keys([])"}),
        (collections.deque([1]), {"type": "collections.deque", "shape": [1], "preview": "deque([1])"}),
        (collections.Counter("aab"), {"type": "collections.Counter", "preview": "Counter({'a': 2, 'b': 1})"}),
        (collections.OrderedDict(a=1), {"type": "collections.OrderedDict", "preview": "OrderedDict({'a': 1})"}),
        (range(5), {"type": "range", "shape": [5], "preview": "range(0, 5)"}),
        (Point(1, 2), {"type": f"{__name__}.Point", "shape": None, "preview": "Point(x=1, y=2)"}),
        (Point, {"type": "type", "preview": f"<class '{__name__}.Point'>"}),
        (json, {"type": "module", "preview": "<module 'json'>", "shape": None}),
        (len, {"type": "builtin_function_or_method", "preview": "<built-in function len>"}),
    ],
)
def test_what_a_variable_looks_like(obj: Any, expected: dict[str, Any]) -> None:
    assert {**listed(obj), **expected} == listed(obj)


def test_the_list_has_the_users_names_and_no_others() -> None:
    ns = {"b": 1, "a": list_variables, "json": json, "Point": Point, "_private": 1, "__builtins__": {}, 3: 4}
    ns.update(dict.fromkeys(["In", "Out", "exit", "quit", "get_ipython", "_i1", "_", "secret"]))

    variables = list_variables(ns, {"secret"})

    assert [variable["name"] for variable in variables] == ["Point", "a", "b", "json"]


def test_the_list_comes_in_pages() -> None:
    ns = {f"v{i:04}": i for i in range(MOST_VARIABLES + 5)}

    assert len(list_variables(ns, set())) == MOST_VARIABLES
    assert [variable["name"] for variable in list_variables(ns, set(), offset=1003, limit=1)] == ["v1003"]
    assert len(list_variables(ns, set(), offset=-1, limit=-1)) == 0


def test_nested_containers_and_those_that_hold_themselves_are_cut() -> None:
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    own: dict[str, Any] = {"n": 1}
    own["own"] = own

    assert listed(deep)["preview"] == "[[[[[…]]]]]"
    assert listed(own)["preview"].startswith("{'n': 1, 'own': {'n': 1, 'own': {")
    assert looked_at(own)["value"]["n"] == 1
    assert looked_at(own)["exact"] is False
    assert looked_at(deep)["exact"] is False


@pytest.mark.parametrize(
    "obj",
    [
        list(range(3_000_000)),
        dict.fromkeys(range(1_000_000)),
        set(range(1_000_000)),
        "x" * 50_000_000,
        bytes(50_000_000),
        [["y" * 1_000] * 1_000] * 1_000,
        range(10**15),
        collections.Counter(range(300_000)),
        10**100_000,
    ],
    ids=["list", "dict", "set", "str", "bytes", "nested", "range", "counter", "int"],
)
def test_a_huge_object_is_looked_at_quickly(obj: Any) -> None:
    started = time.perf_counter()

    listed(obj)
    assert time.perf_counter() - started < 0.25  # 1 ms, where nothing else runs
    looked_at(obj, limit=10**9)
    assert time.perf_counter() - started < 5


def test_reprs_that_take_long_are_not_called_for_ever() -> None:
    class Slow:
        def __repr__(self) -> str:
            time.sleep(0.3)
            return "<slow>"

    started = time.perf_counter()

    previews = [variable["preview"] for variable in list_variables({f"s{i}": Slow() for i in range(50)}, set())]

    assert time.perf_counter() - started < 5
    assert previews[0] == "<slow>"
    assert previews[-1].endswith("Slow object>")


def test_sizes_are_estimated_from_a_sample() -> None:
    texts = ["x" * 1_000 + str(i) for i in range(10_000)]
    size_bytes = 10_000 * sys.getsizeof(texts[0]) + sys.getsizeof(texts)

    assert listed(texts)["size_bytes"] == pytest.approx(size_bytes, rel=0.02)
    assert listed(types.SimpleNamespace(texts=texts))["size_bytes"] == pytest.approx(size_bytes, rel=0.02)
    assert listed([[]] * 1_000)["size_bytes"] < 50_000
    assert listed({1: texts, 2: texts})["size_bytes"] > size_bytes


@pytest.mark.parametrize(
    "value",
    [None, True, 3, -(2**70), 1.5, "é😀\x00", "", [], {}, [1, [2.5, {"a": None}]], {"a": {"b": [False]}}],
    ids=repr,
)
def test_json_comes_back_as_it_is(value: Any) -> None:
    variable = looked_at(value)

    assert variable["value"] == value
    assert type(variable["value"]) is type(value)
    assert variable["exact"] is True
    assert variable["truncated"] is False


MOMENT = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("obj", "value", "exact"),
    [
        (math.nan, None, False),
        (math.inf, None, False),
        ([1.0, math.nan, -math.inf], [1.0, None, None], False),
        ((1, (2,)), [1, [2]], True),
        ({"a": {3}}, {"a": [3]}, True),
        (MOMENT, "2024-05-06T07:08:09+00:00", True),
        ([MOMENT.date(), MOMENT.time()], ["2024-05-06", "07:08:09"], True),
        ({"color": Color.RED}, {"color": 1}, True),
        (collections.defaultdict(list, a=[1]), {"a": [1]}, True),
        ({1: "a"}, {"1": "a"}, False),
        ({(1, 2): "a"}, {"(1, 2)": "a"}, False),
        (range(3), [0, 1, 2], True),
        ({"a": 1}.items(), [["a", 1]], True),
        ([b"ab"], [{"base64": "YWI="}], True),
        (Point(1, 2), None, False),
        ([Point(1, 2)], ["Point(x=1, y=2)"], False),
        (Decimal("1.10"), None, False),
        (1j, None, False),
    ],
    ids=str,
)
def test_other_values_are_told_in_json(obj: Any, value: Any, exact: bool) -> None:
    variable = looked_at(obj)

    assert variable["value"] == value
    assert variable["exact"] is exact
    assert variable["truncated"] is False


def test_methods_that_the_user_redefined_do_not_matter() -> None:
    assert looked_at(HostileList([1, Text("abc")]))["value"] == [1, "abc"]
    assert listed(HostileList([1]))["shape"] == [1]


def test_half_a_surrogate_pair_is_told_as_its_escape() -> None:
    assert (looked_at("\ud800")["value"], looked_at("\ud800")["exact"]) == ("\\ud800", False)


def test_a_number_that_python_would_not_write_is_told_by_its_size() -> None:
    assert listed(10**5000)["preview"] == "<int of 16610 bits>"
    assert (looked_at(10**5000)["value"], looked_at(10**5000)["exact"]) == (None, False)


def test_bytes_are_base64_and_say_so() -> None:
    variable = looked_at(bytearray(b"\x00\xff"))

    assert base64.b64decode(variable["value"]) == b"\x00\xff"
    assert variable["encoding"] == "base64"


@pytest.mark.parametrize(
    "obj", [list(range(10)), tuple(range(10)), range(10), collections.deque(range(10)), set(range(10))]
)
def test_what_has_items_comes_in_pages(obj: Any) -> None:
    variable = looked_at(obj, offset=4, limit=3)

    assert variable["value"] == [4, 5, 6]
    assert (variable["total"], variable["offset"], variable["limit"]) == (10, 4, 3)
    assert variable["truncated"] is False
    assert looked_at(obj, offset=20)["value"] == []
    assert looked_at(obj, offset=-3, limit=-3)["value"] == []


def test_a_dict_comes_in_pages() -> None:
    variable = looked_at({str(i): i for i in range(10)}, offset=8)

    assert variable["value"] == {"8": 8, "9": 9}
    assert variable["total"] == 10


@pytest.mark.parametrize(
    "obj",
    [
        "é" * 3_000_000,
        "\0" * 3_000_000,
        bytes(3_000_000),
        ["x" * 700_000] * 3,
        [[0.1] * 1_000] * 1_000,
        {"a": ["b"] * 10**6},
        [[None] * 10**6],
    ],
    ids=["text", "control_characters", "bytes", "texts", "numbers", "nested", "nulls"],
)
def test_a_value_of_megabytes_is_cut(obj: Any) -> None:
    variable = looked_at(obj, limit=10_000)

    assert variable["truncated"] is True
    assert len(json.dumps(variable["value"])) > VALUE_CHARS / 4


def test_a_variable_that_is_not_there_is_missing() -> None:
    assert get_variable({}, "x", 0, 10) == {"error": "missing"}
    assert delete_variable({}, "x") == {"error": "missing"}


def test_a_variable_is_set_and_deleted() -> None:
    ns: dict[str, Any] = {}

    described = set_variable(ns, "x", [1, 2])
    assert ns == {"x": [1, 2]}
    assert described == list_variables(ns, set())[0]

    assert delete_variable(ns, "x") == {"name": "x"}
    assert ns == {}


def test_a_name_is_the_one_that_code_would_use() -> None:
    ns: dict[str, Any] = {}

    set_variable(ns, "ﬁle", 1)

    assert ns == {"file": 1}


@pytest.mark.parametrize(
    "name", ["", "1x", "a b", "a.b", "class", "None", "__builtins__", "get_ipython", "In", 3, None]
)
def test_what_is_no_name_cannot_be_set(name: Any) -> None:
    ns: dict[str, Any] = {"In": [], "__builtins__": {}}

    assert set_variable(ns, name, 1) == {"error": "name"}
    assert delete_variable(ns, name) == {"error": "name"}
    assert ns == {"In": [], "__builtins__": {}}


def test_nothing_is_changed_by_looking() -> None:
    class Counts:
        calls: ClassVar[list[str]] = []

        def __getattr__(self, name: str) -> NoReturn:
            self.calls.append(name)
            raise AttributeError(name)

    missing: dict[str, Any] = collections.defaultdict(list)
    generator = (i for i in range(3))
    ns = {"missing": missing, "generator": generator, "counts": Counts()}

    list_variables(ns, set())
    for name in ns:
        get_variable(ns, name, 0, 10)

    assert not missing
    assert list(generator) == [0, 1, 2]
    assert Counts.calls == []
    assert list(ns) == ["missing", "generator", "counts"]


def test_a_running_cell_may_change_everything_meanwhile() -> None:
    ns: dict[str, Any] = {"d": {}, "s": set(), "l": []}
    stopped = threading.Event()

    def cell() -> None:
        i = 0
        while not stopped.is_set():
            i += 1
            ns[f"v{i % 500}"] = i
            ns.pop(f"v{(i + 250) % 500}", None)
            ns["d"][i % 1000] = ns["d"].pop((i + 500) % 1000, i)
            ns["s"] ^= {i % 100}
            ns["l"][: i % 50] = [i] * (i % 60)

    thread = threading.Thread(target=cell)
    thread.start()
    try:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert {"d", "l", "s"} <= {variable["name"] for variable in list_variables(ns, set())}
            assert all("value" in get_variable(ns, name, 0, 50) for name in ("d", "s", "l"))
    finally:
        stopped.set()
        thread.join()


@pytest.fixture
def np() -> Any:
    return pytest.importorskip("numpy", reason="numpy is not installed here")


@pytest.fixture
def pd() -> Any:
    return pytest.importorskip("pandas", reason="pandas is not installed here")


@pytest.fixture
def pl() -> Any:
    return pytest.importorskip("polars", reason="polars is not installed here")


def test_numpy_and_pandas_are_not_imported_to_look() -> None:
    program = "from kernels.inside.namespace import *; list_variables({'x': [1]}); import sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert not {"numpy", "pandas", "inspect", "asyncio", "pydantic"} & set(result.stdout.split())


def test_an_array(np: Any) -> None:
    variable = looked_at(np.arange(12.0).reshape(6, 2), offset=4)

    assert variable["type"] == "numpy.ndarray"
    assert variable["shape"] == [6, 2]
    assert variable["size_bytes"] == 96
    assert variable["value"] == [[8.0, 9.0], [10.0, 11.0]]
    assert (variable["total"], variable["exact"]) == (6, True)
    assert variable["preview"].startswith("array([[ 0.,  1.],")


def test_arrays_of_every_kind(np: Any) -> None:
    cases: list[tuple[Any, Any, bool]] = [
        (np.float64(1.5), 1.5, True),
        (np.float32("nan"), None, False),
        (np.longdouble(2), 2.0, True),
        (np.int64(3), 3, True),
        (np.uint8(3), 3, True),
        (np.bool_(True), True, True),
        (np.str_("a"), "a", True),
        (np.datetime64("2024-05-06"), "2024-05-06", True),
        (np.array(5), 5, True),
        (np.array([1.0, np.nan]), [1.0, None], False),
        (np.array([True, False]), [True, False], True),
        (np.array(["a", "bc"]), ["a", "bc"], True),
        (np.array([1, "a", None, [2]], dtype=object), [1, "a", None, [2]], True),
        (np.array(["2024-05-06", "NaT"], dtype="datetime64[ns]"), ["2024-05-06T00:00:00.000000000", None], False),
        (np.array([1, 2], dtype=np.longdouble), [1.0, 2.0], True),
        (np.array([1, 2], dtype=np.float16), [1.0, 2.0], True),
        (np.ma.masked_array([1, 2], mask=[False, True]), [1, None], True),
        (np.zeros((0, 3)), [], True),
        (np.array([1j]), ["np.complex128(1j)"], False),
        ([np.array([[1], [2]]), np.int8(3)], [[[1], [2]], 3], True),
    ]

    for obj, value, exact in cases:
        variable = looked_at(obj)
        assert (variable["value"], variable["exact"]) == (value, exact), repr(obj)


def test_a_huge_array_is_looked_at_quickly(np: Any) -> None:
    np.set_printoptions(threshold=sys.maxsize)
    try:
        for obj in (
            np.zeros((4_000, 2_500)),
            np.zeros((1, 10_000_000)),
            np.zeros((2,) * 20),
            np.full((100, 10**4), None),
        ):
            started = time.perf_counter()
            assert listed(obj)["shape"] == list(obj.shape)
            assert time.perf_counter() - started < 0.5
            assert looked_at(obj, limit=10_000)["truncated"] is True
            assert time.perf_counter() - started < 10
    finally:
        np.set_printoptions(threshold=1000)


def test_an_array_with_methods_that_fail(np: Any) -> None:
    class Odd(np.ndarray):  # type: ignore[misc]
        def __getitem__(self, key: Any) -> NoReturn:
            raise ValueError

        @property
        def shape(self) -> NoReturn:
            raise ValueError

        @property
        def nbytes(self) -> NoReturn:
            raise ValueError

    variable = looked_at(np.zeros(3).view(Odd))

    assert variable["value"] is None
    assert variable["exact"] is False


def test_a_data_frame(pd: Any) -> None:
    frame = pd.DataFrame({"n": [1, 2, 3], "text": ["a", None, "c"]}, index=["x", "y", "z"])

    variable = looked_at(frame, offset=1, limit=5)

    assert variable["type"].endswith("DataFrame")
    assert variable["shape"] == [3, 2]
    assert variable["size_bytes"] == frame.memory_usage(deep=False).sum()
    assert variable["preview"] == "DataFrame, 3 x 2: n, text"
    assert variable["value"]["columns"] == ["n", "text"]
    assert variable["value"]["index"] == ["y", "z"]
    assert variable["value"]["rows"] == [[2, None], [3, "c"]]
    assert variable["total"] == 3


def test_a_data_frame_of_every_kind(pd: Any) -> None:
    frame = pd.DataFrame(
        {
            "time": pd.to_datetime(["2024-05-06T07:08:09", None]),
            "category": pd.Categorical(["a", "b"]),
            "maybe": pd.array([1, None], dtype="Int64"),
            "object": [{"a": 1}, Point(1, 2)],
            ("a", 1): [1.5, math.inf],
        }
    )
    frame["time"] = frame["time"].dt.tz_localize("UTC")

    variable = looked_at(frame)

    assert variable["value"] == {
        "columns": ["time", "category", "maybe", "object", ["a", 1]],
        "index": [0, 1],
        "rows": [
            ["2024-05-06T07:08:09+00:00", "a", 1, {"a": 1}, 1.5],
            [None, "b", None, "Point(x=1, y=2)", None],
        ],
    }
    assert variable["exact"] is False
    assert looked_at(frame[["category"]])["exact"] is True


def test_a_series_and_an_index(pd: Any) -> None:
    series = pd.Series([1.5, 2.5], name="n", index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]))

    assert looked_at(series)["value"] == {"columns": ["n"], "index": [["a", 1], ["b", 2]], "rows": [[1.5], [2.5]]}
    assert looked_at(series)["preview"] == "Series, 2: [1.5, 2.5]"
    assert looked_at(series.rename(None))["value"]["columns"] == [None]
    assert looked_at(pd.date_range("2024-05-06", periods=40))["shape"] == [40]
    assert looked_at(pd.Index(["a", "b"]), offset=1)["value"] == ["b"]
    assert looked_at(pd.Timestamp("2024-05-06"))["value"] == "2024-05-06T00:00:00"
    assert looked_at([pd.NaT, pd.NA, pd.Timedelta(1)])["value"][:2] == [None, None]


def test_a_huge_data_frame_is_looked_at_quickly(np: Any, pd: Any) -> None:
    for obj in (
        pd.DataFrame(np.zeros((1_000_000, 10))),
        pd.DataFrame(np.zeros((10, 100_000))),
        pd.DataFrame({"text": ["x" * 100_000] * 1_000}),
        pd.Series(["x" * 1_000] * 1_000_000),
    ):
        started = time.perf_counter()
        assert listed(obj)["shape"] == list(obj.shape)
        assert time.perf_counter() - started < 0.5
        assert looked_at(obj, limit=10**9)["truncated"] is True
        assert time.perf_counter() - started < 10


def test_empty_tables(pd: Any) -> None:
    assert looked_at(pd.DataFrame())["value"] == {"columns": [], "index": [], "rows": []}
    assert looked_at(pd.DataFrame(index=[1, 2]))["value"] == {"columns": [], "index": [1, 2], "rows": [[], []]}


def test_a_data_frame_with_a_column_named_like_an_attribute(pd: Any) -> None:
    frame = pd.DataFrame({"shape": [1], "columns": [2], "iloc": [3]})

    assert looked_at(frame)["value"]["rows"] == [[1, 2, 3]]


def test_a_polars_frame(pl: Any) -> None:
    frame = pl.DataFrame({"n": [1, 2, 3], "text": ["a", None, "c"], "list": [[1.0], [], [math.nan]]})

    variable = looked_at(frame, offset=1, limit=1)

    assert variable["type"].endswith("DataFrame")
    assert variable["shape"] == [3, 3]
    assert variable["preview"] == "DataFrame, 3 x 3: n, text, list"
    assert variable["value"] == {"columns": ["n", "text", "list"], "index": [1], "rows": [[2, None, []]]}
    assert variable["total"] == 3
    assert looked_at(frame["n"], offset=2)["value"] == {"columns": ["n"], "index": [2], "rows": [[3]]}
    assert looked_at(frame)["exact"] is False
    assert looked_at(frame.lazy())["value"] is None
