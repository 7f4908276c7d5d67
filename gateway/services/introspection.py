"""Looking inside a session: variables, completion, inspection. Answered while a cell runs where the kernel can."""

import asyncio
import contextlib
from typing import Any

from gateway.config import Settings
from gateway.errors import GatewayError, Invalid, NotFound, TimedOut, Unavailable
from gateway.services.sessions import SessionService
from kernels.errors import KernelGone, NotOffered, StartFailed
from kernels.kernel import Kernel

_CHANGING = ("set", "delete")
_PATIENCE_S = 30


class VariableNotFound(NotFound):
    code = "variable_not_found"


class KernelCannot(Invalid):
    code = "not_offered_by_kernel"


class KernelAway(Unavailable):
    code = "kernel_unavailable"


class IntrospectionService:
    def __init__(self, settings: Settings, sessions: SessionService) -> None:
        self._settings = settings
        self._sessions = sessions

    @contextlib.asynccontextmanager
    async def _kernel(self, session_id: str) -> Any:
        """The session's kernel, started if need be; what it can't do becomes our errors."""
        live = await self._sessions.hold(session_id, "", create=False)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                yield await live.ready()
        except TimeoutError:
            raise TimedOut(f"The kernel did not answer within {_PATIENCE_S} s.") from None
        except NotOffered as error:
            raise KernelCannot(str(error)) from None
        except (KernelGone, StartFailed) as error:
            raise KernelAway(str(error), retry_after_s=1) from None

    async def complete(self, session_id: str, code: str, cursor_pos: int | None) -> dict[str, Any]:
        async with self._kernel(session_id) as kernel:
            return _reply(await kernel.complete(code, len(code) if cursor_pos is None else cursor_pos))

    async def inspect(self, session_id: str, code: str, cursor_pos: int | None, detail_level: int) -> dict[str, Any]:
        async with self._kernel(session_id) as kernel:
            return _reply(await kernel.inspect(code, len(code) if cursor_pos is None else cursor_pos, detail_level))

    async def is_complete(self, session_id: str, code: str) -> dict[str, Any]:
        async with self._kernel(session_id) as kernel:
            found: dict[str, Any] = await kernel.is_complete(code)
            return found

    async def list_variables(self, session_id: str, offset: int, limit: int) -> dict[str, Any]:
        return await self._namespace(session_id, "list", offset=offset, limit=limit)

    async def get_variable(self, session_id: str, name: str, offset: int, limit: int) -> dict[str, Any]:
        return await self._namespace(session_id, "get", name=name, offset=offset, limit=limit)

    async def set_variable(self, session_id: str, name: str, value: Any) -> dict[str, Any]:
        return await self._namespace(session_id, "set", name=name, value=value)

    async def delete_variable(self, session_id: str, name: str) -> dict[str, Any]:
        return await self._namespace(session_id, "delete", name=name)

    async def _namespace(self, session_id: str, action: str, **arguments: Any) -> dict[str, Any]:
        kernel: Kernel
        async with self._kernel(session_id) as kernel:
            reply = await kernel.namespace(action, **arguments)
        if action in _CHANGING:
            await self._sessions.variables_changed(session_id, str(reply.pop("change_id", "")))
        if reply.pop("status", "ok") != "ok":
            raise GatewayError("The kernel could not tell.")
        match reply.get("error"):
            case None:
                told: dict[str, Any] = (await self._sessions.guards(session_id)).json(reply)
                return told
            case "missing":
                raise VariableNotFound(f"No variable {arguments.get('name')!r}.", name=arguments.get("name"))
            case _:
                raise Invalid("name: can't be the name of a variable.", field="name")


def _reply(content: dict[str, Any]) -> dict[str, Any]:
    if content.get("status") == "error":
        raise KernelCannot(f"The kernel could not answer: {content.get('evalue', '')}")
    return content
