"""ComfyUI workflows: read and checked once, rendered per request by node title. Pure.

A workflow is a graph in API format. Nodes whose title (`_meta.title`) is `prompt`, `negative prompt`,
`seed`, `size` or `checkpoint` are filled in (docs/api.md#images-out); several nodes may share a title.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson
from attrs import field, frozen

from gpugate.errors import InvalidRequest, SettingsError

BUILT_IN = "text-to-image.json"

_TEXTS = ("text", "prompt", "value", "string")
# By title: groups of inputs, of each group the first that the node has.
_INPUTS_BY_TITLE: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "prompt": (_TEXTS,),
    "negative prompt": (_TEXTS,),
    "seed": (("seed", "noise_seed", "value"),),
    "size": (("width",), ("height",)),
    "checkpoint": (("ckpt_name", "unet_name", "model_name"),),
}
_REQUIRED_TITLE = "prompt"
_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Core nodes that return no image file. Nodes that are not listed, those of extensions too, may.
_GIVE_NO_IMAGE = """
CheckpointLoaderSimple UNETLoader CLIPLoader DualCLIPLoader VAELoader LoraLoader LoadImage CLIPTextEncode
EmptyLatentImage EmptyImage PrimitiveInt PrimitiveFloat PrimitiveString PrimitiveStringMultiline KSampler
KSamplerAdvanced SamplerCustom SamplerCustomAdvanced VAEDecode VAEDecodeTiled VAEEncode LatentUpscale
ImageScale ImageScaleBy ImageUpscaleWithModel ImageBlur ImageSharpen ImageStitch CreateVideo PreviewAny
SaveLatent SaveImageWebsocket SaveVideo SaveWEBM SaveAudio SaveAudioMP3 SaveAudioOpus PreviewAudio
"""


class WorkflowError(Exception):
    """A workflow is wrong; the message names the node and the key."""


@frozen
class ImageRequest:
    """An image to generate; None keeps the workflow's value. Width and height in pixels."""

    prompt: str = field(repr=False)
    seed: int
    negative_prompt: str | None = field(default=None, repr=False)
    width: int | None = None
    height: int | None = None


@frozen
class Workflow:
    """A checked graph.

    Attributes:
        slots: by title, (node, input) pairs; for `size` the width and the height alternate.
    """

    graph: Mapping[str, Any] = field(repr=False)
    slots: Mapping[str, tuple[tuple[str, str], ...]]

    def need_seed(self) -> None:
        """Check that the workflow takes a seed; called if the request sets one. Raises InvalidRequest."""
        if "seed" not in self.slots:
            raise _no_such_node("seed", "seed")

    def render(self, request: ImageRequest, checkpoint: str | None, unique_suffix: str) -> dict[str, Any]:
        """Return the graph to submit.

        Args:
            checkpoint: for the nodes of this title; None keeps the workflow's own.
            unique_suffix: makes names of files unique, so that ComfyUI's cache cannot answer with a file that
                was deleted (docs/telegram-comfyui.md#comfyui-caching).

        Raises:
            InvalidRequest: the workflow has no node for something that the request sets.
        """
        graph: dict[str, Any] = json.loads(json.dumps(self.graph))
        for name, title, wanted in _wanted(request, checkpoint):
            if wanted is None:
                continue
            at = [place for place in self.slots.get(title, ()) if title != "size" or place[1] == name]
            if not at and name in ("negative_prompt", "width", "height"):
                raise _no_such_node(name, title)
            for node, key in at:
                graph[node]["inputs"][key] = wanted
        for node in graph.values():
            prefix = node["inputs"].get("filename_prefix")
            if isinstance(prefix, str):
                node["inputs"]["filename_prefix"] = f"{prefix}_{unique_suffix}"
        return graph


def _no_such_node(name: str, title: str) -> InvalidRequest:
    return InvalidRequest(f'{name}: this workflow has no node titled "{title}"')


def _wanted(request: ImageRequest, checkpoint: str | None) -> Iterator[tuple[str, str, object]]:
    """Yield (name, title, value) of all that may be set."""
    yield "prompt", "prompt", request.prompt
    yield "negative_prompt", "negative prompt", request.negative_prompt
    yield "seed", "seed", request.seed
    yield "width", "size", request.width
    yield "height", "size", request.height
    yield "checkpoint", "checkpoint", checkpoint


def parse(text: bytes) -> Workflow:
    """Check a workflow.

    Raises:
        WorkflowError: not a workflow; the message names the node and the key.
    """
    if text.startswith(_BYTE_ORDER_MARKS):
        raise WorkflowError("begins with a byte order mark; save it as UTF-8 without one")
    try:
        graph = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise WorkflowError("is not JSON") from error
    if not isinstance(graph, dict) or not graph:
        raise WorkflowError("is no object of nodes")
    if isinstance(graph.get("nodes"), list):
        raise WorkflowError('"nodes" is a list: this is the editor\'s own format; export it in API format')
    if isinstance(graph.get("prompt"), dict) and "class_type" not in graph["prompt"]:
        raise WorkflowError('is a saved request to ComfyUI; keep only the object under "prompt"')
    for node, given in graph.items():
        _check_node(graph, node, given)
    places: dict[str, tuple[tuple[str, str], ...]] = {}
    for node, given in graph.items():
        title = title_of(given)
        if title in _INPUTS_BY_TITLE:
            places[title] = (*places.get(title, ()), *_slots(node, given, title))
    if _REQUIRED_TITLE not in places:
        raise WorkflowError(
            f'no node has the "_meta.title" "{_REQUIRED_TITLE}", so the prompt would not be used'
        )
    _check_ends(graph)
    return Workflow(graph, places)


def _check_node(graph: Mapping[str, Any], node: str, given: Any) -> None:
    if not isinstance(given, dict):
        raise WorkflowError(f"node {node}: is no object")
    if not isinstance(given.get("class_type"), str) or not given["class_type"]:
        raise WorkflowError(f'node {node}: "class_type" is missing')
    if not isinstance(given.get("inputs"), dict):
        raise WorkflowError(f'node {node} ({given["class_type"]}): "inputs" is missing')
    for key, value in given["inputs"].items():
        if _is_link(value) and value[0] not in graph:
            where = f'node {node} ({given["class_type"]}): "inputs.{key}"'
            raise WorkflowError(f"{where} refers to node {value[0]}, which is not there")


def _check_ends(graph: Mapping[str, Any]) -> None:
    """Check that the nodes form no cycle, and that one which nothing follows may return an image."""
    links = {
        node: [value[0] for value in given["inputs"].values() if _is_link(value)]
        for node, given in graph.items()
    }
    try:
        TopologicalSorter(links).prepare()
    except CycleError as error:
        raise WorkflowError(f"nodes {' -> '.join(error.args[1])} form a cycle") from error
    ends = graph.keys() - {link for linked in links.values() for link in linked}
    kinds = [given["class_type"] for node, given in graph.items() if node in ends]
    if set(kinds) <= set(_GIVE_NO_IMAGE.split()):
        raise WorkflowError(f"no output node: nothing saves an image after {kinds[-1]}; add a SaveImage")


def title_of(given: Mapping[str, Any]) -> str:
    """Return a node's title as it is compared: in lower case, with single blanks."""
    meta = given.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return " ".join(title.split()).lower() if isinstance(title, str) else ""


def _slots(node: str, given: Mapping[str, Any], title: str) -> Iterator[tuple[str, str]]:
    """Yield the inputs of a titled node that a request sets."""
    inputs = given["inputs"]
    for names in _INPUTS_BY_TITLE[title]:
        key = next((name for name in names if name in inputs), None)
        if key is None:
            choice = " or ".join(f'"inputs.{name}"' for name in names)
            raise WorkflowError(f'node {node} ("{title}"): {choice} is missing')
        if _is_link(inputs[key]):
            raise WorkflowError(
                f'node {node} ("{title}"): "inputs.{key}" is taken from node {inputs[key][0]}; title that one'
            )
        yield node, key


def _is_link(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return isinstance(value[0], str) and isinstance(value[1], int)


@frozen
class Workflows:
    """The default workflow and those that a request may name.

    Attributes:
        checkpoint: `comfyui.checkpoint`, for nodes that are titled so; None, if it is that of the built-in
            workflow: each workflow keeps its own.
    """

    default: Workflow
    named: Mapping[str, Workflow]
    checkpoint: str | None

    def find(self, name: str | None) -> Workflow:
        """Return the workflow of this name, with or without `.json`. Raises InvalidRequest."""
        if name is None:
            return self.default
        found = self.named.get(name.removesuffix(".json"))
        if found is None:
            raise InvalidRequest("workflow: there is none of this name in comfyui.workflows_dir")
        return found


def load(workflow: str, folder: str, checkpoint: str) -> Workflows:
    """Read all configured workflows (the settings `comfyui.*`); an empty path: none.

    Raises:
        SettingsError: names every wrong file, its node and its key.
    """
    complaints: list[str] = []

    def read(key: str, path: Path) -> Workflow | None:
        try:
            return parse(path.read_bytes())
        except WorkflowError as error:
            complaints.append(f"{key}: {path}: {error}")
        except OSError as error:
            complaints.append(f"{key}: {path}: {error.strerror}")
        return None

    default = read("comfyui.workflow", Path(workflow)) if workflow else built_in()
    paths = sorted(Path(folder).glob("*.json")) if folder else []
    named = {path.stem: read("comfyui.workflows_dir", path) for path in paths}
    if complaints or default is None:
        raise SettingsError(complaints)
    [(node, key)] = built_in().slots["checkpoint"]
    chosen = None if checkpoint == built_in().graph[node]["inputs"][key] else checkpoint
    return Workflows(default, {name: one for name, one in named.items() if one is not None}, chosen)


def built_in() -> Workflow:
    """Return gpugate's own text-to-image workflow."""
    return parse((files("gpugate.generation") / BUILT_IN).read_bytes())
