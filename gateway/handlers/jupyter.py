"""The base of Jupyter's API: its clients add parameters of their own, and read a refusal as `message`."""

from mimetypes import guess_type
from pathlib import Path

from pydantic import BaseModel

from gateway import errors
from gateway.handlers.base import ApiHandler, Operation
from gateway.models.access import Need
from gateway.models.contents import JupyterError
from gateway.models.jupyter import (
    ApiVersion,
    Identity,
    KernelspecFile,
    KernelspecModel,
    KernelspecsModel,
    Me,
    ServerStatus,
)  # fmt: skip
from kernels.engine import Kernelspec

_API_VERSION = "2.17.0"  # of Jupyter Server: what is here behaves like it
_SPECS = "/jupyter/kernelspecs"


class JupyterHandler(ApiHandler):
    """A key may also come as `?token=`: browsers can't give a websocket a header."""

    takes_any_query = True
    refusal_model = JupyterError

    @property
    def token(self) -> str | None:
        given = super().token
        if given is not None:
            return given
        return self.get_query_argument("token", "") or None

    def refusal(self, error: errors.GatewayError) -> BaseModel:
        reason = error.details.get("reason")
        return JupyterError(message=error.sentence, reason=reason, code=error.code, request_id=self.request_id)


class VersionHandler(JupyterHandler):
    """/jupyter/api"""

    operations = {"GET": Operation("The version of Jupyter Server's API that this is", ApiVersion, needs=Need.KEY)}

    def get(self) -> None:
        self.send(ApiVersion(version=_API_VERSION))


class StatusHandler(JupyterHandler):
    """/jupyter/api/status"""

    operations = {"GET": Operation("Since when it runs, and how many use it", ServerStatus, needs=Need.KEY)}

    async def get(self) -> None:
        self.send(await self.services.jupyter.status(self.who))


class MeHandler(JupyterHandler):
    """/jupyter/api/me"""

    operations = {"GET": Operation("Who the caller is", Me, needs=Need.KEY)}

    def get(self) -> None:
        name = self.caller
        self.send(Me(identity=Identity(username=name, name=name, display_name=name, initials=name[:1].upper())))


class KernelspecsHandler(JupyterHandler):
    """/jupyter/api/kernelspecs"""

    operations = {
        "GET": Operation("Kernelspecs: those installed, and one for each session", KernelspecsModel, needs=Need.KEY)
    }

    async def get(self) -> None:
        specs = await self.services.jupyter.kernelspecs(self.who)
        default = "python3" if "python3" in specs else next(iter(sorted(specs)), "")
        models = {name: _model(name, spec) for name, spec in specs.items()}
        self.send(KernelspecsModel(default=default, kernelspecs=models))


class KernelspecHandler(JupyterHandler):
    """/jupyter/api/kernelspecs/{name}"""

    operations = {"GET": Operation("One kernelspec", KernelspecModel, needs=Need.KEY)}

    async def get(self, name: str) -> None:
        self.send(_model(name, await _spec(self, name)))


class KernelspecFileHandler(JupyterHandler):
    """/jupyter/kernelspecs/{name}/{file}: logos, and what else a front end needs of a kernel."""

    operations = {"GET": Operation("A file of a kernelspec", "application/octet-stream", needs=Need.KEY)}

    async def get(self, name: str, file: str) -> None:
        path = _files(await _spec(self, name)).get(file)
        if path is None:
            raise errors.NotFound(f"Kernelspec {name!r} has no file {file[:100]!r}.")
        self.set_header("Content-Type", guess_type(path.name)[0] or "application/octet-stream")
        self.set_header("Cache-Control", "private, max-age=3600")
        await self.finish(path.read_bytes())


class TerminalsHandler(JupyterHandler):
    """/jupyter/api/terminals: there are none."""

    operations = {"GET": Operation("Terminals are not offered", also={404: "There are none"}, needs=Need.KEY)}

    def get(self) -> None:
        raise errors.NotFound("Terminals are not offered here: a session's code can run `!` commands.")


async def _spec(handler: JupyterHandler, name: str) -> Kernelspec:
    spec = await handler.services.jupyter.kernelspec(name, handler.who)
    if spec is None:
        raise errors.NotFound(f"Kernel spec {name[:128]!r} not found.")
    return spec


def _model(name: str, spec: Kernelspec) -> KernelspecModel:
    described = KernelspecFile(
        argv=list(spec.argv), env=dict(spec.env), display_name=spec.display_name, language=spec.language,
        interrupt_mode=spec.interrupt_mode, metadata=dict(spec.metadata),
    )  # fmt: skip
    resources = {
        file if file.startswith("kernel.") else Path(file).stem: f"{_SPECS}/{spec.name}/{file}" for file in _files(spec)
    }
    return KernelspecModel(name=name, spec=described, resources=resources)


def _files(spec: Kernelspec) -> dict[str, Path]:
    """Logos, `kernel.js` and `kernel.css`, as in Jupyter Server; what else is in its folder is not for clients."""
    try:
        found = sorted(Path(spec.resource_dir).iterdir())
    except OSError:
        return {}
    return {one.name: one for one in found if one.name.startswith("logo-") or one.name in ("kernel.js", "kernel.css")}
