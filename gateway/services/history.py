"""What a session has run, for who goes through all of it."""

from collections.abc import AsyncIterator

from gateway.models.executions import Execution
from gateway.models.pages import PageRequest
from gateway.stores.base import Store


async def ended_runs(store: Store, uid: str) -> AsyncIterator[Execution]:
    """Runs that have begun and ended, newest first."""
    page = PageRequest(limit=1000)
    while True:
        found = await store.list_executions(uid, page)
        for run in found.items:
            if run.started_at is not None and run.finished_at is not None:
                yield run
        if found.next_token is None:
            return
        page = PageRequest(limit=1000, token=found.next_token)
