"""Records a cold start of `gpugate demo`, with its stop and its price, in a terminal: `make recording`.

Writes `docs/images/cold-start.cast` (asciinema's format, version 2) and the same as a picture that moves,
`cold-start.svg`. What is shown is what happens: a shell in a pseudo-terminal is given the commands, key by
key.
"""

from __future__ import annotations

import json
import os
import pty
import re
import secrets
import select
import shlex
import socket
import struct
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from fcntl import ioctl
from html import escape
from pathlib import Path
from subprocess import run
from termios import TIOCSWINSZ
from typing import NamedTuple

FOLDER = Path(__file__).parent / "images"
COLUMNS, ROWS = 88, 30
PROMPT = "$ "
KEY_S, READ_S, LIMIT_S = 0.035, 1.0, 60.0
"""Between two keys; after a command's output, for the reader; for a command at most."""

MODEL, QUESTION = "llama3.2:3b", "Why is the sky blue?"
COMMANDS = (
    "gpugate demo --idle 8s >demo.txt 2>demo.log &",
    "gpugate status",
    f'ask "{QUESTION}"',
    "gpugate status",
    "gpugate why",
    "sleep 10   # nobody asks any more",
    "gpugate status",
    "grep -o '\"session ended\".*' demo.log",
)
"""`ask` is `ask` below: any client of Ollama's API would do."""

Output = tuple[float, str]
"""Seconds since the beginning, and what the terminal was sent."""


# --- the recording ------------------------------------------------------------------------------


def record() -> list[Output]:
    """Run the commands in a shell, and return what it wrote and when."""
    with tempfile.TemporaryDirectory() as folder:
        env = _environment(Path(folder))
        shell, terminal = pty.fork()
        if shell == 0:
            os.chdir(folder)
            os.execvpe("bash", ["bash", "--noprofile", "--rcfile", "rc", "-i"], env)
        ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        try:
            return list(_session(terminal, env["GPUGATE_URL"]))
        finally:
            os.write(terminal, b"kill %1; wait; exit\n")
            for _ in _read_until(terminal, lambda seen: False, LIMIT_S):
                pass
            os.waitpid(shell, 0)


def _environment(folder: Path) -> dict[str, str]:
    """Return the shell's variables: a gateway and a token of its own; its prompt and `ask` are in `rc`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GPUGATE_")}
    env |= {
        "PATH": f"{Path(sys.executable).parent}:{env['PATH']}",
        "TERM": "xterm-256color",
        "HOME": str(folder),
        "XDG_STATE_HOME": str(folder),
        "GPUGATE_AUTH__SECRET": secrets.token_hex(32),
        "GPUGATE_SERVER__PORT": str(port),
        "GPUGATE_URL": f"http://127.0.0.1:{port}",
    }
    issue = ["gpugate", "token", "issue", "--subject", "alice"]
    env["GPUGATE_TOKEN"] = run(issue, env=env, capture_output=True, text=True, check=True).stdout.strip()
    ask_command = shlex.join([sys.executable, str(Path(__file__).absolute()), "ask"])
    lines = ("bind 'set enable-bracketed-paste off'", f"PS1='{PROMPT}'", f'ask() {{ {ask_command} "$1"; }}')
    (folder / "rc").write_text("\n".join(lines) + "\n")
    return env


def _session(terminal: int, url: str) -> Iterator[Output]:
    """Type each command when the one before has ended."""
    began = time.monotonic()

    def heard(until: Callable[[str], bool], limit_s: float = LIMIT_S) -> Iterator[Output]:
        for text in _read_until(terminal, until, limit_s):
            yield time.monotonic() - began, text

    yield from heard(lambda seen: seen.endswith(PROMPT))
    for command in COMMANDS:
        yield from heard(lambda seen: False, READ_S)
        for key in command:
            os.write(terminal, key.encode())
            yield from heard(lambda seen: False, KEY_S)
        os.write(terminal, b"\n")
        yield from heard(lambda seen: "\n" in seen and seen.endswith(PROMPT))
        if command.endswith("&"):
            _wait_until_it_listens(url)
    yield from heard(lambda seen: False, 3 * READ_S)


def _read_until(terminal: int, is_enough: Callable[[str], bool], limit_s: float) -> Iterator[str]:
    """Yield what comes, until `is_enough` of all of it, for `limit_s`, or until the shell has ended."""
    seen, end = "", time.monotonic() + limit_s
    while not is_enough(seen) and (left := end - time.monotonic()) > 0:
        if not select.select([terminal], [], [], left)[0]:
            return
        try:
            text = os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # the shell has ended
            return
        seen += text
        yield text


def _wait_until_it_listens(url: str) -> None:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{url}/api/v1/health", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("gpugate demo does not listen")


def ask(question: str) -> None:
    """Ask the gateway as any client of Ollama does, and print the answer as it comes."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
    headers = {"Authorization": f"Bearer {os.environ['GPUGATE_TOKEN']}"}
    url = f"{os.environ['GPUGATE_URL']}/api/chat"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            sys.stdout.write(json.loads(line)["message"]["content"])
            sys.stdout.flush()
        waited_s = int(answer.headers.get("X-Gpugate-Waited-Ms", 0)) / 1000
    sys.stdout.write(f"\n\x1b[2m(it waited {waited_s:.1f} s for the pod)\x1b[0m\n")


# --- the files ----------------------------------------------------------------------------------


def cast_of(outputs: Sequence[Output]) -> str:
    """Return the recording in asciinema's format (https://docs.asciinema.org/manual/asciicast/v2/)."""
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "gpugate: a cold start"}
    lines = [json.dumps(header), *(json.dumps([round(at, 3), "o", text]) for at, text in outputs)]
    return "\n".join(lines) + "\n"


class Piece(NamedTuple):
    """Text that appears at one place at one time."""

    at: float
    row: int
    column: int
    text: str
    style: str


_COLOURS = ("0", "c33", "3c6", "cb4", "59f", "c6c", "4bc", "ddd")  # black to white, as SGR 30 to 37
_ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07")


def pieces_of(outputs: Sequence[Output]) -> list[Piece]:
    """Return where a terminal shows what; one that is high enough, and in which nothing is written twice."""
    pieces: list[Piece] = []
    row = column = 0
    style = ""
    for at, text in outputs:
        for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\r|\n)", text):
            if part == "\r":
                column = 0
            elif part == "\n":
                row += 1
            elif found := _ESCAPE.fullmatch(part):
                style = _style(style, found[1] or "") if found[2] == "m" else style
            while part and part[0] not in "\r\n\x1b":
                piece, part = part[: COLUMNS - column], part[COLUMNS - column :]
                if shown := piece.strip():
                    indent = len(piece) - len(piece.lstrip())
                    pieces.append(Piece(at, row, column + indent, shown, style))
                column += len(piece)
                if part:
                    row, column = row + 1, 0
    return pieces


def _style(style: str, codes: str) -> str:
    """Return the SVG attributes behind an SGR sequence."""
    for code in codes.split(";"):
        number = int(code or 0)
        if number == 0:
            style = ""
        elif number == 1:
            style += ' font-weight="bold"'
        elif number == 2:
            style += ' opacity="0.6"'
        elif 30 <= number <= 37:
            style = re.sub(' fill="[^"]*"', "", style) + f' fill="#{_COLOURS[number - 30]}"'
    return style


def svg_of(outputs: Sequence[Output], width: float = 8.4, height: float = 19.0) -> str:
    """Return the recording as a picture that runs again and again; where nothing moves, its end is seen."""
    pieces = pieces_of(outputs)
    end = outputs[-1][0] + 2
    size = COLUMNS * width + 32, (max(piece.row for piece in pieces) + 1) * height + 32
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]:g} {size[1]:g}" role="img">',
        "<title>A cold start of gpugate demo in a terminal, its stop and its price</title>",
        '<rect width="100%" height="100%" rx="8" fill="#161b22"/>',
        '<g font-family="ui-monospace,Menlo,Consolas,monospace" font-size="14" fill="#ddd"'
        ' style="white-space: pre">',
    ]
    for piece in pieces:
        x, y = 16 + piece.column * width, 30 + piece.row * height
        place = f'x="{x:.1f}" y="{y:g}" textLength="{len(piece.text) * width:.1f}"'
        shown = f"0;{piece.at / end:.4f}"
        lines.append(
            f"<g{piece.style}><text {place}>{escape(piece.text)}"
            f'<animate attributeName="visibility" values="hidden;visible" keyTimes="{shown}"'
            f' calcMode="discrete" dur="{end:.1f}s" repeatCount="indefinite"/></text></g>'
        )
    return "\n".join([*lines, "</g>", "</svg>"]) + "\n"


def main() -> None:
    """Record, and write both files; with `--draw` the picture is drawn anew from the recording."""
    if sys.argv[1:] == ["--draw"]:
        lines = (FOLDER / "cold-start.cast").read_text(encoding="utf-8").splitlines()[1:]
        outputs = [(at, text) for at, _, text in map(json.loads, lines)]
    else:
        outputs = record()
    for name, content in (("cold-start.cast", cast_of(outputs)), ("cold-start.svg", svg_of(outputs))):
        (FOLDER / name).write_text(content, encoding="utf-8")
        sys.stdout.write(f"docs/images/{name}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["ask"]:
        ask(sys.argv[2])
    else:
        main()
