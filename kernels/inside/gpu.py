"""Whether this process computes on a GPU. Asks only what the session has imported, and imports nothing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/render")


def _jax(bridge: Any) -> bool:
    return any(name != "cpu" for name in bridge._backends)


def _tensorflow(context: Any) -> bool:
    return context._context is not None and bool(context._context._initialized)


_LIBRARIES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "torch": ("PyTorch", lambda torch: torch.cuda.is_initialized()),
    "cupy": ("CuPy", lambda cupy: True),
    "jax._src.xla_bridge": ("JAX", _jax),
    "tensorflow.python.eager.context": ("TensorFlow", _tensorflow),
    "numba.cuda.cudadrv.driver": ("Numba", lambda driver: driver.driver.is_initialized),
    "pycuda.driver": ("PyCUDA", lambda driver: True),
}


def gpu_in_use() -> str | None:
    """By which library, as far as it can be told; None if there is no GPU in use."""
    for name, (title, used) in _LIBRARIES.items():
        module = sys.modules.get(name)
        if module is not None:
            with contextlib.suppress(Exception):  # another module of that name
                if used(module):
                    return title
    with contextlib.suppress(OSError):
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{fd}").startswith(_DEVICES):
                    return "A library"
    return None
