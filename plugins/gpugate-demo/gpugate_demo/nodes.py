"""The ComfyUI node classes of the simulation, as `/object_info` lists them.

Kinds, limits and defaults are those that ComfyUI 0.3.64 enforces (docs/telegram-comfyui.md#comfyui).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

SAMPLERS = ("euler", "euler_ancestral", "heun", "dpm_2", "dpmpp_2m", "dpmpp_2m_sde", "ddim", "uni_pc", "lcm")
SCHEDULERS = ("normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta")
UPSCALERS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
DEFAULT_CHECKPOINT = "v1-5-pruned-emaonly.safetensors"

Input = list[Any]  # as in /object_info: [kind or list of choices, options]


@frozen
class Node:
    """One class of nodes.

    Attributes:
        inputs: required inputs by name.
        outputs: kinds of what it gives.
        saves: for a node that ends a graph: "output" or "temp" files, pictures on the "socket", or "text".
        ending: of the files' names.
        animated: the files are marked as animations, as videos are, too.
    """

    title: str
    category: str
    inputs: Mapping[str, Input] = field(hash=False)
    outputs: tuple[str, ...]
    saves: str = ""
    ending: str = ".png"
    animated: bool = False

    def info(self, name: str) -> dict[str, Any]:
        """Its entry in /object_info."""
        return {
            "input": {"required": dict(self.inputs)},
            "input_order": {"required": list(self.inputs)},
            "output": list(self.outputs),
            "output_is_list": [False] * len(self.outputs),
            "output_name": list(self.outputs),
            "name": name,
            "display_name": self.title,
            "description": "",
            "python_module": "nodes",
            "category": self.category,
            "output_node": bool(self.saves),
        }


def _int(default: int, least: int, most: int, step: int = 1) -> Input:
    return ["INT", {"default": default, "min": least, "max": most, "step": step}]


def _float(default: float, least: float, most: float) -> Input:
    return ["FLOAT", {"default": default, "min": least, "max": most, "step": 0.01}]


def _choice(*choices: str) -> Input:
    return [list(choices), {}]


_IMAGE: Input = ["IMAGE", {}]
_IMAGES: Input = ["IMAGE", {"tooltip": "The images to save."}]
_PREFIX: Input = ["STRING", {"default": "ComfyUI"}]


def known_nodes(checkpoints: tuple[str, ...]) -> dict[str, Node]:
    """All nodes of a server that has these checkpoints."""
    tip = {"tooltip": "The name of the checkpoint (model) to load."}
    return {
        "CheckpointLoaderSimple": Node(
            "Load Checkpoint", "loaders", {"ckpt_name": [list(checkpoints), tip]}, ("MODEL", "CLIP", "VAE")
        ),
        "CLIPTextEncode": Node(
            "CLIP Text Encode (Prompt)",
            "conditioning",
            {"text": ["STRING", {"multiline": True}], "clip": ["CLIP", {}]},
            ("CONDITIONING",),
        ),
        "EmptyLatentImage": Node(
            "Empty Latent Image",
            "latent",
            {
                "width": _int(512, 16, 16384, 8),
                "height": _int(512, 16, 16384, 8),
                "batch_size": _int(1, 1, 4096),
            },
            ("LATENT",),
        ),
        "KSampler": Node("KSampler", "sampling", _sampler_inputs(), ("LATENT",)),
        "KSamplerAdvanced": Node("KSampler (Advanced)", "sampling", _advanced_inputs(), ("LATENT",)),
        "PrimitiveInt": Node("Int", "utils/primitive", {"value": _int(0, -(2**63 - 1), 2**63 - 1)}, ("INT",)),
        "PrimitiveString": Node("String", "utils/primitive", {"value": ["STRING", {}]}, ("STRING",)),
        "PreviewAny": Node("Preview Any", "utils", {"source": ["*", {}]}, (), "text"),
        "VAEDecode": Node(
            "VAE Decode", "latent", {"samples": ["LATENT", {}], "vae": ["VAE", {}]}, ("IMAGE",)
        ),
        "VAEEncode": Node("VAE Encode", "latent", {"pixels": _IMAGE, "vae": ["VAE", {}]}, ("LATENT",)),
        **_image_nodes(),
    }


def _sampler_inputs() -> dict[str, Input]:
    return {
        "model": ["MODEL", {}],
        "seed": _int(0, 0, 2**64 - 1),
        "steps": _int(20, 1, 10000),
        "cfg": _float(8.0, 0.0, 100.0),
        "sampler_name": _choice(*SAMPLERS),
        "scheduler": _choice(*SCHEDULERS),
        "positive": ["CONDITIONING", {}],
        "negative": ["CONDITIONING", {}],
        "latent_image": ["LATENT", {}],
        "denoise": _float(1.0, 0.0, 1.0),
    }


def _advanced_inputs() -> dict[str, Input]:
    inputs = _sampler_inputs()
    del inputs["denoise"]
    return {
        **{"noise_seed" if key == "seed" else key: spec for key, spec in inputs.items()},
        "add_noise": _choice("enable", "disable"),
        "start_at_step": _int(0, 0, 10000),
        "end_at_step": _int(10000, 0, 10000),
        "return_with_leftover_noise": _choice("disable", "enable"),
    }


def _image_nodes() -> dict[str, Node]:
    scale: dict[str, Input] = {
        "image": _IMAGE,
        "upscale_method": _choice(*UPSCALERS),
        "width": _int(512, 0, 16384),
        "height": _int(512, 0, 16384),
        "crop": _choice("disabled", "center"),
    }
    blur: dict[str, Input] = {"image": _IMAGE, "blur_radius": _int(1, 1, 31), "sigma": _float(1.0, 0.1, 10.0)}
    empty: dict[str, Input] = {
        "width": _int(512, 1, 16384),
        "height": _int(512, 1, 16384),
        "batch_size": _int(1, 1, 4096),
        "color": _int(0, 0, 0xFFFFFF),
    }
    saved: dict[str, Input] = {"images": _IMAGES, "filename_prefix": _PREFIX}
    return {
        "EmptyImage": Node("EmptyImage", "image", empty, ("IMAGE",)),
        "LoadImage": Node(
            "Load Image", "image", {"image": ["STRING", {"image_upload": True}]}, ("IMAGE", "MASK")
        ),
        "ImageScale": Node("Upscale Image", "image/upscaling", scale, ("IMAGE",)),
        "ImageBlur": Node("Blur Image", "image/postprocessing", blur, ("IMAGE",)),
        "SaveImage": Node("Save Image", "image", saved, (), "output"),
        "PreviewImage": Node("Preview Image", "image", {"images": _IMAGES}, (), "temp"),
        "SaveImageWebsocket": Node("SaveImageWebsocket", "api/image", {"images": _IMAGES}, (), "socket"),
        **_animation_nodes(saved),
    }


def _animation_nodes(saved: dict[str, Input]) -> dict[str, Node]:
    fps = _float(6.0, 0.01, 1000.0)
    webp = {**saved, "fps": fps, "lossless": ["BOOLEAN", {}], "quality": _int(80, 0, 100)}
    webp["method"] = _choice("default", "fastest", "slowest")
    png = {**saved, "fps": fps, "compress_level": _int(4, 0, 9)}
    webm = {**saved, "codec": _choice("vp9", "av1"), "fps": fps, "crf": _float(32.0, 0.0, 63.0)}
    video = {"video": ["VIDEO", {}], "filename_prefix": ["STRING", {"default": "video/ComfyUI"}]}
    video |= {"format": _choice("auto", "mp4"), "codec": _choice("auto", "h264")}
    return {
        "SaveAnimatedWEBP": Node("SaveAnimatedWEBP", "image/animation", webp, (), "output", ".webp", True),
        "SaveAnimatedPNG": Node("SaveAnimatedPNG", "image/animation", png, (), "output", ".png", True),
        "SaveWEBM": Node("SaveWEBM", "image/video", webm, (), "output", ".webm", True),
        "CreateVideo": Node("Create Video", "image/video", {"images": _IMAGE, "fps": fps}, ("VIDEO",)),
        "SaveVideo": Node("Save Video", "image/video", video, (), "output", ".mp4", True),
    }
