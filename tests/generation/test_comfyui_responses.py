"""ComfyUI's responses in words: readable, and without what must not leave."""

from __future__ import annotations

from typing import Any

import pytest

from gpugate.errors import ImageFailed
from gpugate.generation.comfyui_responses import bare_name, execution_problem, image_location, refusal


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

    @pytest.mark.parametrize(
        ("page", "words"),
        [
            (b"error code: 1010", "the edge in front of the pod answered 403 (error code: 1010)"),
            (b"", "ComfyUI, or a proxy in front of it, wants a password or token (403)"),
            (b"forbidden", "ComfyUI, or a proxy in front of it, wants a password or token (403)"),
        ],
    )
    def test_edge_of_a_provider(self, page, words):
        """Its code is told, as no password would help."""
        assert words == refusal(403, None, page)

    def test_more_than_one_node(self):
        """The first is told, the others are counted."""
        errors = failed("x", "bad")["node_errors"]
        said = refusal(400, {"node_errors": errors | {"5": {}, "6": None}})
        assert "ComfyUI refused the workflow: node 4 (Node): bad (and 2 more)" == said

    @pytest.mark.parametrize("status", [{"status_str": "error"}, {"status_str": "error", "messages": 3}])
    def test_failure_of_an_unknown_shape(self, status):
        """Is a failure."""
        assert "ComfyUI failed to run the workflow" == execution_problem({"status": status})

    @pytest.mark.parametrize("entry", [{}, {"status": None}, {"status": {}}])
    def test_entry_without_a_status(self, entry):
        """Old servers write none: whether there is a picture tells."""
        assert execution_problem(entry) is None

    def test_control_characters(self):
        """A terminal would obey them."""
        answer = failed("value_not_in_list", "Value\x1b[31m not\x07 in\n list", received_value="a\x1b[0m")
        assert refusal(400, answer).endswith("node 4 (Node): Value [31m not in list")

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("SDXL/base.safetensors", ": SDXL/base.safetensors"),
            ("in (1).png", ": in (1).png"),
            ("../../etc/passwd", ""),
            ("C:\\models\\a.safetensors", ""),
            ("/opt/x.safetensors", ""),
        ],
    )
    def test_names_of_missing_files(self, name, shown):
        """Told if they lie in ComfyUI's own folders."""
        answer = failed("value_not_in_list", "Value not in list", received_value=name)
        assert f"ComfyUI refused the workflow: node 4 (Node): Value not in list{shown}" == refusal(
            400, answer
        )


STILL = {"images": [{"filename": "still.png", "type": "output"}]}
SECOND = {"images": [{"filename": "second.png", "type": "output"}]}
PREVIEW = {"images": [{"filename": "preview.png", "type": "temp"}]}
MOVING = {"images": [{"filename": "moving.webp", "type": "output"}], "animated": [True]}
GIF = {"images": [{"filename": "moving.GIF", "type": "output"}]}
VIDEO = {"images": [{"filename": "v.mp4", "type": "output"}], "animated": [True]}
ODD = {"images": [None, {}, {"filename": 5}], "animated": 3, "text": ["x"]}


class TestChoice:
    @pytest.mark.parametrize(
        ("outputs", "wanted"),
        [
            ({"2": SECOND, "1": STILL}, "still.png"),
            ({"1": STILL, "2": SECOND}, "still.png"),
            ({"1": MOVING, "2": STILL}, "still.png"),
            ({"1": VIDEO, "2": STILL}, "still.png"),
            ({"1": PREVIEW, "2": STILL}, "still.png"),
            ({"1": MOVING, "2": PREVIEW}, "preview.png"),
            ({"1": VIDEO, "2": MOVING}, "moving.webp"),
            ({"1": GIF, "2": STILL}, "still.png"),
            ({"1": STILL, "titled": SECOND}, "second.png"),
            ({"1": STILL, "titled": MOVING}, "moving.webp"),
            ({"1": STILL, "titled": VIDEO}, "still.png"),
            ({"unknown": SECOND, "2": STILL}, "still.png"),
            ({"9.b": SECOND, "9.a": STILL}, "still.png"),
            ({"1": ODD, "2": {"images": [*STILL["images"], *SECOND["images"]]}, "3": None}, "still.png"),
        ],
    )
    def test_of_several_outputs(self, outputs, wanted):
        """The same one, whatever order they come in."""
        node = {"class_type": "SaveImage", "inputs": {}}
        graph = {"1": node, "2": node, "titled": {**node, "_meta": {"title": " Picture "}}}
        for order in (list(outputs), list(reversed(outputs))):
            entry = {"outputs": {name: outputs[name] for name in order}}
            assert wanted == image_location(entry, graph)["filename"]

    @pytest.mark.parametrize(
        ("outputs", "words"), [({"1": VIDEO}, ", only with a video or another file"), ({}, ""), (None, "")]
    )
    def test_no_image(self, outputs, words):
        """Said what came instead."""
        with pytest.raises(ImageFailed, match=f"^the workflow ended without an image{words}$"):
            image_location({"outputs": outputs}, {})

    def test_many(self):
        """The work grows with their number, not with its square."""
        many = {"images": STILL["images"] * 100_000, "animated": [False] * 100_000}
        assert "still.png" == image_location({"outputs": {"1": many}}, {})["filename"]


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("a/b.png", "b.png"),
        ("a\\b.png", "b.png"),
        ("a\0\r\n\x9b\u202e.png", "a_____.png"),
        ("ü é.png", "ü é.png"),
    ],
)
def test_bare_name(name, bare):
    """No folder, no control characters."""
    assert bare == bare_name(name)
