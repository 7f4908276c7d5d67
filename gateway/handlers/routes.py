"""Every URL of the gateway, once."""

import re
from typing import NamedTuple

from gateway.handlers import (
    agents,
    audit,
    diagnostics,
    docs,
    events,
    executions,
    files,
    introspection,
    jupyter,
    jupyter_channels,
    jupyter_contents,
    jupyter_kernels,
    keys,
    memories,
    notebooks,
    replays,
    sessions,
    snapshots,
)
from gateway.handlers.base import ApiHandler


class Route(NamedTuple):
    """`path` is as OpenAPI writes it; a `{path}` may hold slashes."""

    path: str
    handler: type[ApiHandler]

    @property
    def pattern(self) -> str:
        """`/api/v0` and `/api/v2` are other names of `/api`; Jupyter's clients may end a path with a slash."""
        pattern = re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{'.+' if m[1] == 'path' else '[^/]+'})", self.path)
        if self.path.startswith("/jupyter/"):
            return f"{pattern}/?"
        return re.sub(r"^/api(?=/)", "/api(?:/v0|/v2)?", pattern)


_SESSION = "/api/sessions/{session_id}"
_AGENT = "/api/agents/{agent_id}"
_CONTENTS = "/jupyter/api/contents"

ROUTES = [
    Route("/api/sessions", sessions.SessionsHandler),
    Route(_SESSION, sessions.SessionHandler),
    Route(f"{_SESSION}/undelete", sessions.UndeleteHandler),
    Route(f"{_SESSION}/labels", sessions.LabelsHandler),
    Route(f"{_SESSION}/grants", sessions.GrantsHandler),
    Route(f"{_SESSION}/states", sessions.StatesHandler),
    Route(f"{_SESSION}/code", sessions.CodeHandler),
    Route(f"{_SESSION}/restart", sessions.RestartHandler),
    Route(f"{_SESSION}/wake", sessions.WakeHandler),
    Route(f"{_SESSION}/hibernate", sessions.HibernateHandler),
    Route(f"{_SESSION}/run", executions.RunHandler),
    Route(f"{_SESSION}/stream", events.StreamHandler),
    Route(f"{_SESSION}/interrupt", executions.InterruptHandler),
    Route(f"{_SESSION}/input", executions.InputHandler),
    Route(f"{_SESSION}/executions", executions.ExecutionsHandler),
    Route(f"{_SESSION}/executions/{{execution_id}}", executions.ExecutionHandler),
    Route(f"{_SESSION}/executions/{{execution_id}}/events", events.ExecutionEventsHandler),
    Route(f"{_SESSION}/history", executions.HistoryHandler),
    Route(f"{_SESSION}/events", events.SessionEventsHandler),
    Route(f"{_SESSION}/files", files.FilesHandler),
    Route(f"{_SESSION}/files/move", files.MoveHandler),
    Route(f"{_SESSION}/files/{{path}}", files.FileHandler),
    Route(f"{_SESSION}/archive", files.ArchiveHandler),
    Route(f"{_SESSION}/variables", introspection.VariablesHandler),
    Route(f"{_SESSION}/variables/{{name}}", introspection.VariableHandler),
    Route(f"{_SESSION}/snapshots", snapshots.SnapshotsHandler),
    Route(f"{_SESSION}/snapshots/{{snapshot_id}}", snapshots.SnapshotHandler),
    Route(f"{_SESSION}/snapshots/{{snapshot_id}}/archive", snapshots.SnapshotArchiveHandler),
    Route(f"{_SESSION}/restore", snapshots.RestoreHandler),
    Route(f"{_SESSION}/duplicate", snapshots.DuplicateHandler),
    Route(f"{_SESSION}/remix", snapshots.RemixHandler),
    Route(f"{_SESSION}/children", sessions.ChildrenHandler),
    Route("/api/snapshots", snapshots.ImportHandler),
    Route("/api/snapshots/{snapshot_id}", snapshots.ImportedHandler),
    Route(f"{_SESSION}/complete", introspection.CompleteHandler),
    Route(f"{_SESSION}/inspect", introspection.InspectHandler),
    Route(f"{_SESSION}/is_complete", introspection.IsCompleteHandler),
    Route(f"{_SESSION}/logs", diagnostics.LogsHandler),
    Route(f"{_SESSION}/metrics", diagnostics.SessionMetricsHandler),
    Route(f"{_SESSION}/notebook", notebooks.NotebookHandler),
    Route(f"{_SESSION}/notebook/{{run_id}}", notebooks.NotebookRunHandler),
    Route(f"{_SESSION}/notebook/{{run_id}}/events", notebooks.NotebookEventsHandler),
    Route(f"{_SESSION}/replay", replays.ReplaysHandler),
    Route(f"{_SESSION}/replay/{{replay_id}}", replays.ReplayHandler),
    Route(f"{_SESSION}/replay/{{replay_id}}/events", replays.ReplayEventsHandler),
    Route("/api/agents", agents.AgentsHandler),
    Route(_AGENT, agents.OneAgentHandler),
    Route(f"{_AGENT}/undelete", agents.UndeleteAgentHandler),
    Route(f"{_AGENT}/activate", agents.ActivateHandler),
    Route(f"{_AGENT}/deactivate", agents.DeactivateHandler),
    Route("/api/session/current", agents.CurrentWindowHandler),
    Route("/api/session/extend", agents.ExtendHandler),
    Route(f"{_AGENT}/remember", memories.RememberHandler),
    Route(f"{_AGENT}/recall", memories.RecallHandler),
    Route(f"{_AGENT}/answer", memories.AnswerHandler),
    Route(f"{_AGENT}/memories", memories.MemoriesHandler),
    Route(f"{_AGENT}/memories/{{memory_id}}", memories.OneMemoryHandler),
    Route("/api/keys", keys.KeysHandler),
    Route("/api/keys/{key_id}", keys.KeyHandler),
    Route("/api/keys/{key_id}/rotate", keys.RotateHandler),
    Route("/api/audit", audit.AuditHandler),
    Route("/api/execute", executions.ExecuteHandler),
    Route("/api/kernels", diagnostics.KernelsHandler),
    Route("/api/health", diagnostics.HealthHandler),
    Route("/api/ready", diagnostics.ReadyHandler),
    Route("/api/openapi.json", docs.OpenApiHandler),
    Route("/jupyter/api", jupyter.VersionHandler),
    Route("/jupyter/api/status", jupyter.StatusHandler),
    Route("/jupyter/api/me", jupyter.MeHandler),
    Route("/jupyter/api/terminals", jupyter.TerminalsHandler),
    Route("/jupyter/api/kernelspecs", jupyter.KernelspecsHandler),
    Route("/jupyter/api/kernelspecs/{name}", jupyter.KernelspecHandler),
    Route("/jupyter/kernelspecs/{name}/{file}", jupyter.KernelspecFileHandler),
    Route("/jupyter/api/kernels", jupyter_kernels.KernelsHandler),
    Route("/jupyter/api/kernels/{kernel_id}", jupyter_kernels.KernelHandler),
    Route("/jupyter/api/kernels/{kernel_id}/interrupt", jupyter_kernels.InterruptKernelHandler),
    Route("/jupyter/api/kernels/{kernel_id}/restart", jupyter_kernels.RestartKernelHandler),
    Route("/jupyter/api/kernels/{kernel_id}/channels", jupyter_channels.ChannelsHandler),
    Route("/jupyter/api/sessions", jupyter_kernels.JupyterSessionsHandler),
    Route("/jupyter/api/sessions/{opened_id}", jupyter_kernels.JupyterSessionHandler),
    Route(_CONTENTS, jupyter_contents.RootContentsHandler),
    Route(f"{_CONTENTS}/{{path}}/checkpoints", jupyter_contents.CheckpointsHandler),
    Route(f"{_CONTENTS}/{{path}}/checkpoints/{{checkpoint_id}}", jupyter_contents.CheckpointHandler),
    Route(f"{_CONTENTS}/{{path}}", jupyter_contents.ContentsHandler),
    Route("/metrics", diagnostics.MetricsHandler),
    Route("/docs", docs.DocsHandler),
    Route("/", docs.HomeHandler),
]
