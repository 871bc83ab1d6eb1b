"""ComfyUI's responses in words: readable, and without what must not leave."""

from __future__ import annotations

from typing import Any

import pytest

from gpugate.generation.comfyui_responses import execution_problem, refusal


def failed(kind: str, message: str, **extra: object) -> dict[str, Any]:
    """node_errors as recorded."""
    error = {"type": kind, "message": message, "details": "/opt/comfyui/secret", "extra_info": extra}
    return {"node_errors": {"4": {"errors": [error], "dependent_outputs": ["9"], "class_type": "Node"}}}


class TestWords:
    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            ({"error": {"message": "Prompt has no outputs"}, "node_errors": {}}, "Prompt has no outputs"),
            (
                failed("required_input_missing", "Missing", input_name="width"),
                "node 4 (Node), width: Missing",
            ),
            (
                failed("value_not_in_list", "Value not in list", received_value="/opt/x"),
                "node 4 (Node): Value not in list",
            ),
            (
                failed("exception_during_validation", "see /opt/comfyui/x.py"),
                "node 4 (Node): a reason that is not shown",
            ),
            ({"error": "text", "node_errors": []}, "a reason that is not shown"),
        ],
    )
    def test_refusal(self, answer, words):
        """Readable, and without paths."""
        assert f"ComfyUI refused the workflow: {words}" == refusal(400, answer)

    def test_long_complaint(self):
        """Cut off."""
        assert len(refusal(400, failed("x", "word " * 500))) < 300

    @pytest.mark.parametrize("status", [{"status_str": "error"}, {"status_str": "error", "messages": 3}])
    def test_failure_of_an_unknown_shape(self, status):
        """Is a failure."""
        assert "ComfyUI failed to run the workflow" == execution_problem({"status": status})

    @pytest.mark.parametrize("entry", [{}, {"status": None}, {"status": {}}])
    def test_entry_without_a_status(self, entry):
        """Old servers write none: whether there is a picture tells."""
        assert execution_problem(entry) is None
