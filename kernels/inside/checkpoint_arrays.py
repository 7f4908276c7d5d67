"""Arrays and frames: who shares memory with whom stays as it was."""

from __future__ import annotations

import array as arrays
import mmap
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

from . import checkpoint_rebuild as rebuild
from .checkpoint_kinds import CannotCarry, module_of, qualname_of

_SERIES_MEMORY = "pandas.core.internals.managers.SingleBlockManager"


class ArrayRules:
    """The recipes for numpy's arrays, and for the memory of pandas."""

    def __init__(self, stock: Callable[[Any], Any], warnings: dict[str, None]) -> None:
        self._stock = stock
        self._warnings = warnings
        self._own_memory: dict[int, Any] = {}
        """Arrays that are written apart from what they were made from. They live as long as the pickler's memo."""

    def rule_for(self, cls: Any) -> Callable[[Any], Any] | None:
        numpy, internals = sys.modules.get("numpy"), sys.modules.get("pandas._libs.internals")
        if cls is getattr(numpy, "ndarray", None):
            return self._array
        if cls is getattr(numpy, "memmap", None):
            return self._array_file
        if internals is not None and issubclass(cls, getattr(internals, "Block", ())):
            return self._block
        if f"{module_of(cls)}.{qualname_of(cls)}" == _SERIES_MEMORY:
            return lambda memory: (cls, (memory.blocks[0], memory.axes[0]))  # its own recipe passes by the block's
        return None

    def _array(self, array: Any) -> Any:
        """An array that shows a part of another stays one, so that a change in either is seen in both."""
        numpy = sys.modules["numpy"]
        if id(array) in self._own_memory or array.base is None or not array.size:
            return self._stock(array)
        base: Any = array.base.obj if type(array.base) is memoryview else array.base
        if isinstance(base, (bytes, bytearray, arrays.array)):
            return self._view(array, base, numpy.frombuffer(base, "u1"))
        if type(base) in (numpy.ndarray, numpy.memmap) and (base.flags.c_contiguous or base.flags.f_contiguous):
            return self._view(array, base, base)
        if not isinstance(base, (mmap.mmap, pickle.PickleBuffer)) and not module_of(type(base)).startswith("sklearn."):
            self._warnings["Some arrays no longer share their memory with what they were made from."] = None
        return self._stock(array)

    def _view(self, array: Any, base: Any, owner: Any) -> Any:
        offset = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
        place = (array.shape, array.strides, array.dtype, offset, array.flags.writeable)
        return rebuild.array_view, (base, *place, type(array))

    def _array_file(self, array: Any) -> Any:
        if array.filename is None:
            raise CannotCarry("the file that it maps is not known")
        if isinstance(array.base, sys.modules["numpy"].ndarray):
            return self._view(array, array.base, array.base)
        how = (os.fspath(array.filename), array.dtype, array.mode, array.offset, array.shape)
        return rebuild.array_file, (*how, not array.flags.c_contiguous)

    def _block(self, block: Any) -> Any:
        """The memory of a frame. Where pandas copies on write, what is shared for now must not be shared for ever."""
        made = self._stock(block)
        pandas = sys.modules["pandas"]
        if int(pandas.__version__.split(".")[0]) < 3 and not pandas.options.mode.copy_on_write:
            return made
        values, *others = made[1]
        own = values.view() if type(values) is sys.modules["numpy"].ndarray else values.copy()
        self._own_memory[id(own)] = own
        return (made[0], (own, *others), *made[2:])
