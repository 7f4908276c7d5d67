"""What the gateway counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_RUN_SECONDS = (0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """One registry a gateway, so that two in one process don't mix."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "gateway_http_requests", "Answered requests", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "gateway_http_request_seconds", "From request to answer", ["route"], buckets=_RUN_SECONDS, registry=registry
        )
        self.runs = Counter("gateway_runs", "Finished runs", ["status"], registry=registry)
        self.run_seconds = Histogram(
            "gateway_run_seconds", "From start to end of a cell", buckets=_RUN_SECONDS, registry=registry
        )
        self.queued = Gauge("gateway_runs_queued", "Runs that wait for their turn", registry=registry)
        self.kernels = Gauge("gateway_kernels", "Kernels that run", registry=registry)
        self.kernel_starts = Counter("gateway_kernel_starts", "Kernels started", ["outcome"], registry=registry)
        self.kernel_start_seconds = Histogram(
            "gateway_kernel_start_seconds", "From launch to attached", buckets=_RUN_SECONDS, registry=registry
        )
        self.kernel_deaths = Counter("gateway_kernel_deaths", "Kernels that ended by themselves", registry=registry)
        self.store_up = Gauge("gateway_store_up", "Whether the store answers", registry=registry)
        self.store_up.set(1)
        self.store_backlog = Gauge("gateway_store_backlog", "Writes that wait for the store", registry=registry)
        self.audit_dropped = Counter(
            "gateway_audit_lines_dropped", "Audit lines lost because too many waited", registry=registry
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)
