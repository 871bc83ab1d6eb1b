"""Validates ComfyUI graphs as its server does and reads what to draw from them.

The errors have the recorded shapes (docs/telegram-comfyui.md#comfyui-submitting-a-job).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field, frozen

from gpugate_demo.nodes import Input, Node

Graph = dict[str, Any]
Complaint = dict[str, Any]


class NotAGraph(Exception):
    """Input that crashes the real server: it answers 500 without JSON."""


class _Cycle(Exception):
    """A node depends on itself; the real server rejects the output without an error at any node."""


@frozen
class ValidationResult:
    """The result of validating a graph.

    Attributes:
        outputs: the output nodes that can run.
        node_errors: complaints by node; may be there although something can run.
        error: why nothing can run, or None.
    """

    outputs: tuple[str, ...] = ()
    node_errors: Mapping[str, Any] = field(factory=dict)
    error: Complaint | None = None


def complaint(kind: str, message: str, details: str = "", extra: Complaint | None = None) -> Complaint:
    """One entry of ComfyUI's errors."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra or {}}


def is_link(value: object) -> bool:
    """Whether an input takes another node's output: [node, index]."""
    return isinstance(value, list) and len(value) == 2


def judge(graph: object, nodes: Mapping[str, Node], has_file: Callable[[str], bool]) -> ValidationResult:
    """Check a graph. Raises NotAGraph."""
    if graph == []:  # taken for a graph without nodes
        graph = {}
    if not isinstance(graph, dict):
        raise NotAGraph
    for name, given in graph.items():
        where = f"Node ID '#{name}'"
        if isinstance(given, list | str) or (isinstance(given, dict) and "class_type" not in given):
            text = "Cannot execute because a node is missing the class_type property."
            return ValidationResult(error=complaint("invalid_prompt", text, where))
        if not isinstance(given, dict) or not isinstance(given["class_type"], str):
            raise NotAGraph
        if given["class_type"] not in nodes:
            text = f"Cannot execute because node {given['class_type']} does not exist."
            return ValidationResult(error=complaint("invalid_prompt", text, where))
    ends = [name for name, given in graph.items() if nodes[given["class_type"]].saves]
    if not ends:
        return ValidationResult(error=complaint("prompt_no_outputs", "Prompt has no outputs"))
    return _Check(graph, nodes, has_file).all(ends)


@define
class _Check:
    graph: Graph
    nodes: Mapping[str, Node]
    has_file: Callable[[str], bool]
    _own: dict[str, list[Complaint]] = field(factory=dict)
    _valid: dict[str, bool] = field(factory=dict)

    def all(self, ends: list[str]) -> ValidationResult:
        """Judge every output node with all that is above it."""
        good = tuple(end for end in ends if self._output(end))
        errors: dict[str, Any] = {}
        for end in ends:
            for name in self._bad_below(end, set()):
                entry = {
                    "errors": self._own[name],
                    "dependent_outputs": [],
                    "class_type": self.graph[name]["class_type"],
                }
                errors.setdefault(name, entry)["dependent_outputs"].append(end)
        if good:
            return ValidationResult(good, errors)
        details = "\n".join(f"{own['message']}: {own['details']}" for end in ends for own in self._own[end])
        failed = complaint("prompt_outputs_failed_validation", "Prompt outputs failed validation", details)
        return ValidationResult((), errors, failed)

    def _output(self, end: str) -> bool:
        try:
            return self._node(end, ())
        except _Cycle:
            return False

    def _bad_below(self, name: str, been: set[str]) -> list[str]:
        if name in been or name not in self._own:
            return []
        been.add(name)
        below = [bad for link in links(self.graph[name]) for bad in self._bad_below(link, been)]
        return below + ([name] if self._own[name] else [])

    def _node(self, name: str, path: tuple[str, ...]) -> bool:
        if name in path:
            raise _Cycle
        if name in self._valid:
            return self._valid[name]
        given = self.graph[name]
        own = self._own.setdefault(name, [])
        fine = True
        if not isinstance(given.get("inputs"), dict):
            own.append(_fell_over(KeyError("inputs"), inner=bool(path)))
            return False
        for key, spec in self.nodes[given["class_type"]].inputs.items():
            fine &= self._input(name, key, spec, given["inputs"], own, (*path, name))
        self._valid[name] = fine and not own
        return self._valid[name]

    def _input(
        self,
        name: str,
        key: str,
        spec: Input,
        inputs: Mapping[str, Any],
        own: list[Complaint],
        path: tuple[str, ...],
    ) -> bool:
        if key not in inputs:
            missing = complaint(
                "required_input_missing", "Required input is missing", key, {"input_name": key}
            )
            own.append(missing)
            return False
        value = inputs[key]
        if isinstance(value, list) and len(value) != 2:
            text = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            extra = {"input_name": key, "input_config": spec, "received_value": value}
            own.append(complaint("bad_linked_input", text, key, extra))
            return False
        if not is_link(value):
            bad = _bad_value(key, value, spec)
            if (
                bad is None
                and self.graph[name]["class_type"] == "LoadImage"
                and not self.has_file(str(value))
            ):
                text = f"{key} - Invalid image file: {value}"
                bad = complaint(
                    "custom_validation_failed", "Custom validation failed for node", text, {"input_name": key}
                )
            own.extend([bad] if bad else [])
            return bad is None
        try:
            return self._link(key, value, spec, own, path)
        except (KeyError, IndexError, TypeError) as error:
            own.append(_fell_over(error))
            return False

    def _link(
        self, key: str, link: list[Any], spec: Input, own: list[Complaint], path: tuple[str, ...]
    ) -> bool:
        received = self.nodes[self.graph[link[0]]["class_type"]].outputs[link[1]]
        if spec[0] not in (received, "*"):
            text = f"{key}, received_type({received}) mismatch input_type({spec[0]})"
            extra = {"input_name": key, "input_config": spec, "received_type": received, "linked_node": link}
            own.append(
                complaint("return_type_mismatch", "Return type mismatch between linked nodes", text, extra)
            )
            return False
        return self._node(link[0], path)


def _fell_over(error: Exception, *, inner: bool = False) -> Complaint:
    line = '  File "/opt/comfyui/execution.py", line 788, in validate_inputs\n'
    extra = {"exception_type": type(error).__name__, "traceback": [line]}
    if inner:
        text = "Exception when validating inner node"
        return complaint("exception_during_inner_validation", text, str(error), extra)
    return complaint("exception_during_validation", "Exception when validating node", str(error), extra)


def _bad_value(key: str, value: Any, spec: Input) -> Complaint | None:
    kind, options = spec[0], spec[1]
    extra = {"input_name": key, "input_config": spec, "received_value": value}
    if isinstance(kind, list):
        if value in kind:
            return None
        listed = str(kind)
        if len(kind) > 20:
            listed, extra["input_config"] = f"(list of length {len(kind)})", None
        return complaint("value_not_in_list", "Value not in list", f"{key}: '{value}' not in {listed}", extra)
    if kind not in ("INT", "FLOAT"):
        return None
    try:
        number = int(value) if kind == "INT" else float(value)
    except (ValueError, TypeError) as error:
        text = f"Failed to convert an input value to a {kind} value"
        details = f"{key}, {value}, {error}"
        return complaint("invalid_input_type", text, details, {**extra, "exception_message": str(error)})
    if number < options["min"]:
        return complaint(
            "value_smaller_than_min", f"Value {number} smaller than min of {options['min']}", key, extra
        )
    if number > options["max"]:
        return complaint(
            "value_bigger_than_max", f"Value {number} bigger than max of {options['max']}", key, extra
        )
    return None


def links(given: Graph) -> list[str]:
    """The nodes that a node takes something from."""
    return [str(value[0]) for value in (given.get("inputs") or {}).values() if is_link(value)]


def order(graph: Graph, outputs: tuple[str, ...]) -> list[str]:
    """What must run for `outputs`, each node after those it needs."""
    done: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in done:
            for link in links(graph[name]):
                visit(link)
            done[name] = None

    for name in outputs:
        visit(name)
    return list(done)


def signatures(graph: Graph, names: list[str], file_digest: Callable[[str], str]) -> dict[str, str]:
    """A digest per node of all that its result depends on; `names` in running order."""
    found: dict[str, str] = {}
    for name in names:
        given = graph[name]
        inputs = {
            key: [found[str(value[0])], value[1]] if is_link(value) else value
            for key, value in (given.get("inputs") or {}).items()
        }
        content = file_digest(str(inputs.get("image", ""))) if given["class_type"] == "LoadImage" else ""
        text = json.dumps([given["class_type"], inputs, content], sort_keys=True)
        found[name] = hashlib.sha256(text.encode()).hexdigest()
    return found


@frozen
class Drawing:
    """What a picture is drawn from: the texts and numbers above the node that saves it."""

    text: str
    seed: int
    width: int
    height: int
    count: int


def _value(graph: Graph, given: object) -> Any:
    """Return an input's value, that of a primitive node where it is linked to one."""
    if is_link(given) and str(given[0]) in graph:  # type: ignore[index]
        return (graph[str(given[0])].get("inputs") or {}).get("value")  # type: ignore[index]
    return given


def drawing(graph: Graph, end: str) -> Drawing:
    """Gather from the nodes above `end`; 512 by 512 where no node says a size."""
    above = order(graph, (end,))
    texts, seed, width, height, count = [], 0, 512, 512, 1
    for name in above:
        inputs = {key: _value(graph, given) for key, given in (graph[name].get("inputs") or {}).items()}
        kind = graph[name]["class_type"]
        if kind == "CLIPTextEncode":
            texts.append(str(inputs.get("text", "")))
        given_seed = inputs.get("seed", inputs.get("noise_seed"))
        seed = given_seed if isinstance(given_seed, int) else seed
        seed += int(inputs["color"]) if isinstance(inputs.get("color"), int) else 0
        width, height = int(inputs.get("width") or width), int(inputs.get("height") or height)
        if kind == "EmptyLatentImage":  # a latent has one pixel for each eight by eight
            width, height = width // 8 * 8, height // 8 * 8
        count = int(inputs["batch_size"]) if isinstance(inputs.get("batch_size"), int) else count
    return Drawing("\n".join(texts), seed, width, height, count)
