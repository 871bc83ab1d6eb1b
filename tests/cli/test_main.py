"""The command line as a user runs it: exit statuses, one line a mistake, signals and pipes."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from gpugate.cli import main as cli
from gpugate.errors import PodBusy, SettingsError
from gpugate.proxy.addresses import CannotListen
from tests.cli.support import SECRET, Shell


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("nonsense",), "there is no command 'nonsense' (see"),
        (("serv",), "there is no command 'serv'; did you mean 'serve'? (see"),
        (("serve", "--prot", "1"), "unrecognized arguments: --prot"),
        (("token",), "the following arguments are required"),
        (("token", "issue"), "required: --subject"),
        (("costs", "--month", "2026-13"), "'2026-13' is no month"),
        (("costs", "--csv", "--json"), "not allowed with"),
    ],
)
def test_wrong_usage(args: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be meant is status 2 and one line."""
    with pytest.raises(SystemExit) as ended:
        cli.main(args)

    (line,) = capsys.readouterr().err.splitlines()
    assert 2 == ended.value.code
    assert words in line


def test_no_configuration(shell: Shell) -> None:
    """`serve` without anything is status 2, and says how to get on."""
    ended = shell.run("serve")

    assert (2, "") == (ended.status, ended.out)
    *missing, searched = ended.complaints
    assert ["auth.secret", "pod.provider"] == [line.split(": ")[1] for line in missing]
    assert searched.startswith("no configuration file: looked for gpugate.toml, ")
    assert "gpugate demo" in ended.err
    assert "gpugate init" in ended.err


def test_a_flag_that_is_wrong(shell: Shell) -> None:
    """A flag's value is judged as the file's is."""
    shell.configure()

    ended = shell.run("serve", "--port", "http", "--provider", "Parked,parked")

    assert 2 == ended.status
    assert [
        '--port: server.port: must be a whole number, is "http"',
        '--provider: pod.provider: must name each provider once, is "Parked,parked"',
    ] == ended.complaints


def test_a_provider_that_is_not_installed(shell: Shell) -> None:
    """An unknown provider is status 2, and what is installed is listed."""
    shell.configure()

    ended = shell.run("serve", "--provider", "skynet")

    assert 2 == ended.status
    (line,) = ended.complaints
    assert line.startswith("--provider: pod.provider: no provider 'skynet' is installed; there are: ")
    assert "parked (gpugate-parked 1.2)" in line


def test_a_configuration_that_is_named(shell: Shell) -> None:
    """--config works before and behind the command; a missing file is status 2."""
    path = shell.configure()
    path.rename(shell.folder / "other.toml")

    ends = [
        shell.run("--config", "other.toml", "check"),
        shell.run("check", "--config", "other.toml"),
        shell.run("check", "--config", "none.toml"),
    ]

    assert [0, 0, 2] == [ended.status for ended in ends]
    assert ["none.toml: cannot be read: No such file or directory"] == ends[2].complaints


def test_version_and_help(shell: Shell) -> None:
    """Both are status 0, and help names every command."""
    version, text = shell.run("--version"), shell.run("--help")

    assert (0, 0) == (version.status, text.status)
    assert version.out.startswith("gpugate ")
    commands = ["serve", "demo", "init", "check", "token", "providers"]
    commands += ["doctor", "status", "start", "stop", "costs", "events"]
    assert all(command in text.out for command in commands)


def test_a_reader_that_has_read_enough(shell: Shell) -> None:
    """A closed pipe is no mistake: no traceback, nothing on standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gpugate", "providers"],
            cwd=shell.folder,
            env=dict(shell.env),
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
    finally:
        os.close(writer)

    assert (0, b"") == (done.returncode, done.stderr)


def test_a_full_disk(shell: Shell) -> None:
    """What cannot be written is status 1 and one line."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gpugate", "providers"],
            cwd=shell.folder,
            env=dict(shell.env),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )

    assert (1, b"gpugate: No space left on device\n") == (done.returncode, done.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_lasts(shell: Shell, number: int) -> None:
    """`events` ends well at SIGTERM and SIGINT, without a word."""
    with (
        _hanging_gateway() as url,
        shell.start("events", GPUGATE_URL=url, GPUGATE_TOKEN="t") as process,
    ):
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)

    assert ("state status=READY\n", "", "", 0) == (first[len("08:14:05 ") :], out, err, process.returncode)


@contextmanager
def _hanging_gateway() -> Iterator[str]:
    """Run a gateway that sends one event, and then nothing for as long as the test wants."""
    over = Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'event: state\r\ndata: {"status":"READY","last_error":null}\r\n\r\n')
            over.wait(20)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def fake_wiring(monkeypatch: pytest.MonkeyPatch, serve: Any) -> None:
    """Put a gateway that does as `serve` in the place of the real one."""
    monkeypatch.setattr("gpugate.cli.serve._run_loop", lambda settings, *_: serve(settings))


@pytest.fixture
def served(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration that is good enough for a gateway which is not real."""
    monkeypatch.setenv("GPUGATE_AUTH__SECRET", SECRET)
    monkeypatch.setenv("GPUGATE_POD__PROVIDER", "parked")
    monkeypatch.setattr("gpugate.cli.settings.config_of", None)
    return bare


@pytest.mark.parametrize("status", [0, 1])
def test_the_gateways_own_status(served: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """What the gateway ends with is the status: 1 for a stop that was not proved."""
    seen = []

    def serve(settings: Any) -> int:
        seen.append((settings.server.host, settings.server.port, settings.pod.provider))
        return status

    fake_wiring(monkeypatch, serve)

    assert status == cli.main(["serve", "--port", "4711", "--host", "127.0.0.9", "--provider", "a,b"])
    assert [(("127.0.0.9",), 4711, ("a", "b"))] == seen


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (CannotListen("port 11434 on 127.0.0.1 is already in use"), 1, "is already in use"),
        (PermissionError(errno.EACCES, "Permission denied", "/state"), 1, "Permission denied: /state"),
        (OSError("no number"), 1, "gpugate: unforeseen OSError at test_main.py:"),
        (SettingsError(["gpugate.toml: a.b: c"]), 2, "gpugate.toml: a.b: c"),
        (PodBusy(), 1, "requests are in flight or waiting"),
        (KeyError("hidden-token"), 1, "gpugate: unforeseen KeyError at test_main.py:"),
        (KeyboardInterrupt(), 0, None),
        (BrokenPipeError(), 0, None),
    ],
)
def test_a_gateway_that_fails(
    served: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    words: str | None,
) -> None:
    """Whatever comes out of the gateway is one line and a status, without a traceback or a secret."""

    def serve(settings: Any) -> int:
        raise error

    fake_wiring(monkeypatch, serve)

    assert status == cli.main(["serve"])
    err = capsys.readouterr().err
    assert (0 if words is None else 1) == len(err.splitlines())
    assert (words or "") in err
    assert "hidden-token" not in err


def test_who_wants_the_traceback(
    served: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPUGATE_TRACEBACK=1 shows where a bug is."""
    fake_wiring(monkeypatch, lambda settings: {}["x"])
    monkeypatch.setenv("GPUGATE_TRACEBACK", "1")

    cli.main(["serve"])

    assert "Traceback" in capsys.readouterr().err


def test_what_is_imported(shell: Shell) -> None:
    """Asking for help or a status brings none of the heavy libraries."""
    heavy = ["aiohttp", "aiogram", "jwt", "cryptography", "structlog", "asyncio", "pydantic", "uvloop"]
    code = f"""
import sys
import time
from gpugate.cli import main as cli
assert cli.main(["status"]) == 1
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=shell.folder,
        env={**shell.env, "GPUGATE_URL": "http://127.0.0.1:9", "GPUGATE_TOKEN": "t"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert ("[]\n", 0) == (done.stdout, done.returncode)


_SLOW = """
import os, time
from pathlib import Path

def rest(where):
    if os.environ["REST_AT"] == where:
        Path("resting").touch()
        time.sleep(0.4)

rest("import")
from parked_plugin import Parked

class Slow(Parked):
    def __init__(self, config, session):
        rest("open")
        super().__init__(config, session)
"""


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.parametrize("where", ["import", "open"])
def test_a_signal_while_the_gateway_starts(shell: Shell, where: str, signals: int) -> None:
    """Told to stop before it is up, also twice, it ends well and without a word of complaint."""
    site = Path(shell.env["PYTHONPATH"].rpartition(os.pathsep)[2])
    (site / "slow_plugin.py").write_text(_SLOW)
    (site / "gpugate_parked-1.2.dist-info" / "entry_points.txt").write_text(
        "[gpugate.providers]\nslow = slow_plugin:Slow\n"
    )
    shell.configure("[server]\nport = 0\non_exit = 'keep'\n")
    with shell.start("serve", "--provider", "slow", REST_AT=where) as process:
        while not (shell.folder / "resting").exists():
            assert None is process.poll()
            time.sleep(0.01)
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.02)
        _, err = process.communicate(timeout=20)

    assert 0 == process.returncode, err
    assert not any(word in err for word in ("Traceback", "unforeseen", '"error"')), err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_command_line_is_there(shell: Shell, number: int) -> None:
    """What comes while the interpreter still imports waits until the gateway can hear it."""
    shell.configure("[server]\nport = 0\non_exit = 'keep'\n")
    code = (
        "import os, signal, sys; from gpugate.__main__ import main; import gpugate.cli.main as cli\n"
        "parse = cli.parse\n"
        f"cli.parse = lambda argv: (os.kill(os.getpid(), {int(number)}), parse(argv))[1]\n"
        "sys.argv[1:] = ['serve']; sys.exit(main())\n"
    )
    told = [sys.executable, "-c", code]
    done = subprocess.run(told, env=shell.env, cwd=shell.folder, capture_output=True, timeout=30)

    assert 0 == done.returncode, done.stderr
    assert not any(word in done.stderr for word in (b"Traceback", b"unforeseen", b'"error"')), done.stderr


def test_a_command_of_another_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of gpugate.commands adds its arguments and is run with them, after --config as well."""
    (tmp_path / "extra_command.py").write_text(
        "def add(parser):\n    parser.add_argument('word')\n    return lambda args: int(args.word)\n"
    )
    info = tmp_path / "extra-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[gpugate.commands]\nextra = extra_command:add\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert 7 == cli.main(["extra", "7"])
    assert 8 == cli.main(["--config", "serve", "extra", "8", "--config", "x.toml"])


def test_provider_check_without_its_distribution(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says how to install it."""
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())

    with pytest.raises(SystemExit) as ended:
        cli.main(["provider-check", "demo"])

    assert 1 == ended.value.code
    line = capsys.readouterr().err
    assert re.fullmatch(r"gpugate: provider-check is not installed: pip install \S*gpugate-testing\n", line)
