"""Every setting, its default and its meaning.

Command line over environment (`GATEWAY_…`) over `--config` file (TOML) over default.
"""

import ipaddress
import os
import resource
import secrets
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

MEBI = 2**20
MODULE = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$"
MOST_FILES = 65_536  # that this process opens at once

_IDLE_BYTES = 20 * MEBI  # of a session that does nothing, generously
_FILES_EACH = 8  # of ours, for a session: three sockets, each with a connection and a bell; and some room
_OTHER_FILES = 500
_FEWEST_KERNELS = 20


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _half_of_memory() -> int:
    return _memory_bytes() // 2


def _kernels_that_fit() -> int:
    """As many idle ones as memory and open files have room for; busy ones are held back by their own limits."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = most_files if most_files != resource.RLIM_INFINITY else MOST_FILES
    fit = min(_memory_bytes() * 9 // 10 // _IDLE_BYTES, (min(files, MOST_FILES) - _OTHER_FILES) // _FILES_EACH)
    return max(_FEWEST_KERNELS, fit)


class Image(BaseModel):
    """What an `image_id` stands for."""

    kernel: str
    preloads: list[Annotated[str, Field(pattern=MODULE)]] = []
    resources: dict[str, Any] = {}


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="GATEWAY_", extra="forbid", env_ignore_empty=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8888
    data_dir: Path = Path(".gateway")
    store: str = Field(default="", description="sqlite:///PATH or mongodb://…; empty is SQLite in the data folder")
    mongo_driver: Literal["motor", "pymongo"] = "motor"
    insecure: bool = Field(default=False, description="serve beyond loopback without keys, or without TLS")
    behind_tls: bool = Field(
        default=False,
        description="a proxy in front speaks TLS, sets X-Forwarded-For and -Proto, and is all that reaches this port",
    )
    allowed_hosts: list[str] = Field(default=[], description="more names that a request may call this gateway by")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] = "console"

    gateway_id: str = Field(default_factory=lambda: f"gw-{secrets.token_hex(6)}")
    auto_create: bool = Field(
        default=True, description="a run, stream or file PUT on an unknown id creates the session"
    )
    default_language: str = "python"
    images: dict[str, Image] = {}

    waiting_timeout_s: Annotated[float, Field(gt=0)] = 300
    run_timeout_s: Annotated[float, Field(gt=0)] = 300
    start_timeout_s: Annotated[float, Field(gt=0)] = 60
    setup_timeout_s: Annotated[float, Field(gt=0)] = 900
    interrupt_grace_s: Annotated[float, Field(gt=0)] = 3
    resume_grace_s: Annotated[float, Field(ge=0)] = Field(
        default=3, description="how long a run goes on after the client that follows it went away"
    )
    shutdown_grace_s: Annotated[float, Field(ge=0)] = 10
    reaper_interval_s: Annotated[float, Field(gt=0)] = 1
    heartbeat_interval_s: Annotated[float, Field(gt=0)] = 5
    holder_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=30, description="how long a silent gateway keeps its sessions; more than two heartbeats"
    )
    release_after_s: Annotated[float, Field(gt=0)] = Field(
        default=60, description="how long a session that sleeps is held, and kept in memory, when nobody uses it"
    )

    autosave: bool = Field(default=True, description="save the variables of sessions that have changed and are quiet")
    autosave_quiet_s: Annotated[float, Field(ge=0)] = Field(default=5, description="how long a session must be quiet")
    autosave_interval_s: Annotated[float, Field(ge=0)] = Field(default=60, description="at least, between two saves")
    autosaves_kept: Annotated[int, Field(ge=1)] = Field(
        default=2, description="of each session; older ones are removed"
    )
    snapshots_kept: Annotated[int, Field(ge=1)] = Field(default=100, description="of each session, of those asked for")
    snapshots_max_age_s: Annotated[float, Field(gt=0)] | None = None
    snapshot_wait_s: Annotated[float, Field(gt=0)] = Field(
        default=300, description="how long a snapshot or duplicate waits for a cell that runs"
    )
    checkpoint_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=300, description="for writing the variables of a session, or reading them"
    )
    blobs: str = Field(
        default="", description="where snapshots' bytes are: s3://BUCKET/PREFIX …; empty is the data folder"
    )

    window_hours: Annotated[float, Field(gt=0)] = Field(
        default=6, description="how long an agent is active that does not say how long"
    )
    window_longest_hours: Annotated[float, Field(gt=0, le=87_600)] = Field(
        default=168, description="of one window in all, with what it was extended by"
    )
    window_keys: Path | None = Field(
        default=None,
        description="file with the keys that sign windows' tokens, by default window-keys.json in the data folder; "
        "gateways that share a store must share it",
    )
    answer_url: str = Field(
        default="",
        description="OpenAI-compatible endpoint that words answers from memories, such as http://127.0.0.1:11434/v1; "
        "empty: answers are sentences of the memories",
    )
    answer_model: str = ""
    answer_key: SecretStr = SecretStr("")
    answer_timeout_s: Annotated[float, Field(gt=0)] = 30

    output_limit_bytes: Annotated[int, Field(ge=1000)] = 10 * MEBI
    body_limit_bytes: Annotated[int, Field(ge=1000)] = 32 * MEBI
    upload_limit_bytes: Annotated[int, Field(ge=1000)] = 64 * 1024 * MEBI
    isolation: Literal["auto", "strict", "best-effort", "none"] = Field(
        default="auto",
        description="strict: refuse to start unless every wall stands; best-effort: put up those that this host can "
        "give, and tell; none: no walls; auto is strict beyond loopback, else best-effort",
    )
    network: Literal["auto", "none", "host"] = Field(
        default="auto",
        description="what sessions reach that do not say so themselves; auto is none beyond loopback, else host",
    )
    readable: list[Path] = Field(default=[], description="more folders of this host that sessions may read")
    fork_server: bool = Field(default=True, description="fork Python kernels from a process that is warm")
    pool_size: Annotated[int, Field(ge=0, le=100)] = Field(
        default=4, description="kernels that are forked ahead, for each environment in use"
    )
    preloads: list[Annotated[str, Field(pattern=MODULE)]] = Field(
        default=[], description="modules that Python kernels find imported, where their environment has them"
    )

    front_end_buffer_bytes: Annotated[int, Field(ge=1000)] = Field(
        default=32 * MEBI, description="what waits for one Jupyter client that is slow or away; then it is sent away"
    )
    front_end_remembered_s: Annotated[float, Field(ge=0)] = Field(
        default=300, description="how long a Jupyter client that has left can come back to what was said meanwhile"
    )
    journal_limit_bytes: Annotated[int, Field(ge=MEBI)] = Field(
        default=64 * MEBI, description="what is kept on disk of what a kernel published, for the next gateway to tell"
    )
    connections_limit: Annotated[int, Field(ge=10)] = Field(
        default=4096, description="open at once; for one more, that is closed on which nothing was asked for longest"
    )
    connection_patience_s: Annotated[float, Field(gt=0)] = Field(
        default=75, description="with a client between two requests, in the head of one, or in a body that comes slowly"
    )
    requests_per_second: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="of one key that has no limit of its own, on this gateway; more are refused"
    )
    requests_burst: Annotated[int, Field(ge=1)] | None = Field(default=None, description="how many may come at once")
    session_runs_per_second: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="runs that one session takes, Jupyter cells included; more are refused"
    )
    session_runs_burst: Annotated[int, Field(ge=1)] | None = None
    quota_sessions: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="live sessions that one caller may own, over all gateways on the store"
    )
    quota_kernels: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="of one caller's sessions that run at once, over all gateways on the store"
    )
    quota_cpu_seconds_per_day: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="of processors that one caller's sessions use in a day (UTC), over all gateways"
    )
    quota_disk_bytes: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="of files that one caller's sessions hold, over all gateways"
    )
    guardrails: list[str] = Field(
        default=[], description="that hold for every session: no-network, no-pii-exposure, max-output:64k …"
    )
    queue_limit: Annotated[int, Field(ge=1)] = Field(default=1000, description="runs that wait for one session")
    live_limit: Annotated[int, Field(ge=1)] = Field(
        default_factory=_kernels_that_fit,
        description="kernels that run at once; by default what memory and open files have room for",
    )
    start_concurrency: Annotated[int, Field(ge=1)] = max(2, os.cpu_count() or 2)
    disk_limit_bytes: Annotated[int, Field(ge=1)] = 10 * 1024 * MEBI
    memory_limit_bytes: Annotated[int, Field(ge=64 * MEBI)] = Field(default_factory=_half_of_memory)
    pids_limit: Annotated[int, Field(ge=16, le=1_000_000)] = Field(
        default=1024, description="processes and threads of a session that does not say how many it needs"
    )

    @field_validator("data_dir", "window_keys")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and path.expanduser().absolute()

    @field_validator("answer_url")
    @classmethod
    def _is_of_http(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return url

    @model_validator(mode="after")
    def _windows_fit(self) -> "Settings":
        if self.window_hours > self.window_longest_hours:
            raise ValueError("window_longest_hours must be no less than window_hours")
        if self.answer_url and not self.answer_model:
            raise ValueError("answer_url needs an answer_model")
        return self

    @model_validator(mode="after")
    def _misses_a_heartbeat(self) -> "Settings":
        if self.holder_timeout_s <= 2 * self.heartbeat_interval_s:
            raise ValueError("holder_timeout_s must be more than twice heartbeat_interval_s")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        if path := os.environ.get("GATEWAY_CONFIG"):
            sources += (TomlConfigSettingsSource(settings_cls, toml_file=path),)
        return sources

    @property
    def store_uri(self) -> str:
        return self.store or f"sqlite:///{self.data_dir / 'gateway.sqlite'}"

    @property
    def window_key_file(self) -> Path:
        return self.window_keys or self.data_dir / "window-keys.json"

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def exposed(self) -> bool:
        """Whether others than this machine reach it, by its address or through a proxy."""
        return self.behind_tls or not self.loopback

    @property
    def walls_wanted(self) -> Literal["strict", "best-effort", "none"]:
        if self.isolation != "auto":
            return self.isolation
        return "strict" if self.exposed else "best-effort"

    @property
    def default_network(self) -> Literal["none", "host"]:
        if self.network != "auto":
            return self.network
        return "none" if self.exposed else "host"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
