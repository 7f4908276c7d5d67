"""Is it alive, is it ready, what does it count, what does a session use."""

from importlib.metadata import version
from typing import Literal

from gateway import metrics
from gateway.errors import GatewayError
from gateway.handlers.base import ApiHandler, Operation
from gateway.models.access import Need
from gateway.models.queries import Health, KernelsAnswer, LogsQuery, LogView, Ready, SessionMetrics


class HealthHandler(ApiHandler):
    """GET /api/health: the process lives."""

    takes_any_query = True
    operations = {"GET": Operation("The gateway lives", Health, needs=Need.OPEN)}

    def get(self) -> None:
        self.send(Health(version=version("session-gateway")))


class ReadyHandler(ApiHandler):
    """GET /api/ready: store and kernels are usable."""

    takes_any_query = True
    operations = {
        "GET": Operation(
            "Store and kernels are usable",
            Ready,
            also={503: "They are not"},
            also_answers={503: Ready},
            needs=Need.OPEN,
        )
    }

    async def get(self) -> None:
        services = self.services
        store, kernels = "ok", "ok"
        try:
            await services.store.ping()
            services.recorder.check()
        except GatewayError as error:
            store = error.sentence
        if services.live.stopping:
            kernels = "The gateway is stopping."
        elif not services.sessions.kernelspecs():
            kernels = "No kernelspec is installed."
        ready = store == kernels == "ok"
        if not ready:
            self.set_header("Retry-After", "2")
        status: Literal["ready", "not_ready"] = "ready" if ready else "not_ready"
        answer = Ready(status=status, store=store, kernels=kernels, live_kernels=services.live.kernel_count)
        self.send(answer, 200 if ready else 503)


class KernelsHandler(ApiHandler):
    """GET /api/kernels: what can run here."""

    operations = {"GET": Operation("Installed kernels", KernelsAnswer, needs=Need.KEY)}

    def get(self) -> None:
        specs = self.services.sessions.kernelspecs()
        kernels = {name: {"display_name": spec.display_name, "language": spec.language} for name, spec in specs.items()}
        self.send(KernelsAnswer(default="python3", kernels=kernels))


class MetricsHandler(ApiHandler):
    """GET /metrics, for Prometheus."""

    takes_any_query = True
    operations = {"GET": Operation("What the gateway counts, for Prometheus", "text/plain", needs=Need.MONITOR)}

    def get(self) -> None:
        self.set_header("Content-Type", metrics.CONTENT_TYPE)
        self.finish(self.services.metrics.text())


class LogsHandler(ApiHandler):
    """/api/sessions/{session_id}/logs"""

    operations = {
        "GET": Operation(
            "The end of the kernel's own output, or of its setup's", LogView, query=LogsQuery, needs=Need.READ
        )
    }

    async def get(self, session_id: str) -> None:
        query, session_id = self.query(LogsQuery), self.session_id(session_id)
        session = await self.services.sessions.get(session_id)
        text = await self.services.sessions.logs(session_id, query.source, query.limit_bytes)
        self.send(LogView(source=query.source, text=text, setup_status=session.setup_status))


class SessionMetricsHandler(ApiHandler):
    """/api/sessions/{session_id}/metrics"""

    operations = {"GET": Operation("What a session uses", SessionMetrics, needs=Need.READ)}

    async def get(self, session_id: str) -> None:
        self.send(SessionMetrics(**await self.services.sessions.metrics(self.session_id(session_id))))
