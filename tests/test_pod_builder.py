"""What is said of pods that are not configured any more."""

from __future__ import annotations

from pathlib import Path

from gpugate.config.schema import PodSettings
from gpugate.json_file import JsonFile
from gpugate.pod_builder import UNPROVED_STOPS, left_stops


def test_stops_of_pods_that_are_gone(tmp_path: Path) -> None:
    """One line for each, with its providers and what to do; none for a pod that goes on with its own."""
    warnings: list[str] = []
    files = {name: tmp_path / "pods" / name / UNPROVED_STOPS for name in ("code", "old", "done", "torn")}
    for name, providers in {"code": ["demo"], "old": ["vastai", "runpod"], "done": []}.items():
        JsonFile(files[name]).write(providers)
    files["torn"].parent.mkdir()
    files["torn"].write_text("{")
    JsonFile(tmp_path / UNPROVED_STOPS).write(["runpod"])

    lines = left_stops(tmp_path, [PodSettings(name="code")], warnings.append)

    says = "see there that nothing of it runs, then delete"
    assert [
        "the pod 'main' is not configured any more, and its stop at runpod is not proved:"
        f" {says} {tmp_path / UNPROVED_STOPS}",
        "the pod 'old' is not configured any more, and its stop at runpod and vastai is not proved:"
        f" {says} {files['old']}",
    ] == lines
    assert [f"cannot read {files['torn']}: it is damaged"] == warnings


def test_one_pod_alone(tmp_path: Path) -> None:
    """Its file is read by its lifecycle; without a state folder there is nothing."""
    assert [] == left_stops(tmp_path / "new", [PodSettings()], print)
    JsonFile(tmp_path / UNPROVED_STOPS).write(["runpod"])
    assert [] == left_stops(tmp_path, [PodSettings()], print)
