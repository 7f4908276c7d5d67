"""JSON in pieces is the same JSON."""

import json

from gateway.models.base import now
from gateway.models.executions import Execution, ExecutionView, RunAnswer, Status
from gateway.models.pieces import execution_pieces, view_pieces
from gateway.states import State


def execution() -> Execution:
    text = 'a "quoted" \\ line\n\x1b[31mé😀\n' * 50_000
    return Execution(
        id="e", session_uid="u", session_id="s", code="1", status=Status.OK, queued_at=now(),
        outputs=[
            {"output_type": "stream", "name": "stdout", "text": text},
            {"output_type": "display_data", "data": {"text/html": "<b>\n</b>"}, "metadata": {}},
            {"output_type": "stream", "name": "stderr", "text": "oh"},
            {"output_type": "stream", "name": "stdout", "text": "more"},
        ],
    )  # fmt: skip


def test_a_record_in_pieces_is_the_record() -> None:
    record = execution()

    pieces = b"".join(execution_pieces(record))

    assert json.loads(pieces) == json.loads(record.model_dump_json())


def test_an_answer_in_pieces_is_the_answer() -> None:
    for view in (ExecutionView.of(execution()), RunAnswer.after(execution(), {"x": 1}, State.READY)):
        pieces = b"".join(view_pieces(view))

        assert json.loads(pieces) == json.loads(view.model_dump_json())
