"""Tries the real Open WebUI in front of `gpugate demo`, as a new user would: `make openwebui`.

Installs Open WebUI into a virtual environment (several GB, once), starts both on an empty home, and shows
line by line: the models that are listed before the first start, a cold chat with its title, a warm chat, a
cold one that shows what it waits for as a thinking block (`queue.progress`), the stop button, the list while
the pod is stopped, and a picture. Ends with status 1 at the first thing that is not as it should be.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MODEL = "llama3.2:3b"
QUESTION = "Why is the sky blue?"
PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
        "0000000d49444154789c6360f8cfc0f01f0005050102cfa02ed50000000049454e44ae426082"
    )
).decode()


class Failed(Exception):
    """Something is not as it should be; the message says what."""


def main() -> int:
    """Run all checks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", default=".venv-openwebui", help="where Open WebUI is, or is installed")
    parser.add_argument("--version", default="", help="of Open WebUI; the newest by default")
    args = parser.parse_args()
    program = install(Path(args.venv).resolve(), args.version)
    with tempfile.TemporaryDirectory(prefix="gpugate-openwebui-") as home:
        try:
            with demo(Path(home)) as gateway, open_webui(program, Path(home), gateway) as page:
                check(gateway, page)
        except Failed as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
    print("all of it works")
    return 0


def install(folder: Path, version: str) -> Path:
    """Return Open WebUI's program; install it first if it is not there."""
    program = folder / "bin" / "open-webui"
    if not program.exists():
        print(f"installing Open WebUI into {folder}; this takes minutes", flush=True)
        venv.create(folder, with_pip=True)
        wanted = f"open-webui=={version}" if version else "open-webui"
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", wanted], check=True)
    return program


# --- the two programs ------------------------------------------------------------------------------


class Server:
    """A program that serves HTTP on this machine, and a token for it."""

    def __init__(self, port: int, token: str = "") -> None:
        self.port = port
        self.token = token

    def open(self, method: str, path: str, body: Any = None, timeout: float = 120) -> Any:
        """Send a request; return the response, which is to be closed."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        url = f"http://127.0.0.1:{self.port}{path}"
        return urllib.request.urlopen(
            urllib.request.Request(url, data, headers, method=method), timeout=timeout
        )

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the JSON that it answers."""
        try:
            with self.open(method, path, body) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Failed(f"{method} {path}: {error.code} {error.read()[:300]!r}") from error


@contextmanager
def demo(home: Path) -> Iterator[Server]:
    """Run `gpugate demo` on an empty home."""
    gateway = Server(free_port())
    command = [sys.executable, "-m", "gpugate", "demo", "--port", str(gateway.port), "--cold-start", "4s"]
    env = {
        **os.environ,
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "GPUGATE_QUEUE__PROGRESS": "thinking",
    }
    process = subprocess.Popen(
        command, env=env, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().startswith("eyJ"):
                gateway.token = line.strip()
            if "Ctrl-C" in line:
                break
        wait_for(lambda: gateway.ask("GET", "/api/v1/health"), "the gateway", 30)
        yield gateway
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@contextmanager
def open_webui(program: Path, home: Path, gateway: Server) -> Iterator[Server]:
    """Run Open WebUI on an empty data folder, connected to the gateway, with its first user."""
    page = Server(free_port())
    env = {
        **os.environ,
        "HOME": str(home),
        "DATA_DIR": str(home / "webui"),
        "WEBUI_SECRET_KEY": "only-for-this-check",
        "OLLAMA_BASE_URL": f"http://127.0.0.1:{gateway.port}",
        "OLLAMA_API_CONFIGS": json.dumps({"0": {"key": gateway.token}}),
        "ENABLE_OPENAI_API": "False",
        "RAG_EMBEDDING_ENGINE": "ollama",  # nothing is fetched from a model hub
        "HF_HUB_OFFLINE": "1",
        "OFFLINE_MODE": "True",
        "ANONYMIZED_TELEMETRY": "False",
    }
    command = [str(program), "serve", "--host", "127.0.0.1", "--port", str(page.port)]
    with (home / "webui.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, cwd=home, stdout=log, stderr=log)
    try:
        wait_for(lambda: page.open("GET", "/health").close() or True, "Open WebUI", 300)
        user = {"name": "Ann", "email": "ann@example.org", "password": "correct-horse-1"}
        page.token = page.ask("POST", "/api/v1/auths/signup", user)["token"]
        yield page
    except Failed:
        print((home / "webui.log").read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        process.terminate()
        process.wait(60)


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
        except (OSError, Failed, http.client.HTTPException):
            pass
        time.sleep(0.3)
    raise Failed(f"{what}: not within {seconds:g} s")


# --- what is tried ----------------------------------------------------------------------------------


def check(gateway: Server, page: Server) -> None:
    """Do what a new user does, in this order."""

    def status() -> dict[str, Any]:
        return dict(gateway.ask("GET", "/api/v1/gpu/status")["data"])

    def listed() -> list[str]:
        return [model["id"] for model in page.ask("GET", "/api/models")["data"]]

    expect(status()["status"] == "STOPPED", "the pod is off")
    expect(MODEL in listed(), f"before the first start {MODEL} is listed", listed())
    expect(status()["status"] == "STOPPED", "listing has not started it")

    began = time.monotonic()
    answer = chat(page, MODEL, QUESTION)
    expect(bool(answer), f"a cold chat is answered after {time.monotonic() - began:.1f} s", answer[:60])
    title = {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}],
    }
    expect("choices" in page.ask("POST", "/api/v1/tasks/title/completions", title), "a title is made for it")
    began = time.monotonic()
    expect(bool(chat(page, MODEL, "And at night?")), f"a warm chat takes {time.monotonic() - began:.1f} s")

    stop(gateway, status)
    expect(MODEL in listed(), "while it is stopped the models are still listed", listed())

    with_thinking_block(page)
    stop(gateway, status)
    with_stop_button(page, status)
    seeing = next((model for model in listed() if model.startswith("llava")), MODEL)
    expect(bool(chat(page, seeing, "What is this?", picture=PIXEL)), f"a picture is looked at by {seeing}")
    stop(gateway, status)


def question(model: str, text: str, picture: str = "") -> dict[str, Any]:
    """Return the body of a chat, as the page sends it."""
    content: Any = text
    if picture:
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
        content = [{"type": "text", "text": text}, image]
    return {"model": model, "stream": True, "messages": [{"role": "user", "content": content}]}


def chat(page: Server, model: str, text: str, picture: str = "") -> str:
    """Return the whole answer to a streamed chat."""
    answer = ""
    try:
        with page.open("POST", "/api/chat/completions", question(model, text, picture)) as stream:
            for line in stream:
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:]).get("choices") or [{}]
                    answer += choices[0].get("delta", {}).get("content") or ""
    except urllib.error.HTTPError as error:
        raise Failed(f"the chat was answered with {error.code}: {error.read()[:300]!r}") from error
    return answer


def with_thinking_block(page: Server) -> None:
    """Ask in a chat that is saved, as the page does; the wait is a block of its own, then closed."""
    asked, answered = str(uuid.uuid4()), str(uuid.uuid4())
    user_message = {"id": asked, "parentId": None, "role": "user", "content": QUESTION, "models": [MODEL]}
    more = {"parent_id": None, "id": answered, "session_id": "check", "user_message": user_message}
    chat_id = page.ask("POST", "/api/chat/completions", {**question(MODEL, QUESTION), **more})["chat_id"]

    def message() -> dict[str, Any]:
        saved = page.ask("GET", f"/api/v1/chats/{chat_id}")["chat"]["history"]["messages"]
        return dict(saved[answered])

    wait_for(lambda: message().get("output"), "a thinking block", 20)
    first = message()["output"][0]
    expect(first["type"] == "reasoning", "a chat that is held shows a thinking block", first)
    expect("Starting a pod" in first["content"][0]["text"], "it tells what is waited for", first)
    wait_for(lambda: message().get("done"), "the answer", 60)
    last = message()
    expect(last["output"][0]["status"] == "completed", "the block closes when the answer begins", last)
    expect(bool(last["content"]) and "Starting" not in last["content"], "the answer has nothing of it", last)


def with_stop_button(page: Server, status: Callable[[], dict[str, Any]]) -> None:
    """Hang up while a chat is held, as the stop button does; the gateway must not wait for it any more."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=60)
    headers = {"Authorization": f"Bearer {page.token}", "Content-Type": "application/json"}
    connection.request("POST", "/api/chat/completions", json.dumps(question(MODEL, QUESTION)), headers)
    wait_for(lambda: status()["waiting"] == 1, "the chat is held", 20)
    connection.close()
    wait_for(lambda: status()["waiting"] + status()["in_flight"] == 0, "the stop button ends the wait", 20)
    print("ok: the stop button ends a chat that is held")


def stop(gateway: Server, status: Callable[[], dict[str, Any]]) -> None:
    """Stop the pod by hand."""
    gateway.ask("POST", "/api/v1/gpu/stop?force=true")
    wait_for(lambda: status()["status"] == "STOPPED", "the pod is stopped", 60)


def expect(true: bool, what: str, seen: object = "") -> None:
    """Print what is so; raise Failed if it is not."""
    if not true:
        raise Failed(f"{what}: it is not so ({seen!r})")
    print(f"ok: {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
