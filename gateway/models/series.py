"""What runs one after another, as it is kept for who asks for it once the gateway that ran it is gone."""

from typing import Any, Literal

from pydantic import BaseModel

from gateway.models.base import Utc
from gateway.models.notebooks import SeriesStatus

SeriesKind = Literal["notebook", "replay"]


class KeptSeries(BaseModel):
    """`asked` is what there is to run; what came of it is in the history, each run under the series' id and its place.

    `gateway_id` is that of the gateway that runs it, while it is `running`.
    """

    kind: SeriesKind
    id: str
    gateway_id: str
    asked: dict[str, Any]
    started_at: Utc
    status: SeriesStatus = SeriesStatus.RUNNING
    reason: str | None = None
    finished_at: Utc | None = None


def run_id(series_id: str, index: int) -> str:
    """The id of one of its runs."""
    return f"{series_id}-{index}"
