"""Jupyter's own checks of a kernel, `jupyter_kernel_test`, on live kernels of sessions."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx2
import jupyter_kernel_test
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_kernel_client.wsclient import KernelWebSocketClient

from tests.gateways import GatewayProcess, record_at

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]

DRAWN = "import matplotlib.pyplot as plt; plt.plot([1]); plt.show()"  # the first time it looks for fonts


class Checks(jupyter_kernel_test.KernelTests):
    """All of them, none is left out; `kc` is connected to the kernel of a session before the first."""

    __test__ = False
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = [{"text": "zi", "matches": {"zip"}}]
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]
    invalid_code_samples = ["import = 7q"]
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('no')"
    code_execute_result = [{"code": "1+2+3", "result": "6"}, {"code": "[1, 2]*2", "result": "[1, 2, 1, 2]"}]
    code_display_data = [
        {"code": "from IPython.display import HTML; display(HTML('<b>test</b>'))", "mime": "text/html"},
        {"code": "from IPython.display import Math; display(Math('x^2'))", "mime": "text/latex"},
        {"code": "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()", "mime": "image/png"},
    ]
    supported_history_operations = ("tail", "range", "search")
    code_history_pattern = "1?2*"
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    @classmethod
    def setUpClass(cls) -> None:
        """No kernel is started: that of `live` is there."""

    @classmethod
    def tearDownClass(cls) -> None:
        """It goes with its session."""

    @pytest.fixture(autouse=True, scope="class")
    def live(self, request: Any, gateway: GatewayProcess) -> Iterator[None]:
        with httpx2.Client(base_url=gateway.url, trust_env=False, timeout=60) as http:
            session = http.post("/api/sessions", json={}).json()
            path = f"/api/sessions/{session['id']}"
            http.post(f"{path}/run", json={"code": DRAWN}).raise_for_status()
            client = self.client(gateway, session["jupyter"]["kernel_id"])
            client.start_channels()
            client.wait_for_ready(timeout=30)
            request.cls.kc = client
            yield
            client.stop_channels()
            http.delete(path).raise_for_status()

    @staticmethod
    def client(gateway: GatewayProcess, kernel_id: str) -> Any:
        raise NotImplementedError


class TestOverTheWebsocket(Checks):
    __test__ = True

    @staticmethod
    def client(gateway: GatewayProcess, kernel_id: str) -> KernelWebSocketClient:
        url = f"{gateway.url.replace('http', 'ws', 1)}/jupyter/api/kernels/{kernel_id}/channels"
        return KernelWebSocketClient(url, timeout=1)


class TestAtItsOwnSockets(Checks):
    __test__ = True

    @staticmethod
    def client(gateway: GatewayProcess, kernel_id: str) -> BlockingKernelClient:
        connection = record_at(gateway.data_dir, UUID(kernel_id).hex)["connection"]
        client = BlockingKernelClient()
        client.load_connection_info(connection | {"key": connection["key"].encode(), "session": None})
        return client
