"""What is measured: the upstream itself, the peers, the gateway; knows how each is started."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jwt
from attrs import define, evolve, frozen

from benchmarks.build import HERE
from benchmarks.client import Gate, connect, receive, send
from benchmarks.load import EMBED, TAGS, Request
from benchmarks.processes import Processes, Running, Unavailable, cores, until
from benchmarks.upstream import Upstream

START_S = 20.0
SETTLE_S = 10.0
SETTLE_LOOK_S = 0.05
SETTLED_CPU = 0.03
ROOT = HERE.parent
SECRET = "benchmark-secret-of-enough-bytes-to-be-accepted"

DIRECT, NGINX, NAIVE = "direct", "nginx", "plain aiohttp"
LLAMA_SWAP, OLLA = "llama-swap", "Olla"
BINARIES = {LLAMA_SWAP: "BENCH_LLAMA_SWAP", OLLA: "BENCH_OLLA"}
"""Peers of which no package exists, and the environment variables that name their programs."""
PREFIXES = {LLAMA_SWAP: "/upstream/bench", OLLA: "/olla/ollama"}
"""Where a peer serves the paths of Ollama; nothing for all others."""
UVLOOP, ASYNCIO = "gpugate, uvloop", "gpugate, asyncio"
UNOBSERVABLE, OBSERVED = "gpugate, no metrics package", "gpugate, metrics and traces"

NGINX_CONF = """
daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log; worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log {dir}/access.log; client_max_body_size 0; keepalive_requests 1000000000;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  upstream pod {{ server 127.0.0.1:{upstream}; keepalive 4096; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    if ($http_authorization != "Bearer {token}") {{ return 401; }}
    location / {{
      proxy_pass http://pod; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Authorization "";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 3600s;
    }}
  }}
}}
"""

# Its own limit of 10 requests at once is lifted. The command only has to live: the upstream runs already.
LLAMA_SWAP_CONF = """
apiKeys: ["{token}"]
models:
  bench:
    cmd: sleep infinity
    proxy: "{url}"
    checkEndpoint: none
    concurrencyLimit: 10000
"""

# Its request limits are lifted; it checks no token of its clients.
OLLA_CONF = """
server:
  host: "127.0.0.1"
  port: {port}
  write_timeout: 0s
  rate_limits: {{global_requests_per_minute: 0, per_ip_requests_per_minute: 0, health_requests_per_minute: 0}}
proxy: {{engine: "olla", profile: "auto", load_balancer: "priority"}}
discovery:
  type: "static"
  static:
    endpoints:
      - {{url: "{url}", name: "bench", type: "ollama", priority: 100, model_url: "/api/tags",
          health_check_url: "/", check_interval: 2s, check_timeout: 1s}}
"""

GATEWAY_CONF = """
[server]
host = "127.0.0.1"
port = {port}
[auth]
secret = "{secret}"
[pod]
provider = "bench"
{pod}
[queue]
{queue}
[state]
dir = "{dir}/state"
[providers.bench]
url = "{url}"
{bench}
{pods}
"""

OBSERVED_CONF = """
[metrics]
enabled = true
[tracing]
enabled = true
"""

IDLE_CONF = """
[server]
host = "127.0.0.1"
port = {port}
[auth]
secret = "{secret}"
[pod]
provider = "local"
[state]
dir = "{dir}/state"
[providers.local]
command = ["sleep", "infinity"]
"""


def make_token() -> str:
    """A token with no scope claim: all is allowed, for a day."""
    return jwt.encode({"sub": "bench", "exp": int(time.time()) + 86400}, SECRET, algorithm="HS256")


def free_port() -> int:
    """A port that nobody uses right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@frozen
class Target:
    """Something that answers like the upstream, or is it."""

    name: str
    port: int
    token: str
    process: Running
    upstream: Upstream

    def addressed(self, request: Request) -> Request:
        """The request with the path under which this target serves it."""
        return evolve(request, path=PREFIXES.get(self.name, "") + request.path)

    def settle(self) -> None:
        """Wait until it does nothing any more, so that the next one is not slowed by it (bounded)."""
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            before = self.process.cpu_s()
            time.sleep(SETTLE_LOOK_S)
            idle = self.process is self.upstream.process
            idle = idle or self.process.cpu_s() - before < SETTLED_CPU * SETTLE_LOOK_S
            if idle and not self.upstream.stats().busy:
                return


@frozen
class Pod:
    """How a gateway's pod behaves; the defaults are a pod that runs already.

    Attributes:
        cold_start_ms: None: it runs when the gateway comes up; else the upstream is told at the start
            to answer after so long.
        told: whether the upstream is told; otherwise it stays cold until the benchmark says so.
        others: how many pods that are off stand before it in the configuration; then each has a pattern.
        defaults: leave every setting that can be left; else warm-up and queue are without practical limits.
    """

    cold_start_ms: int | None = None
    told: bool = True
    defaults: bool = False
    others: int = 0

    def pod_lines(self) -> str:
        return "" if self.defaults or self.cold_start_ms is None else 'warmup_timeout = "1h"'

    def queue_lines(self) -> str:
        return "" if self.defaults else 'max_waiting = 5000\nmax_wait = "1h"'

    def bench_lines(self, upstream: Upstream) -> str:
        if self.cold_start_ms is None:
            return "running = true"
        control = upstream.control_url if self.told else ""
        return f'running = false\ncontrol = "{control}"\ncold_start_ms = {self.cold_start_ms}'

    def pods_lines(self) -> str:
        """The pods of a fleet, the one that is measured last."""
        if not self.others:
            return ""
        off = [f'[pods.p{number}]\nmodels = ["m{number}-*"]' for number in range(self.others)]
        sections = [f"[pods.p{number}.bench]\nrunning = false" for number in range(self.others)]
        return "\n".join([*off, '[pods.last]\nmodels = ["fake-*"]', *sections])


@define
class Targets:
    """Starts targets, each as a process of its own on the candidate's core.

    Attributes:
        command: gpugate's.
        import_path: where that command must look for gpugate; empty if it knows.
        otlp_port: where the traces of the target that makes them are taken.
    """

    processes: Processes
    command: Sequence[str]
    token: str
    import_path: Sequence[Path] = ()
    otlp_port: int = 0
    _count: int = 0

    def start(self, name: str, upstream: Upstream) -> Target:
        """Start the target of this name; Unavailable with a one-line reason."""
        if name == DIRECT:
            return Target(name, upstream.port, self.token, upstream.process, upstream)
        starters: dict[str, Callable[[str, Upstream, int], Running]] = {
            NGINX: self._nginx,
            NAIVE: self._naive,
            LLAMA_SWAP: self._llama_swap,
            OLLA: self._olla,
        }
        if name not in starters:
            return self.gateway(name, upstream, Pod())
        port = free_port()
        process = starters[name](name, upstream, port)
        target = Target(name, port, self.token, process, upstream)
        self._wait_for_answers(target)
        return target

    def gateway(self, name: str, upstream: Upstream, pod: Pod) -> Target:
        """Start a gateway on the event loop of that name; with a pod that runs already, wait until READY."""
        port, place = free_port(), self.make_folder("gpugate")
        config = place / "gpugate.toml"
        config.write_text(
            GATEWAY_CONF.format(
                port=port,
                secret=SECRET,
                pod=pod.pod_lines(),
                queue=pod.queue_lines(),
                dir=place,
                url=upstream.url,
                bench=pod.bench_lines(upstream),
                pods=pod.pods_lines(),
            )
            + (OBSERVED_CONF if name == OBSERVED else "")
        )
        hidden = [HERE / "without_extras"] if name == UNOBSERVABLE else []
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.otlp_port}"}
        process = self._serve(name, config, [*hidden, HERE / "fixed_pod"], env)
        target = Target(name, port, self.token, process, upstream)
        gate = Gate(port, self.token)
        try:
            self._wait_until_healthy(name, process, gate)
            if pod.cold_start_ms is None:
                named = "?pod=last" if pod.others else ""
                gate.start(named)
                self._wait_for(name, process, lambda: gate.status(named)["status"] == "READY")
                self._wait_for_answers(target)
        finally:
            gate.close()
        return target

    def idle_gateway(self, name: str, env: Mapping[str, str] | None = None) -> Running:
        """Start a gateway with the provider `local`, which any version has; return once it answers."""
        port, place = free_port(), self.make_folder("idle")
        config = place / "gpugate.toml"
        config.write_text(IDLE_CONF.format(port=port, secret=SECRET, dir=place))
        process, gate = self._serve(name, config, [], env), Gate(port, self.token)
        try:
            self._wait_until_healthy(name, process, gate)
        finally:
            gate.close()
        return process

    def make_folder(self, name: str) -> Path:
        """Make a folder in this run's place."""
        self._count += 1
        place = self.processes.place / f"{self._count:03d}-{name}"
        place.mkdir()
        return place

    def stop(self, *targets: Target) -> None:
        """End these; the upstream that `direct` stands for lives on."""
        self.processes.stop(*(one.process for one in targets if one.process is not one.upstream.process))

    def _launch(self, name: str, argv: Sequence[str], env: dict[str, str] | None = None) -> Running:
        candidate, _ = cores()
        return self.processes.start(name, argv, candidate, env=env)

    def _serve(
        self, name: str, config: Path, import_path: Sequence[Path], env: Mapping[str, str] | None = None
    ) -> Running:
        path = [*([HERE / "without_uvloop"] if name == ASYNCIO else []), *import_path, *self.import_path]
        argv = [*self.command, "serve", "--config", str(config)]
        return self._launch("gpugate", argv, {"PYTHONPATH": ":".join(map(str, path)), **(env or {})})

    def _wait_until_healthy(self, name: str, process: Running, gate: Gate) -> None:
        self._wait_for(name, process, gate.healthy)
        if name == UVLOOP and not process.uses("uvloop"):
            raise Unavailable("gpugate does not run on uvloop here (is it installed?)")

    def _nginx(self, name: str, upstream: Upstream, port: int) -> Running:
        binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if not binary:
            raise Unavailable("nginx is not installed: nothing is compared with it")
        place = self.make_folder(name)
        config = place / "nginx.conf"
        config.write_text(NGINX_CONF.format(dir=place, port=port, upstream=upstream.port, token=self.token))
        return self._launch(
            name, [binary, "-c", str(config), "-p", str(place), "-e", str(place / "error.log")]
        )

    def _naive(self, name: str, upstream: Upstream, port: int) -> Running:
        script = str(HERE / "peers" / "naive.py")
        return self._launch(
            "naive", [sys.executable, script, str(port), upstream.url], {"BENCH_SECRET": SECRET}
        )

    def _llama_swap(self, name: str, upstream: Upstream, port: int) -> Running:
        config = self.make_folder(name) / "config.yaml"
        config.write_text(LLAMA_SWAP_CONF.format(token=self.token, url=upstream.url))
        return self._launch(name, [_binary(name), "--config", str(config), "--listen", f"127.0.0.1:{port}"])

    def _olla(self, name: str, upstream: Upstream, port: int) -> Running:
        config = self.make_folder(name) / "config.yaml"
        config.write_text(OLLA_CONF.format(port=port, url=upstream.url))
        return self._launch(name, [_binary(name), "--config", str(config)])

    def _wait_for_answers(self, target: Target) -> None:
        def answering() -> bool:
            try:
                for request in (TAGS, EMBED):
                    with connect(target.port) as sock:
                        send(sock, target.token, target.addressed(request))
                        receive(sock, b"]")
            except (OSError, Unavailable):
                return False
            return True

        self._wait_for(target.name, target.process, answering)

    def _wait_for(self, name: str, process: Running, true: Callable[[], bool]) -> None:
        until(f"{name} did not come up", lambda: not process.alive() or true(), START_S)
        if not process.alive():
            raise Unavailable(f"{name} ended: {process.last_words()}")


def _binary(name: str) -> str:
    variable = BINARIES[name]
    path = os.environ.get(variable, "")
    if not path:
        raise Unavailable(f"left out; {variable} can name its program")
    found = shutil.which(path)
    if not found:
        raise Unavailable(f"{variable}: no program at {path}")
    return found
