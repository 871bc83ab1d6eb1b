"""Reads ComfyUI's responses: what a job returned, or why there is no image, in one line for people. Pure.

No text is passed on that may hold a path of its server or a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from gpugate.errors import ImageFailed

MAX_ERROR_LENGTH = 160
_PATH = re.compile(r"(?:^|[\s'\"(=])(?:[A-Za-z]:)?[\\/][\w.-]+|Traceback|File \"")
_NAME = re.compile(r"[\w.:+ -]{1,80}")
_UNREADABLE = "a reason that is not shown"


def read_object(data: bytes | str) -> dict[str, Any] | None:
    try:
        answer = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return answer if isinstance(answer, dict) else None


def rows_of(answer: Mapping[str, Any], name: str) -> list[Any]:
    rows = answer.get(name)
    return rows if isinstance(rows, list) else []


def image_location(entry: Mapping[str, Any]) -> Mapping[str, str]:
    """Return where the job's image is, a saved one rather than a preview. Raises ImageFailed."""
    problem = execution_problem(entry)
    if problem is not None:
        raise ImageFailed(problem)
    outputs = entry.get("outputs")
    nodes = list(outputs.values()) if isinstance(outputs, dict) else []
    listed = [image for node in nodes if isinstance(node, dict) for image in rows_of(node, "images")]
    found = [image for image in listed if isinstance(image, dict) and isinstance(image.get("filename"), str)]
    if not found:
        raise ImageFailed("the workflow ended without an image")
    best = next((image for image in found if image.get("type") == "output"), found[0])
    return {
        "filename": best["filename"],
        "subfolder": str(best.get("subfolder") or ""),
        "type": str(best.get("type") or "output"),
    }


def refusal(status: int, answer: Mapping[str, Any] | None) -> str:
    """Return why ComfyUI rejected a graph, or a part of it."""
    if answer is None:
        if status == 500:  # its response to a graph that it cannot read at all
            return "ComfyUI cannot read the workflow (500)"
        return f"ComfyUI answered {status} to the workflow"
    nodes = answer.get("node_errors")
    said = [_node(name, given) for name, given in nodes.items()] if isinstance(nodes, dict) else []
    if not said:
        error = answer.get("error")
        text = error.get("message") if isinstance(error, dict) else None
        said = [_safe(text)]
    more = f" (and {len(said) - 1} more)" if len(said) > 1 else ""
    return f"ComfyUI refused the workflow: {said[0]}{more}"


def _node(name: object, given: object) -> str:
    """Return the first error of one node: where, and what is wrong."""
    entry = given if isinstance(given, dict) else {}
    where = f"node {_safe(name)} ({_safe(entry.get('class_type'))})"
    errors = entry.get("errors")
    error = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    extra = error.get("extra_info")
    extra = extra if isinstance(extra, dict) else {}
    key = f", {_safe(extra['input_name'])}" if isinstance(extra.get("input_name"), str) else ""
    value = extra.get("received_value")
    shown = ""
    if error.get("type") == "value_not_in_list" and isinstance(value, str) and _NAME.fullmatch(value):
        shown = f": {value}"  # a model that the pod lacks; the name is from the workflow or the settings
    return f"{where}{key}: {_safe(error.get('message'))}{shown}"


def execution_problem(entry: Mapping[str, Any]) -> str | None:
    """Return why a job failed; None: it succeeded, or the server does not say (older versions)."""
    status = entry.get("status")
    status = status if isinstance(status, dict) else {}
    if status.get("status_str", "success") == "success":
        return None
    messages = status.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    kind, data = last if isinstance(last, list) and len(last) == 2 else (None, None)
    if kind == "execution_interrupted":
        return "the job was interrupted at ComfyUI"
    if not isinstance(data, dict) or "node_type" not in data:
        return "ComfyUI failed to run the workflow"
    where = f"node {_safe(data.get('node_id'))} ({_safe(data.get('node_type'))})"
    kind = _safe(data.get("exception_type"))
    if "OutOfMemory" in kind:
        kind = "out of GPU memory"
    return f"ComfyUI failed at {where}: {kind}"


def _safe(text: object) -> str:
    """Return the text as one short line, or a placeholder if it may hold a path or a traceback."""
    if not isinstance(text, str | int) or _PATH.search(str(text)):
        return _UNREADABLE
    line = " ".join(str(text).split())
    return line if len(line) <= MAX_ERROR_LENGTH else line[: MAX_ERROR_LENGTH - 1] + "…"
