"""The command line's commands and their arguments. Nothing is executed here."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

COMMAND_GROUP = "gpugate.commands"
_DISTRIBUTIONS = {
    "provider-check": "gpugate-testing"
}  # documented commands that are not in this distribution
_ABOUT = "A drop-in Ollama endpoint that is always on, in front of a GPU pod that is not."
_FIRST = "To try it: gpugate demo. To use it: gpugate init, then check, then serve."
_REMOTE = "Asks the gateway at GPUGATE_URL, with the token GPUGATE_TOKEN; else that of the configuration."


class _Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line (docs/api.md#exit-status)."""

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, **more)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def gpugate_version() -> str:
    """Return the installed version; "unknown" in a tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # a third of the time of --help

    try:
        return version("gpugate")
    except PackageNotFoundError:
        return "unknown"


class _Version(argparse.Action):
    """--version. The version is looked up only for it: that takes as long as the rest of this module."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"gpugate {gpugate_version()}")
        parser.exit(0)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed arguments; on wrong usage exit with status 2 and one line."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser(_typed_command(words)).parse_args(words)
    args.config = getattr(args, "config", None)
    return args


def _typed_command(words: Sequence[str]) -> str:
    """Return the first word that is neither an option nor the value of --config; "" if there is none."""
    rest = iter(words)
    for word in rest:
        if word == "--config":
            next(rest, None)
        elif not word.startswith("-"):
            return word
    return ""


def build_parser(typed: str = "") -> argparse.ArgumentParser:
    """Return the parser of this distribution's commands, and of another one's if it is what was typed."""
    parser = _Parser(prog="gpugate", description=_ABOUT, epilog=_FIRST)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    _add_config(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_serving(commands)
    _add_configuring(commands)
    _add_remote(commands)
    if not typed:
        return parser
    if typed not in commands.choices:
        _add_from_plugin(parser, commands, typed)
    if typed not in commands.choices:
        near = get_close_matches(typed, commands.choices, 1)
        parser.error(f"there is no command {typed!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return parser


def _add_from_plugin(parser: argparse.ArgumentParser, commands: Any, name: str) -> None:
    """Add a command of another distribution, if one has it: an entry point of the group `gpugate.commands`.

    Its object is called with the command's parser, adds arguments, and returns the function to run.
    """
    from importlib.metadata import entry_points  # not needed for a built-in command

    for point in entry_points(group=COMMAND_GROUP, name=name):
        command = commands.add_parser(name)
        _add_config(command)
        command.set_defaults(run=point.load()(command))
        return
    if distribution := _DISTRIBUTIONS.get(name):
        from gpugate.install_hints import install_command

        parser.exit(1, f"gpugate: {name} is not installed: {install_command(distribution)}\n")


def _add_config(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: a default here would undo a --config that stood before the command
    help_text = (
        "default: ./gpugate.toml, then $XDG_CONFIG_HOME/gpugate/gpugate.toml, then /etc/gpugate/gpugate.toml"
    )
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help=help_text)


def _add(commands: Any, name: str, run: str, about: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    parser.set_defaults(run=f"gpugate.cli.{run}")
    _add_config(parser)
    return parser


def _add_serving(commands: Any) -> None:
    serve = _add(commands, "serve", "serve:serve", "run the gateway")
    serve.add_argument("--host", help="server.host")
    serve.add_argument("--port", help="server.port")
    serve.add_argument("--provider", metavar="NAME", help="pod.provider; several with commas")
    about = "run the gateway with a simulated pod: no account, no GPU; its state in state.dir/demo"
    demo = _add(commands, "demo", "demo:demo", about)
    demo.add_argument("--port", help="default 11434; 0 for any free one")
    demo.add_argument("--cold-start", metavar="TIME", help="how long the pod takes to start, default 6s")
    demo.add_argument("--idle", metavar="TIME", help="after how long without use it is stopped, default 15m")


def _add_configuring(commands: Any) -> None:
    init = _add(commands, "init", "config_commands:init", "write a commented configuration")
    init.add_argument("file", metavar="FILE", nargs="?", help="default ./gpugate.toml")
    init.add_argument("--force", action="store_true", help="overwrite it")
    check = _add(
        commands, "check", "config_commands:check", "validate the configuration, and say what follows"
    )
    check.add_argument(
        "--live", action="store_true", help="also ask provider, pod and local Ollama, read-only"
    )
    setup = _add(commands, "setup", "setup:setup", "ask for a first configuration and write it")
    setup.add_argument("--provider", metavar="NAME", help="pod.provider")
    setup.add_argument(
        "--api-key", metavar="KEY", help="of the provider; others of this machine can see a flag"
    )
    setup.add_argument("--pod", metavar="ID", help="a pod of the account, or a GPU to make one with")
    setup.add_argument("--output", metavar="FILE", help="default ./gpugate.toml")
    setup.add_argument("--service", choices=("none", "systemd", "compose"), help="write its file, too")
    setup.add_argument("--yes", action="store_true", help="take what is offered first, and ask nothing")
    setup.add_argument("--force", action="store_true", help="overwrite the files")
    completion = _add(commands, "completion", "completion:completion", "print the completion of a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    _add(commands, "doctor", "doctor:doctor", "look for all that may be wrong, and say what to do")
    token = commands.add_parser("token", help="tokens for clients", description="Tokens for clients.")
    tokens = token.add_subparsers(
        dest="token_command", required=True, metavar="COMMAND", parser_class=_Parser
    )
    issue = _add(tokens, "issue", "token_commands:issue", "print a token signed with auth.secret")
    issue.add_argument("--subject", required=True, help="who it is for")
    issue.add_argument("--scope", metavar="WORDS", help='such as "chat pod"; without: all')
    issue.add_argument(
        "--expires", metavar="TIME", default="30d", help='such as 12h, 1y or "never"; default 30d'
    )
    providers = _add(commands, "providers", "config_commands:providers", "list the installed providers")
    providers.add_argument("--json", action="store_true", help="for machines")


def _add_remote(commands: Any) -> None:
    _add(commands, "top", "top:top", "a live view of a running gateway").epilog = _REMOTE
    for name, about in (
        ("status", "what the pods of a running gateway are doing"),
        ("start", "start a pod of a running gateway"),
        ("stop", "stop a pod of a running gateway"),
        ("costs", "what was spent"),
        ("reload", "have a running gateway read its configuration again"),
        ("events", "watch what a running gateway does, line by line"),
        ("why", "why the pod started and stopped, or why a request waited"),
    ):
        module = "cost_commands" if name == "costs" else "pod_commands"
        parser = _add(commands, name, f"{module}:{name}", about)
        parser.epilog = _REMOTE
        formats = parser.add_mutually_exclusive_group()
        formats.add_argument("--json", action="store_true", help="for machines")
        if name == "why":
            parser.add_argument(
                "id", metavar="ID", nargs="?", help="of a request or a session; default: the last session"
            )
        if name in ("start", "stop"):
            parser.add_argument("pod", metavar="POD", nargs="?", help="its name; default: the first")
        if name == "stop":
            parser.add_argument(
                "--force", action="store_true", help="even with requests in flight or waiting"
            )
        if name == "costs":
            parser.add_argument("--month", type=_month, metavar="YYYY-MM", help="default: this month")
            formats.add_argument(
                "--csv", action="store_true", help="every session as CSV; of --month, or all"
            )
            views = parser.add_mutually_exclusive_group()
            views.add_argument(
                "--reconcile", action="store_true", help="the estimate beside each provider's own bill"
            )
            views.add_argument("--receipt", metavar="ID", help="whose every second of one session is")


def _month(text: str) -> str:
    if not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no month such as 2026-11")
    return text
