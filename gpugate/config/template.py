"""The commented configuration that `gpugate init` writes, made from the classes; reads and writes no file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import attrs

from gpugate.config.converter import is_secret, keys_of, types_of
from gpugate.config.schema import SECTIONS

_HEAD = """\
# gpugate's configuration. Every key is here with its default: what you delete keeps it.
# Two have none: auth.secret and pod.provider. Then `gpugate check` says whether all is well.
#
# Every key is also an environment variable, GPUGATE_<SECTION>__<KEY>, which wins over this file:
# GPUGATE_POD__IDLE_TIMEOUT=30m, GPUGATE_PROVIDERS__RUNPOD__API_KEY=...
# Every secret may stand in a file of its own: secret_file = "/run/secrets/gpugate" instead of secret.
# Durations are "90s", "15m", "1h30m" or a number of seconds; sizes are "64MiB", "20MB" or bytes.
"""

# A plugin's Config may not be installed where `init` runs, and what is written must not depend on
# it; so these sections stand here, and a test holds them against the classes that are there.
_PROVIDERS = """\
# Providers. Only the sections of those that pod.provider names are read.

[providers.runpod]          # pip install gpugate-runpod
api_key = ""                # runpod.io, Settings > API Keys (or api_key_file)
pod_id = ""                 # of a pod that you have created there; gpugate starts and stops it
api_base = "https://api.runpod.io/v2"
proxy_url = "https://{pod_id}-{port}.proxy.runpod.net"   # http, a port and a path are allowed
ollama_port = 11434
comfyui_port = 8188
timeout = "10s"             # of one API call

[providers.vastai]          # pip install gpugate-vastai
api_key = ""                # cloud.vast.ai, Keys (or api_key_file)
instance_id = 0
api_base = "https://console.vast.ai/api/v0"
scheme = "http"
ollama_port = 11434         # internal ports; the external ones come from the API
comfyui_port = 8188
timeout = "10s"
headers = {}                # sent to the pod's services (a template's own token)

[providers.local]           # a process on this machine
command = ["ollama", "serve"]
ollama_url = "http://127.0.0.1:11436"   # also handed to the process as OLLAMA_HOST
comfyui_url = ""

[providers.demo]            # a simulated pod, a real process with a real cold start
cold_start = "6s"
tokens_per_second = 25
hourly_rate = 0.44
"""


def commented_config() -> str:
    """Return the text of a configuration with every key, its default and what it is for."""
    return "\n".join([_HEAD, *("\n".join(_section(name)) + "\n" for name in SECTIONS), _PROVIDERS])


def _section(name: str) -> Iterator[str]:
    section_class = SECTIONS[name]
    types = types_of(section_class)
    yield f"[{name}]"
    for key, attribute in keys_of(section_class).items():
        line = f"{key} = {_toml(default_of(attribute))}"
        words = attribute.metadata["help"] + (f" (or {key}_file)" if is_secret(attribute, types[key]) else "")
        yield f"{line:<26}  # {words}"


def default_of(attribute: attrs.Attribute[Any]) -> object:
    """Return a key's default as a configuration has it: "15m", where the class has 900.0."""
    return attribute.metadata.get("text", attribute.default)


def _toml(value: object) -> str:
    if isinstance(value, Decimal):
        return str(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
