"""Checking of ComfyUI graphs: the recorded complaints, and what the recordings do not show."""

import pytest
from gpugate_demo.graph import NotAGraph, drawing, judge, order, signatures
from gpugate_demo.nodes import known_nodes
from hypothesis import given
from hypothesis import strategies as st

NODES = known_nodes(("sd15.safetensors",))
EMPTY = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 7}}
SAVE = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
GOOD = {"1": EMPTY, "9": SAVE}


def check(graph):
    return judge(graph, NODES, lambda path: path == "there.png")


def changed(node, **inputs):
    return {**node, "inputs": {**node["inputs"], **inputs}}


class TestJudge:
    def test_a_good_graph(self):
        verdict = check(GOOD)

        assert (("9",), {}, None) == (verdict.outputs, verdict.node_errors, verdict.error)

    @pytest.mark.parametrize(
        "graph", ["a castle", 5, None, ["1"], {"last_node_id": 9, "nodes": []}, {"1": {"class_type": 5}}]
    )
    def test_what_is_no_graph(self, graph):
        """The real server falls over it, with a UI export as with a text."""
        with pytest.raises(NotAGraph):
            check(graph)

    @pytest.mark.parametrize(
        ("graph", "kind"),
        [
            ({}, "prompt_no_outputs"),
            ([], "prompt_no_outputs"),
            ({"nodes": [], "links": []}, "invalid_prompt"),
            ({"1": EMPTY}, "prompt_no_outputs"),
            ({"1": {"class_type": "Nope", "inputs": {}}, "9": SAVE}, "invalid_prompt"),
            ({"1": {"inputs": {}}, "9": SAVE}, "invalid_prompt"),
        ],
    )
    def test_what_cannot_run_at_all(self, graph, kind):
        verdict = check(graph)

        assert (kind, {}) == (verdict.error["type"], verdict.node_errors)

    @pytest.mark.parametrize(
        ("node", "kind", "details"),
        [
            (changed(EMPTY, width=999999), "value_bigger_than_max", "width"),
            (changed(EMPTY, width=0), "value_smaller_than_min", "width"),
            (
                changed(EMPTY, width="abc"),
                "invalid_input_type",
                "width, abc, invalid literal for int() with base 10: 'abc'",
            ),
            ({**EMPTY, "inputs": {}}, "required_input_missing", "width"),
            ({"class_type": "EmptyImage"}, "exception_during_inner_validation", "'inputs'"),
            (changed(EMPTY, width=["1", 0, 0]), "bad_linked_input", "width"),
            (
                {"class_type": "LoadImage", "inputs": {"image": "no.png"}},
                "custom_validation_failed",
                "image - Invalid image file: no.png",
            ),
        ],
    )
    def test_a_bad_value(self, node, kind, details):
        """The complaint stands at the node, and the output that hangs on it is named."""
        verdict = check({"1": node, "9": SAVE})
        entry = verdict.node_errors["1"]

        assert "prompt_outputs_failed_validation" == verdict.error["type"]
        assert (kind, details) == (entry["errors"][0]["type"], entry["errors"][0]["details"])
        assert (["9"], node["class_type"]) == (entry["dependent_outputs"], entry["class_type"])

    def test_a_missing_checkpoint(self):
        loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "other.safetensors"}}
        latent = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
        decode = {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 2]}}
        verdict = check({"1": loader, "2": latent, "3": decode, "9": changed(SAVE, images=["3", 0])})
        error = verdict.node_errors["1"]["errors"][0]

        assert ("value_not_in_list", "ckpt_name: 'other.safetensors' not in ['sd15.safetensors']") == (
            error["type"],
            error["details"],
        )

    def test_a_link_of_another_kind(self):
        """The complaint stands at the output, so its words are in the whole error as well."""
        latent = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
        verdict = check({"1": latent, "9": SAVE})
        words = "images, received_type(LATENT) mismatch input_type(IMAGE)"

        assert f"Return type mismatch between linked nodes: {words}" == verdict.error["details"]
        assert words == verdict.node_errors["9"]["errors"][0]["details"]

    @pytest.mark.parametrize("link", [["777", 0], ["1", 5], ["1", "x"], ["9", 0]])
    def test_a_link_to_nowhere(self, link):
        """An unknown node, an output that is not there, itself: validating fell over."""
        errors = check({"1": EMPTY, "9": changed(SAVE, images=link)}).node_errors["9"]["errors"]

        assert "exception_during_validation" == errors[0]["type"]
        assert "/opt/comfyui/" in errors[0]["extra_info"]["traceback"][0]

    def test_a_circle(self):
        one = {"class_type": "ImageBlur", "inputs": {"image": ["2", 0], "blur_radius": 1, "sigma": 1.0}}
        two = {"class_type": "ImageBlur", "inputs": {"image": ["1", 0], "blur_radius": 1, "sigma": 1.0}}
        verdict = check({"1": one, "2": two, "9": SAVE})

        assert ((), {}) == (verdict.outputs, verdict.node_errors)
        assert "prompt_outputs_failed_validation" == verdict.error["type"]

    def test_a_long_list_of_choices(self):
        """It is told by its length, and not given back."""
        nodes = known_nodes(tuple(f"{n}.safetensors" for n in range(21)))
        decode = {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 2]}}
        graph = {
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
            "2": {"class_type": "VAEEncode", "inputs": {"pixels": ["4", 0], "vae": ["1", 2]}},
            "3": decode,
            "4": EMPTY,
            "9": changed(SAVE, images=["3", 0]),
        }
        error = judge(graph, nodes, lambda path: False).node_errors["1"]["errors"][0]

        assert (None, "ckpt_name: 'x' not in (list of length 21)") == (
            error["extra_info"]["input_config"],
            error["details"],
        )

    @pytest.mark.parametrize(("value", "kinds"), [(2**63 - 1, []), (2**63, ["value_bigger_than_max"])])
    def test_a_seed_of_a_primitive(self, value, kinds):
        """It takes half of what KSampler takes."""
        number = {"class_type": "PrimitiveInt", "inputs": {"value": value}}
        errors = check({"1": changed(EMPTY, color=["2", 0]), "2": number, "9": SAVE}).node_errors

        assert kinds == [error["type"] for error in errors.get("2", {"errors": []})["errors"]]

    def test_text_of_any_kind(self):
        preview = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}

        assert ("9",) == check({"1": EMPTY, "9": preview}).outputs

    def test_one_of_two_outputs(self):
        """It can run, and says what cannot."""
        bad = {"20": changed(EMPTY, width=0), "21": changed(SAVE, images=["20", 0])}
        verdict = check({**GOOD, **bad})

        assert (("9",), None, ["21"]) == (
            verdict.outputs,
            verdict.error,
            verdict.node_errors["20"]["dependent_outputs"],
        )

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=8,
        )
    )
    def test_anything_as_an_input(self, value):
        """No value of an input makes the check fall over."""
        for node, key in ((EMPTY, "width"), (SAVE, "images")):
            graph = {"1": EMPTY, "9": SAVE}
            graph["1" if node is EMPTY else "9"] = changed(node, **{key: value})

            assert (check(graph).error is None) == (check(graph).outputs == ("9",))


class TestReading:
    def test_a_latent_has_steps_of_eight(self):
        latent = {"class_type": "EmptyLatentImage", "inputs": {"width": 513, "height": 100}}
        found = drawing({"5": latent, "9": {"class_type": "SaveImage", "inputs": {"images": ["5", 0]}}}, "9")

        assert (512, 96) == (found.width, found.height)

    def test_linked_values(self):
        """A primitive's value is read where it is used."""
        graph = {
            "1": {"class_type": "PrimitiveString", "inputs": {"value": "a castle"}},
            "2": {"class_type": "PrimitiveInt", "inputs": {"value": 42}},
            "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["1", 0]}},
            "3": {
                "class_type": "KSamplerAdvanced",
                "inputs": {"noise_seed": ["2", 0], "positive": ["6", 0]},
            },
        }

        assert ("a castle", 42) == ((found := drawing(graph, "3")).text, found.seed)

    def test_order(self):
        """Each node after those that it needs, each once."""
        scale = {"class_type": "ImageScale", "inputs": {"image": ["1", 0]}}

        assert ["1", "2", "9", "10"] == order(
            {"10": SAVE, "9": changed(SAVE, images=["2", 0]), "2": scale, "1": EMPTY}, ("9", "10")
        )

    def test_signatures(self):
        """Another value, or another file of that name, is another signature for all below."""

        def of(graph, content=""):
            return signatures(graph, order(graph, ("9",)), lambda path: content)

        load = {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}, "9": SAVE}
        assert of(GOOD) == of(dict(GOOD))
        assert of(GOOD)["9"] != of({**GOOD, "1": changed(EMPTY, color=8)})["9"]
        assert of(load, "x")["9"] != of(load, "y")["9"]

    def test_drawing(self):
        """Texts, seed and size are found wherever they stand above the output."""
        graph = {
            "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
            "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 96, "batch_size": 2}},
            "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a castle", "clip": ["4", 1]}},
            "3": {
                "class_type": "KSampler",
                "inputs": {"seed": 42, "positive": ["6", 0], "latent_image": ["5", 0]},
            },
            "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
        }
        found = drawing(graph, "9")

        assert ("a castle", 42, 128, 96, 2) == (
            found.text,
            found.seed,
            found.width,
            found.height,
            found.count,
        )
