"""What one owner of sessions may use at once, or in a day."""

from typing import Annotated

from pydantic import BaseModel, Field

MOST = 1_000_000

MostKernels = Annotated[int, Field(ge=0, le=MOST)] | None
CpuSeconds = Annotated[float, Field(ge=0, le=1e9)] | None
DiskBytes = Annotated[int, Field(ge=0, lt=2**63)] | None


class Quotas(BaseModel):
    """Those of the key that made a session; None is the gateway's setting. They bind whoever runs in it."""

    most_kernels: int | None = None
    cpu_seconds_per_day: float | None = None
    disk_bytes: int | None = None
