"""Reads ComfyUI's responses: what a job returned, or why there is no image, in one line for people. Pure.

No text is passed on that may hold a path of its server or a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from gpugate.errors import ImageFailed
from gpugate.generation.workflows import title_of
from gpugate.proxy.error_format import edge_error

MAX_ERROR_LENGTH = 160
MAX_NAME_LENGTH = 200
MAX_TEXT_LENGTH = 2000
_READ = (".png", ".jpg", ".jpeg", ".webp", ".gif")
_PATH = re.compile(r"(?:^|[\s'\"(=])(?:[A-Za-z]:)?[\\/][\w.-]+|Traceback|File \"")
# A name, or a path relative to ComfyUI's own folders.
_NAME = re.compile(r"(?![/\\]|\w:[/\\]|.*\.\.)[\w.:+()[\] /\\-]{1,120}")
_INVALID_FILE = re.compile(r"\w+ - (Invalid \w+ file): (.*)")
_UNREADABLE = "a reason that is not shown"


def read_object(data: bytes | str) -> dict[str, Any] | None:
    """Return a JSON object, None if it is not one."""
    try:
        answer = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return answer if isinstance(answer, dict) else None


def rows_of(answer: Mapping[str, Any], name: str) -> list[Any]:
    """Return the list of this name, [] if there is none."""
    rows = answer.get(name)
    return rows if isinstance(rows, list) else []


def progress_of(data: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return (value, max) of a progress event, whole numbers as int; None if they make no sense."""
    value, most = data.get("value"), data.get("max")
    if not isinstance(value, int | float) or not isinstance(most, int | float):
        return None
    if not 0 <= value <= most < 2**53 or not most:
        return None
    return _whole(value), _whole(most)


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def image_location(entry: Mapping[str, Any], graph: Mapping[str, Any]) -> Mapping[str, str]:
    """Return where the job's image is (docs/api.md#images-out), as `/view` takes it.

    ComfyUI lists outputs in an order of chance, so the graph decides: the node titled `picture` first, still
    images before animations, saved ones before previews, then the order of the nodes.

    Raises:
        ImageFailed: the job failed, or returned no image.
    """
    problem = execution_problem(entry)
    if problem is not None:
        raise ImageFailed(problem)
    outputs = entry.get("outputs")
    outputs = outputs if isinstance(outputs, dict) else {}
    places = {node: place for place, node in enumerate(graph)}
    found: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []
    files = 0
    for node, output in outputs.items():
        images = rows_of(output, "images") if isinstance(output, dict) else []
        named = [
            image for image in images if isinstance(image, dict) and isinstance(image.get("filename"), str)
        ]
        files += len(named)
        best = next((image for image in named if image["filename"].lower().endswith(_READ)), None)
        if best is not None:
            animated = any(rows_of(output, "animated")) or best["filename"].lower().endswith(".gif")
            untitled = node not in graph or title_of(graph[node]) != "picture"
            rank = (untitled, animated, best.get("type") != "output", places.get(node, len(places)), node)
            found.append((rank, best))
    if not found:
        other = ", only with a video or another file" if files else ""
        raise ImageFailed(f"the workflow ended without an image{other}")
    chosen = min(found, key=lambda one: one[0])[1]
    return {
        "filename": chosen["filename"],
        "subfolder": str(chosen.get("subfolder") or ""),
        "type": str(chosen.get("type") or "output"),
    }


def bare_name(filename: str) -> str:
    """Return a file's name without its folder and without characters that clients could stumble over."""
    bare = filename.replace("\\", "/").rpartition("/")[2][-MAX_NAME_LENGTH:]
    return "".join(char if char.isprintable() else "_" for char in bare)


def refusal(status: int, answer: Mapping[str, Any] | None, page: bytes = b"") -> str:
    """Return why a graph was rejected, or a part of it.

    Args:
        answer: the body, if it is a JSON object.
        page: the body.
    """
    edge = edge_error(status, "text/plain", page, proxied=True) if status < 500 else None
    if edge is not None:
        return edge.message
    if status in (401, 403):
        return f"ComfyUI, or a proxy in front of it, wants a password or token ({status})"
    if answer is None or not (answer.get("node_errors") or answer.get("error")):
        if status == 500 and page.startswith(b"500 Internal Server Error"):
            return "ComfyUI cannot read the workflow (500)"
        if status >= 500:
            return f"a proxy in front of ComfyUI failed ({status})"
        if status < 400:
            return f"another page answered instead of ComfyUI ({status}); a login page or a wrong address?"
        return f"ComfyUI answered {status} to the workflow"
    nodes = answer.get("node_errors")
    if isinstance(nodes, dict) and nodes:
        said = _node(*next(iter(nodes.items())))
        more = f" (and {len(nodes) - 1} more)" if len(nodes) > 1 else ""
    else:
        error = answer.get("error")
        said, more = _safe(error.get("message") if isinstance(error, dict) else None), ""
    return f"ComfyUI refused the workflow: {said}{more}"


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
    message = error.get("message")
    missing = _INVALID_FILE.fullmatch(str(error.get("details"))[:MAX_TEXT_LENGTH])
    if error.get("type") == "custom_validation_failed" and missing is not None:
        message, value = missing.groups()  # of a node that loads a file, which the pod lacks
        shown = f": {value}" if _NAME.fullmatch(value) else ""
    return f"{where}{key}: {_safe(message)}{shown}"


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
    shown = str(text)[:MAX_TEXT_LENGTH]
    if not isinstance(text, str | int) or _PATH.search(shown):
        return _UNREADABLE
    line = " ".join("".join(char if char.isprintable() else " " for char in shown).split())
    return line if len(line) <= MAX_ERROR_LENGTH else line[: MAX_ERROR_LENGTH - 1] + "…"
