"""ComfyUI's complaints in one readable line each; pure, and never with its paths, tracebacks or inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LONGEST = 160
_PATH = re.compile(r"(?:^|[\s'\"(=])(?:[A-Za-z]:)?[\\/][\w.-]+|Traceback|File \"")
_NAME = re.compile(r"[\w.:+ -]{1,80}")
_UNREADABLE = "a reason that is not shown"


def refusal(status: int, answer: Mapping[str, Any] | None) -> str:
    """Why a graph was not taken, or only in part (recorded: prompt_validation_errors)."""
    if answer is None:
        if status == 500:  # what it answers to a graph that it cannot read at all
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
    """The first complaint about one node: where, and what is wrong."""
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
        shown = f": {value}"  # a model that the pod lacks: out of the workflow or the settings
    return f"{where}{key}: {_safe(error.get('message'))}{shown}"


def execution_problem(entry: Mapping[str, Any]) -> str | None:
    """What went wrong in a job that is over; None for one that succeeded, or does not say (old servers)."""
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
    """One short line, or a stand-in for what could hold a path or a trace."""
    if not isinstance(text, str | int) or _PATH.search(str(text)):
        return _UNREADABLE
    line = " ".join(str(text).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
