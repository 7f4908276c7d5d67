"""The Python client: `Gateway`, and `AsyncGateway` for asyncio.

    from gateway.client import Gateway

    with Gateway("http://127.0.0.1:8888") as gateway:
        print(gateway.session("demo").run("1 + 1").result)

Both have the same methods, with full types; `gateway.client.agb` is for programs that were written for AGB.
"""

from gateway.client import errors
from gateway.client.asynchronous.agents import AsyncAgent, AsyncMemories, AsyncWindow
from gateway.client.asynchronous.executions import AsyncExecution, AsyncRunStream
from gateway.client.asynchronous.gateway import AsyncGateway
from gateway.client.asynchronous.pages import AsyncPages
from gateway.client.asynchronous.sessions import AsyncSession
from gateway.client.documents import Page, Run, Variable, VariableValue
from gateway.client.errors import (
    ClientError,
    Conflict,
    Denied,
    Exhausted,
    GatewayError,
    Incomplete,
    Invalid,
    NotFound,
    RunFailed,
    SessionExists,
    SessionNotFound,
    Unauthenticated,
    Unavailable,
    Unreachable,
    Unreadable,
    WindowExpired,
)  # fmt: skip
from gateway.client.events import Event
from gateway.client.patience import Patience
from gateway.client.synchronous.agents import Agent, Memories, Window
from gateway.client.synchronous.executions import Execution, RunStream
from gateway.client.synchronous.gateway import Gateway
from gateway.client.synchronous.pages import Pages
from gateway.client.synchronous.sessions import Session

__all__ = [
    "Agent",
    "AsyncAgent",
    "AsyncExecution",
    "AsyncGateway",
    "AsyncMemories",
    "AsyncPages",
    "AsyncRunStream",
    "AsyncSession",
    "AsyncWindow",
    "ClientError",
    "Conflict",
    "Denied",
    "Event",
    "Execution",
    "Exhausted",
    "Gateway",
    "GatewayError",
    "Incomplete",
    "Invalid",
    "Memories",
    "NotFound",
    "Page",
    "Pages",
    "Patience",
    "Run",
    "RunFailed",
    "RunStream",
    "Session",
    "SessionExists",
    "SessionNotFound",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
    "Unreadable",
    "Variable",
    "VariableValue",
    "Window",
    "WindowExpired",
    "errors",
]
