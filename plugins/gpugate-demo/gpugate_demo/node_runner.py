"""Runs single ComfyUI nodes: waits, reports sampling steps, saves a picture."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import define

from gpugate_demo.file_store import FileStore
from gpugate_demo.graph import drawing
from gpugate_demo.nodes import Node, known_nodes
from gpugate_demo.picture import draw, with_text
from gpugate_demo.text_generator import image_facts

if TYPE_CHECKING:
    from gpugate_demo.jobs import ComfyJob

Tell = Callable[[str, dict[str, Any], str | None], None]
TellClient = Callable[[str, dict[str, Any]], None]
Step = Callable[[str, float, float, str], None]

MAX_SIDE = 2048  # a larger picture is drawn smaller: it would cost seconds and show the same
MAX_BATCH = 16
_NODES = known_nodes(())
# Not pictures of the prompt: the standard library writes neither format.
_FRAME = bytes.fromhex("5650384c0d0000002f00000010071011118888fe070000")  # VP8L of one pixel, padded
_WEBP_BODY = (
    b"WEBPVP8X\x0a\0\0\0\x02" + b"\0" * 9 + b"ANIM\x06\0\0\0" + b"\0" * 6
    + b"ANMF" + (16 + len(_FRAME)).to_bytes(4, "little") + b"\0" * 16 + _FRAME
)  # fmt: skip
_CONTENTS = {
    ".webp": b"RIFF" + len(_WEBP_BODY).to_bytes(4, "little") + _WEBP_BODY,
    ".webm": b"\x1aE\xdf\xa3webm",
    ".mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
}


class Interrupted(Exception):
    """The job was interrupted at this node."""

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self.node = node


class Failure(Exception):
    """A node failed; the report has a real one's fields, its server's paths included."""

    def __init__(self, node: str, kind: str, text: str) -> None:
        super().__init__(text)
        self.node, self.kind, self.text = node, kind, text

    def report(self) -> dict[str, Any]:
        """The fields of `execution_error` beside the node's."""
        line = '  File "/opt/comfyui/execution.py", line 496, in execute\n'
        return {
            "exception_message": self.text,
            "exception_type": self.kind,
            "traceback": [line],
            "current_inputs": {},
            "current_outputs": [self.node],
        }


@define
class NodeRunner:
    """Runs single nodes.

    Attributes:
        step_s: time of one sampling step.
        node_s: time of every other node.
        previews: send a picture with every sampling step.
    """

    shelf: FileStore
    step_s: float = 0.0
    node_s: float = 0.0
    previews: bool = False

    async def run(self, job: ComfyJob, name: str, step: Step, tell: TellClient) -> dict[str, Any]:
        """Do a node's work and return what it shows, {} for most. Raises Interrupted, Failure."""
        given = job.graph[name]
        kind = given["class_type"]
        if kind in ("KSampler", "KSamplerAdvanced"):
            await self._sample(job, name, step, tell)
            return {}
        await asyncio.sleep(self.node_s)
        if kind == "LoadImage":
            self._load(name, str(given["inputs"]["image"]))
        node = _NODES[kind]
        if node.saves in ("output", "temp"):
            return await self._save(job, name, node)
        if node.saves == "text":
            return {"text": ["simulated"]}
        if kind == "SaveImageWebsocket":
            await self._send(job, name, step, tell)
        return {}

    async def _sample(self, job: ComfyJob, name: str, step: Step, tell: TellClient) -> None:
        steps = int(job.graph[name]["inputs"]["steps"])
        preview = draw(name, 0, 64, 64) if self.previews else b""
        for done in range(1, steps + 1):
            await asyncio.sleep(self.step_s)
            if job.stop.is_set():
                raise Interrupted(name)
            step(name, done, steps, "running")
            tell("progress", {"value": done, "max": steps, "prompt_id": job.id, "node": name})
            if preview:
                tell("preview", {"node": name, "prompt_id": job.id, "png": preview})

    def _load(self, name: str, path: str) -> None:
        stored = self.shelf.input(path)
        if stored is None or image_facts(stored.data).kind == "unknown":
            text = f"cannot identify image file '/opt/comfyui/input/{path}'\n"
            raise Failure(name, "PIL.UnidentifiedImageError", text)

    async def _save(self, job: ComfyJob, name: str, node: Node) -> dict[str, Any]:
        given = job.graph[name]
        kind = node.saves
        prefix = str(given["inputs"].get("filename_prefix", "ComfyUI_temp_simul"))
        texts = {"prompt": json.dumps(job.graph)}
        pnginfo = job.extra.get("extra_pnginfo")
        if isinstance(pnginfo, dict):
            texts |= {str(key): json.dumps(value) for key, value in pnginfo.items()}
        images = []
        pictures = await self._pictures(job, name)
        for plain in pictures[:1] if node.animated else pictures:
            key = self.shelf.next_name(prefix, kind, node.ending)
            content = _CONTENTS.get(node.ending)
            self.shelf.put(key, content or with_text(plain, texts), content or plain)
            images.append({"filename": key[2], "subfolder": key[1], "type": kind})
        return {"images": images, "animated": [True]} if node.animated else {"images": images}

    async def _send(self, job: ComfyJob, name: str, step: Step, tell: TellClient) -> None:
        pictures = await self._pictures(job, name)
        for index, picture in enumerate(pictures):
            step(name, index, len(pictures), "running")
            tell("progress", {"value": index, "max": len(pictures), "prompt_id": job.id, "node": name})
            tell("preview", {"node": name, "prompt_id": job.id, "png": picture})

    async def _pictures(self, job: ComfyJob, name: str) -> list[bytes]:
        wanted = drawing(job.graph, name)
        width, height = min(wanted.width, MAX_SIDE), min(wanted.height, MAX_SIDE)
        return [
            await asyncio.to_thread(draw, wanted.text, wanted.seed + index, width, height)
            for index in range(min(wanted.count, MAX_BATCH))
        ]
