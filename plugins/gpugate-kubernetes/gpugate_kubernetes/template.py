"""The Pod or Job of a session, from a YAML file of the user's; touches no cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MANAGED_BY = "app.kubernetes.io/managed-by"
OF_POD = "gpugate.io/pod"
KINDS = {"Pod": "v1", "Job": "batch/v1"}


def labels_of(pod_name: str) -> dict[str, str]:
    """What everything carries that was made for this pod of the configuration."""
    return {MANAGED_BY: "gpugate", OF_POD: pod_name}


def selector_of(pod_name: str) -> str:
    """What finds it again."""
    return ",".join(f"{key}={value}" for key, value in labels_of(pod_name).items())


def read_template(path: str) -> dict[str, Any]:
    """Return the manifest in this file, `{name}` in it still to be replaced.

    Raises:
        ValueError: it cannot be read, or holds something else than one Pod or Job.
    """
    try:
        documents = list(yaml.safe_load_all(Path(path).expanduser().read_text()))
    except OSError as error:
        raise ValueError(f"template: {path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"template: {path} is no YAML ({' '.join(str(error).split())[:120]})") from error
    documents = [document for document in documents if document is not None]
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise ValueError(f"template: {path} must hold one Pod or Job, and nothing else")
    manifest: dict[str, Any] = documents[0]
    kind = manifest.get("kind")
    if KINDS.get(str(kind)) != manifest.get("apiVersion"):
        raise ValueError(f"template: {path} must hold a Pod (apiVersion v1) or a Job (batch/v1)")
    if not isinstance(manifest.get("spec"), dict):
        raise ValueError(f"template: {path} has no spec")
    if kind == "Job" and not isinstance(manifest["spec"].get("template"), dict):
        raise ValueError(f"template: {path} is a Job without a spec.template")
    return manifest


def filled(manifest: dict[str, Any], name: str, namespace: str, labels: dict[str, str]) -> dict[str, Any]:
    """Return the manifest with its name, namespace and labels, and with `{name}` replaced everywhere."""
    made: dict[str, Any] = _replaced(manifest, name)
    made["metadata"] = {**(made.get("metadata") or {}), "name": name, "namespace": namespace}
    _label(made["metadata"], labels)
    if made["kind"] == "Job":
        template = made["spec"]["template"]
        template["metadata"] = dict(template.get("metadata") or {})
        _label(template["metadata"], labels)
    return made


def _label(metadata: dict[str, Any], labels: dict[str, str]) -> None:
    metadata["labels"] = {**(metadata.get("labels") or {}), **labels}


def _replaced(value: Any, name: str) -> Any:
    match value:
        case str():
            return value.replace("{name}", name)
        case dict():
            return {key: _replaced(inner, name) for key, inner in value.items()}
        case list():
            return [_replaced(inner, name) for inner in value]
        case _:
            return value
