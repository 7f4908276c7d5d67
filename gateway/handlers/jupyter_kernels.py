"""Jupyter's kernels and sessions over HTTP."""

from gateway.handlers.base import Operation
from gateway.handlers.jupyter import JupyterHandler
from gateway.models.jupyter import (
    ChangeSession,
    KernelList,
    KernelModel,
    SessionModel,
    SessionModelList,
    StartKernel,
    StartSession,
)  # fmt: skip


class KernelsHandler(JupyterHandler):
    """/jupyter/api/kernels"""

    operations = {
        "GET": Operation("Kernels: one for each session, also while it sleeps", KernelList),
        "POST": Operation("A new session, and its kernel", KernelModel, 201, StartKernel, body_required=False),
    }

    async def get(self) -> None:
        self.send(KernelList(await self.services.jupyter.list_kernels()))

    async def post(self) -> None:
        kernel = await self.services.jupyter.start_kernel(self.body(StartKernel), self.caller)
        self.set_header("Location", f"/jupyter/api/kernels/{kernel.id}")
        self.send(kernel, 201)


class KernelHandler(JupyterHandler):
    """/jupyter/api/kernels/{kernel_id}"""

    operations = {
        "GET": Operation("A kernel", KernelModel),
        "DELETE": Operation("End a kernel: a session that Jupyter started is deleted, another sleeps", status=204),
    }

    async def get(self, kernel_id: str) -> None:
        self.send(await self.services.jupyter.get_kernel(kernel_id))

    async def delete(self, kernel_id: str) -> None:
        await self.services.jupyter.delete_kernel(kernel_id)
        self.set_status(204)


class InterruptKernelHandler(JupyterHandler):
    """/jupyter/api/kernels/{kernel_id}/interrupt"""

    operations = {"POST": Operation("Interrupt the cell that runs", status=204)}

    async def post(self, kernel_id: str) -> None:
        await self.services.jupyter.interrupt_kernel(kernel_id)
        self.set_status(204)


class RestartKernelHandler(JupyterHandler):
    """/jupyter/api/kernels/{kernel_id}/restart"""

    operations = {"POST": Operation("Restart a kernel, without any variables; files are kept", KernelModel)}

    async def post(self, kernel_id: str) -> None:
        self.send(await self.services.jupyter.restart_kernel(kernel_id))


class JupyterSessionsHandler(JupyterHandler):
    """/jupyter/api/sessions"""

    operations = {
        "GET": Operation("Notebooks that are open, and sessions that could be", SessionModelList),
        "POST": Operation("Open a notebook, on a kernel that is there or a new one", SessionModel, 201, StartSession),
    }

    async def get(self) -> None:
        self.send(SessionModelList(await self.services.jupyter.list_sessions()))

    async def post(self) -> None:
        opened = await self.services.jupyter.start_session(self.body(StartSession), self.caller)
        self.set_header("Location", f"/jupyter/api/sessions/{opened.id}")
        self.send(opened, 201)


class JupyterSessionHandler(JupyterHandler):
    """/jupyter/api/sessions/{opened_id}"""

    operations = {
        "GET": Operation("A notebook that is open", SessionModel),
        "PATCH": Operation("Rename it, or open it on another kernel", SessionModel, body=ChangeSession),
        "DELETE": Operation("Close it, and end its kernel", status=204),
    }

    async def get(self, opened_id: str) -> None:
        self.send(await self.services.jupyter.get_session(opened_id))

    async def patch(self, opened_id: str) -> None:
        changed = await self.services.jupyter.change_session(opened_id, self.body(ChangeSession), self.caller)
        self.send(changed)

    async def delete(self, opened_id: str) -> None:
        await self.services.jupyter.delete_session(opened_id)
        self.set_status(204)
