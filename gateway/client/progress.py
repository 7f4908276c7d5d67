"""How far something has got that takes a while: a bar (with tqdm), or whatever the caller wants to do about it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Told = Callable[[int, int | None], object]
Progress = bool | Told


@contextmanager
def told(progress: Progress, what: str, total_bytes: int | None) -> Iterator[Told]:
    """What is called with the bytes so far and the bytes in all (None if that is not known).

    `progress` is True for a bar, or is called itself. Raises `ModuleNotFoundError` for a bar without tqdm.
    """
    if progress is False:
        yield _nobody
    elif callable(progress):
        yield progress
    else:
        with _bar(what, total_bytes) as bar:
            yield bar


@contextmanager
def _bar(what: str, total_bytes: int | None) -> Iterator[Told]:
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError:
        raise ModuleNotFoundError("progress=True needs tqdm: pip install 'session-gateway[progress]'") from None

    with tqdm(desc=what, total=total_bytes, unit="B", unit_scale=True, unit_divisor=1024) as bar:

        def show(so_far: int, total: int | None) -> None:
            if total is not None and bar.total != total:
                bar.total = total
            bar.update(so_far - bar.n)

        yield show


def _nobody(so_far: int, total: int | None) -> None:
    """Is told nothing."""
