"""Guesses per remote address: a few at once, then one now and again."""

import ipaddress
import math

from gateway.errors import Exhausted
from gateway.services.buckets import Buckets

_AT_ONCE = 20.0
_PER_S = 0.2


class TooManyGuesses(Exhausted):
    code = "too_many_guesses"

    def __init__(self, wait_s: float) -> None:
        super().__init__("Too many wrong keys came from this address.", retry_after_s=max(1, math.ceil(wait_s)))


class Throttle:
    """Remembers addresses that guessed wrong, a bounded number of them: the one longest quiet is forgotten first."""

    def __init__(self) -> None:
        self._guesses = Buckets()

    def __len__(self) -> int:
        return len(self._guesses)

    def check(self, remote: str) -> None:
        """Raises `TooManyGuesses` when this address has none left."""
        left = self._guesses.left(_network(remote), _PER_S, _AT_ONCE)
        if left < 1:
            raise TooManyGuesses((1 - left) / _PER_S)

    def failed(self, remote: str) -> None:
        self._guesses.spend(_network(remote), _PER_S, _AT_ONCE)


def _network(remote: str) -> str:
    """IPv6 is handed out by the /64: who has one address has all of them."""
    try:
        address = ipaddress.ip_address(remote)
    except ValueError:
        return remote[:64]
    if address.version == 4:
        return remote
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
