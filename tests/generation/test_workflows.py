"""Workflows as data: what is wrong is named by node and key; what is right is filled in by title."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gpugate_demo.graph import judge
from gpugate_demo.nodes import known_nodes

from gpugate.config.schema import ComfyUI
from gpugate.errors import InvalidRequest, SettingsError
from gpugate.generation.workflows import ImageRequest, WorkflowError, built_in, load, parse


def node(title: str | None = None, kind: str = "CLIPTextEncode", **inputs: object) -> dict[str, Any]:
    meta = {} if title is None else {"_meta": {"title": title}}
    return {"class_type": kind, "inputs": inputs, **meta}


SAVE = node(None, "SaveImage", images=["1", 0])


def parsed(**nodes: object) -> Any:
    return parse(json.dumps({"1": node("prompt", text=""), "save": SAVE, **nodes}).encode())


class TestBuiltIn:
    def test_filled(self):
        """Every wish ends up in its node, and ComfyUI would take the graph."""
        wish = ImageRequest("a castle", 2**64 - 1, "fog", 640, 384)
        graph = built_in().render(wish, "mine.safetensors", "abc")
        assert "a castle" == graph["2"]["inputs"]["text"]
        assert "fog" == graph["3"]["inputs"]["text"]
        assert (640, 384) == (graph["4"]["inputs"]["width"], graph["4"]["inputs"]["height"])
        assert 2**64 - 1 == graph["5"]["inputs"]["seed"]
        assert "mine.safetensors" == graph["1"]["inputs"]["ckpt_name"]
        verdict = judge(graph, known_nodes(("mine.safetensors",)), lambda path: False)
        assert (None, {}) == (verdict.error, verdict.node_errors)

    def test_checkpoint_of_its_own(self):
        """Stays, if none is set."""
        workflow = parsed(**{"2": node("checkpoint", "A", ckpt_name="mine.safetensors")})
        graph = workflow.render(ImageRequest("x", 1), None, "m")
        assert "mine.safetensors" == graph["2"]["inputs"]["ckpt_name"]

    def test_only_what_is_wished(self):
        """The rest stays as the workflow has it."""
        graph = built_in().render(ImageRequest("x", 1), "c", "abc")
        assert (512, 512) == (graph["4"]["inputs"]["width"], graph["4"]["inputs"]["height"])
        assert graph["3"]["inputs"]["text"]

    def test_never_changed(self):
        """One request leaves nothing to the next."""
        workflow = built_in()
        workflow.render(ImageRequest("secret", 1), "c", "abc")
        assert "" == workflow.graph["2"]["inputs"]["text"]

    def test_mark(self):
        """Names of files differ from request to request: the cache cannot name a deleted one."""
        graph = built_in().render(ImageRequest("x", 1), "c", "abc")
        assert "gpugate_abc" == graph["7"]["inputs"]["filename_prefix"]


class TestTitles:
    def test_however_written(self):
        """Capitals and blanks do not matter."""
        workflow = parsed(**{"2": node("  Negative   PROMPT ", text="")})
        assert "fog" == workflow.render(ImageRequest("x", 1, "fog"), "c", "m")["2"]["inputs"]["text"]

    def test_two_of_a_title(self):
        """Both are filled in: base and refiner."""
        workflow = parsed(**{"2": node("seed", "A", noise_seed=0), "3": node("seed", "B", seed=0)})
        graph = workflow.render(ImageRequest("x", 7), "c", "m")
        assert (7, 7) == (graph["2"]["inputs"]["noise_seed"], graph["3"]["inputs"]["seed"])

    @pytest.mark.parametrize(
        "wish", [ImageRequest("x", 1, "fog"), ImageRequest("x", 1, width=64), ImageRequest("x", 1, height=64)]
    )
    def test_wish_that_nothing_fulfils(self, wish):
        """Refused by its field, never ignored."""
        with pytest.raises(InvalidRequest, match=r"^(negative_prompt|width|height): this workflow has no"):
            parsed().render(wish, "c", "m")


class TestWrong:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (b"", "is not JSON"),
            (b"[]", "is no object of nodes"),
            (b"{}", "is no object of nodes"),
            (b'{"nodes": [], "links": []}', "export it in API format"),
            (b'{"1": 5}', "node 1: is no object"),
            (b'{"1": {"inputs": {}}}', 'node 1: "class_type" is missing'),
            (b'{"1": {"class_type": "", "inputs": {}}}', 'node 1: "class_type" is missing'),
            (b'{"1": {"class_type": "X"}}', r'node 1 \(X\): "inputs" is missing'),
            (b'\xef\xbb\xbf{"1": {}}', "begins with a byte order mark"),
            ("{}".encode("utf-16"), "begins with a byte order mark"),
            (b'{"prompt": {"1": {}}, "client_id": "x"}', 'keep only the object under "prompt"'),
        ],
    )
    def test_no_graph(self, text, words):
        """Said in one line."""
        with pytest.raises(WorkflowError, match=words):
            parse(text)

    @pytest.mark.parametrize(
        ("nodes", "words"),
        [
            ({"1": node(text="")}, 'no node has the "_meta.title" "prompt"'),
            ({"1": node("prompt", clip="x")}, r'node 1 \("prompt"\): "inputs.text" or .* is missing'),
            ({"2": node("size", width=1)}, r'node 2 \("size"\): "inputs.height" is missing'),
            ({"2": node("seed", steps=1)}, r'node 2 \("seed"\): "inputs.seed" or'),
            ({"2": node("seed", seed=["1", 0])}, r'"inputs.seed" is taken from node 1; title that one'),
            ({"2": node(images=["8", 0])}, r'"inputs.images" refers to node 8, which is not there'),
        ],
    )
    def test_node_and_key(self, nodes, words):
        """Both are named."""
        with pytest.raises(WorkflowError, match=words):
            parsed(**nodes)

    @pytest.mark.parametrize(
        ("nodes", "words"),
        [
            (
                {"save": node(None, "VAEDecode", samples=["1", 0])},
                "no output node: .* after VAEDecode; add a",
            ),
            ({"save": node(None, "SaveVideo", video=["1", 0])}, "no output node: .* after SaveVideo; add a"),
            ({"2": node(None, "A", x=["3", 0]), "3": node(None, "B", x=["2", 0])}, "nodes .* form a cycle"),
            ({"2": node(None, "A", x=["2", 1])}, "nodes 2 -> 2 form a cycle"),
        ],
    )
    def test_ends(self, nodes, words):
        """ComfyUI would refuse these graphs, or end without an image, when the pod is already paid for."""
        with pytest.raises(WorkflowError, match=words):
            parsed(**nodes)

    def test_end_of_an_unknown_class(self):
        """A node of an extension may save images."""
        assert parsed(save=node(None, "Image Saver", images=["1", 0]))

    def test_long_chain(self):
        """Is not followed by recursion."""
        chain = {f"c{n}": node(None, "A", x=[f"c{n - 1}", 0]) for n in range(1, 5000)}
        assert parsed(c0=node(None, "A"), **chain)

    def test_list_that_is_no_link(self):
        """Two words are two words."""
        assert parsed(**{"2": node(choices=["red", "blue"])}).graph["2"]["inputs"]["choices"]


class TestLoad:
    @pytest.mark.parametrize(
        ("setting", "checkpoint"), [(ComfyUI().checkpoint, None), ("mine.safetensors", "mine.safetensors")]
    )
    def test_checkpoint(self, setting, checkpoint):
        """The default is the built-in workflow's own: other workflows keep theirs."""
        assert checkpoint == load("", "", setting).checkpoint

    def test_nothing_configured(self):
        """The built-in one, and no names."""
        workflows = load("", "", "c")
        assert (built_in(), {}) == (workflows.default, workflows.named)
        with pytest.raises(InvalidRequest, match=r"^workflow: "):
            workflows.find("any")

    def test_files(self, tmp_path):
        """One's own default, and a folder of others; a name may have its ending."""
        good = json.dumps({"1": node("prompt", text=""), "2": SAVE})
        (tmp_path / "mine.json").write_text(good)
        (tmp_path / "notes.txt").write_text("no workflow")
        workflows = load(str(tmp_path / "mine.json"), str(tmp_path), "c")
        assert workflows.find("mine") is workflows.find("mine.json")
        assert workflows.default == workflows.find("mine")
        assert workflows.default is workflows.find(None)

    def test_all_that_is_wrong_at_once(self, tmp_path):
        """A complaint for each file, with setting, file, node and key."""
        (tmp_path / "a.json").write_text("{}")
        (tmp_path / "b.json").write_text(json.dumps({"4": node("prompt", clip=1)}))
        with pytest.raises(SettingsError) as caught:
            load(str(tmp_path / "none.json"), str(tmp_path), "c")
        first, second, third = caught.value.complaints
        assert first.startswith("comfyui.workflow: ")
        assert second.startswith(f"comfyui.workflows_dir: {tmp_path}/a.json: ")
        assert 'node 4 ("prompt")' in third
