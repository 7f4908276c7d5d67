"""Token buckets by name, a bounded number of them."""

import time
from collections import OrderedDict

_MOST_REMEMBERED = 10_000


class Buckets:
    """The one longest unused is forgotten first, and is full again."""

    def __init__(self, most: int = _MOST_REMEMBERED) -> None:
        self._most = most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, as of when

    def __len__(self) -> int:
        return len(self._left)

    def left(self, name: str, per_s: float, burst: float) -> float:
        at = time.monotonic()
        left, since = self._left.get(name, (burst, at))
        return min(burst, left + (at - since) * per_s)

    def spend(self, name: str, per_s: float, burst: float) -> None:
        """Take a token, whether there is one or not."""
        self._left[name] = (self.left(name, per_s, burst) - 1, time.monotonic())
        self._left.move_to_end(name)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
