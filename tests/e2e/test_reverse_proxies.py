"""The examples for nginx and Caddy, run by the real ones in front of a gateway; and the unit for systemd."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from gpugate_demo.faults import HangAfter

from tests.e2e.conftest import Opener
from tests.e2e.support import CHAT, House

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NGINX = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/gpugate.conf;
}}
"""


def nginx(folder: Path, port: int, upstream: int) -> tuple[list[str], list[str]]:
    """Return the commands that check the example and that run it."""
    example = (EXAMPLES / "nginx" / "gpugate.conf").read_text()
    moved = example.replace("listen 8080", f"listen 127.0.0.1:{port}").replace(":11434", f":{upstream}")
    (folder / "gpugate.conf").write_text(moved)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
    run = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    return [*run, "-t"], run


def caddy(folder: Path, port: int, upstream: int) -> tuple[list[str], list[str]]:
    """Return the commands that check the example and that run it."""
    example = (EXAMPLES / "caddy" / "Caddyfile").read_text()
    moved = example.replace(":8080 {", f"http://127.0.0.1:{port} {{").replace(":11434", f":{upstream}")
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n}}\n{moved}")
    config = ["--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    return ["caddy", "validate", *config], ["caddy", "run", *config]


PROXIES = [
    pytest.param(
        make, id=make.__name__, marks=pytest.mark.skipif(not shutil.which(make.__name__), reason=why)
    )
    for make, why in ((nginx, "needs Debian's nginx"), (caddy, "needs Debian's caddy"))
]
Make = Callable[[Path, int, int], tuple[list[str], list[str]]]


@asynccontextmanager
async def in_front_of(house: House, make: Make, folder: Path) -> AsyncIterator[str]:
    """Run a reverse proxy in front of a gateway; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    check, run = make(folder, port, house.port)
    env = {"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    checked = subprocess.run(check, capture_output=True, text=True, env=env, check=False)
    assert 0 == checked.returncode, checked.stderr
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*run, stdout=log, stderr=log, env=env)
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    break
                except OSError:
                    assert process.returncode is None, (folder / "log").read_text()
                    await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("make", PROXIES)
async def test_behind_a_reverse_proxy(opened: Opener, make: Make, tmp_path: Path) -> None:
    """Filler while it is held, tokens as they come, the same bytes, and a body of nearly 64 MiB."""
    house = await opened(queue__heartbeat=0.1)
    house.cloud.boot_s = 0.5
    go_on = asyncio.Event()
    house.ollama.faults.add("/api/chat", HangAfter(2, until=go_on))
    async with in_front_of(house, make, tmp_path) as url, aiohttp.ClientSession() as http:
        async with http.post(f"{url}/api/chat", json=CHAT, headers=house.auth) as answer:
            assert 200 == answer.status
            assert b" " == await answer.content.readexactly(1)  # before the pod is there
            line = await answer.content.readline()
            assert b'"message"' in line  # before the rest is there
            go_on.set()
            rest = await answer.read()
        assert b'"done":true' in rest

        async with http.get(f"{url}/api/v1/gpu/events", headers=house.auth) as events:
            assert b"event: state" in await events.content.readuntil(b"\n\n")

        large = json.dumps({**CHAT, "options": {"stop": ["x" * (63 * 1024 * 1024)]}}).encode()
        async with http.post(f"{url}/api/chat", data=io.BytesIO(large), headers=house.auth) as answer:
            assert 200 == answer.status
            assert b'"done":true' in await answer.read()
        async with http.get(f"{url}/dashboard", headers={}) as page:
            assert 200 == page.status
            assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_unit_is_hardened(tmp_path: Path) -> None:
    """`systemd-analyze security` rates it below 3 of 10, and knows every key."""
    unit = str(EXAMPLES / "systemd" / "gpugate.service")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", unit]
    said = subprocess.run(command, capture_output=True, text=True, check=False)

    rated = re.search(r"Overall exposure level for gpugate.service: ([0-9.]+)", said.stdout)
    assert rated, said.stdout + said.stderr
    assert float(rated[1]) < 3
    assert "Unknown" not in said.stderr
