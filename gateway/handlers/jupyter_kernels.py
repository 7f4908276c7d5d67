"""Jupyter's kernels and sessions over HTTP."""

from gateway.errors import GatewayError
from gateway.handlers.base import Operation
from gateway.handlers.jupyter import JupyterHandler
from gateway.models.access import Need
from gateway.models.jupyter import (
    ChangeSession,
    KernelList,
    KernelModel,
    SessionModel,
    SessionModelList,
    StartKernel,
    StartSession,
)  # fmt: skip
from gateway.models.sessions import Session
from gateway.services.jupyter import JupyterSessionNotFound, KernelNotFound


class OfKernelHandler(JupyterHandler):
    async def asked_session(self) -> Session:
        return await self.services.jupyter.find(self.path_kwargs["kernel_id"])

    def no_such_session(self) -> GatewayError:
        return KernelNotFound(self.path_kwargs["kernel_id"])

    @property
    def audited_session_id(self) -> str | None:
        """Of the session while it is here; what deletes it tells by itself."""
        kernel_id = self.path_kwargs["kernel_id"]
        return next((live.session.id for live in self.services.live if live.session.kernel_id == kernel_id), None)


class KernelsHandler(JupyterHandler):
    """/jupyter/api/kernels"""

    operations = {
        "GET": Operation("Kernels: one for each session, also while it sleeps", KernelList, needs=Need.KEY),
        "POST": Operation(
            "A new session, and its kernel", KernelModel, 201, StartKernel, body_required=False, needs=Need.MAKE
        ),
    }

    async def get(self) -> None:
        self.send(KernelList(await self.services.jupyter.list_kernels(self.who)))

    async def post(self) -> None:
        kernel = await self.services.jupyter.start_kernel(self.body(StartKernel), self.who)
        self.set_header("Location", f"/jupyter/api/kernels/{kernel.id}")
        self.send(kernel, 201)


class KernelHandler(OfKernelHandler):
    """/jupyter/api/kernels/{kernel_id}"""

    operations = {
        "GET": Operation("A kernel", KernelModel, needs=Need.READ),
        "DELETE": Operation(
            "End a kernel: a session that Jupyter started is deleted, another sleeps", status=204, needs=Need.OWN
        ),
    }

    async def get(self, kernel_id: str) -> None:
        self.send(await self.services.jupyter.get_kernel(kernel_id))

    async def delete(self, kernel_id: str) -> None:
        await self.services.jupyter.delete_kernel(kernel_id)
        self.set_status(204)


class InterruptKernelHandler(OfKernelHandler):
    """/jupyter/api/kernels/{kernel_id}/interrupt"""

    operations = {"POST": Operation("Interrupt the cell that runs", status=204, needs=Need.RUN)}

    async def post(self, kernel_id: str) -> None:
        await self.services.jupyter.interrupt_kernel(kernel_id)
        self.set_status(204)


class RestartKernelHandler(OfKernelHandler):
    """/jupyter/api/kernels/{kernel_id}/restart"""

    operations = {
        "POST": Operation("Restart a kernel, without any variables; files are kept", KernelModel, needs=Need.RUN)
    }

    async def post(self, kernel_id: str) -> None:
        self.send(await self.services.jupyter.restart_kernel(kernel_id))


class JupyterSessionsHandler(JupyterHandler):
    """/jupyter/api/sessions"""

    operations = {
        "GET": Operation("Notebooks that are open, and sessions that could be", SessionModelList, needs=Need.KEY),
        "POST": Operation(
            "Open a notebook, on a kernel that is there or a new one", SessionModel, 201, StartSession, needs=Need.MAKE
        ),
    }

    async def get(self) -> None:
        self.send(SessionModelList(await self.services.jupyter.list_sessions(self.who)))

    async def post(self) -> None:
        opened = await self.services.jupyter.start_session(self.body(StartSession), self.who)
        self.set_header("Location", f"/jupyter/api/sessions/{opened.id}")
        self.send(opened, 201)


class JupyterSessionHandler(JupyterHandler):
    """/jupyter/api/sessions/{opened_id}"""

    operations = {
        "GET": Operation("A notebook that is open", SessionModel, needs=Need.READ),
        "PATCH": Operation("Rename it, or open it on another kernel", SessionModel, body=ChangeSession, needs=Need.RUN),
        "DELETE": Operation("Close it, and end its kernel", status=204, needs=Need.OWN),
    }

    async def asked_session(self) -> Session:
        return await self.services.jupyter.find_opened(self.path_kwargs["opened_id"], self.who)

    def no_such_session(self) -> GatewayError:
        return JupyterSessionNotFound(self.path_kwargs["opened_id"])

    async def get(self, opened_id: str) -> None:
        self.send(await self.services.jupyter.get_session(opened_id, self.who))

    async def patch(self, opened_id: str) -> None:
        changed = await self.services.jupyter.change_session(opened_id, self.body(ChangeSession), self.who)
        self.send(changed)

    async def delete(self, opened_id: str) -> None:
        await self.services.jupyter.delete_session(opened_id, self.who)
        self.set_status(204)
