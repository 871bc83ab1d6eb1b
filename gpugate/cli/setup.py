"""`gpugate setup`: asks for what a first configuration needs, and writes it."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import secrets
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from gpugate.cli.describe import plain, price
from gpugate.cli.errors import OK, WRONG, CliError
from gpugate.cli.live_check import client_session, remedy_for
from gpugate.cli.service_files import SERVICES, refuse_existing, write_service
from gpugate.cli.settings import url_of
from gpugate.cli.token_commands import sign_token
from gpugate.config import Settings, load_settings
from gpugate.config.converter import fields_of
from gpugate.config.template import toml_value
from gpugate.errors import AuthFailed, ProviderError, SettingsError
from gpugate.provider_api import PodChoice, Provider
from gpugate.providers import registry

_TRIES = 3  # of an API key in a terminal
_TIMEOUT_S = 30.0
_TOKEN_SCOPE, _TOKEN_DAYS = "chat pod cost", 30  # as `token issue` has it
_HEAD = "# Written by gpugate setup. `gpugate init FILE` writes all keys, with defaults and comments.\n"


@frozen
class Answers:
    """Where answers come from: flags first, then the terminal; --yes takes what is offered first."""

    yes: bool
    interactive: bool

    def choose(self, flag: str, question: str, options: Sequence[str], default: int | None = 0) -> int:
        """Return the index of the option that is chosen by its number or its name.

        Args:
            default: taken by --yes and by the Enter key; None: there is none.

        Raises:
            CliError: (WRONG) nobody can be asked, and `flag` was not given.
        """
        if default is not None and (self.yes or len(options) == 1):
            return default
        if not self.interactive:
            raise CliError(f"{flag}: needed where there is no terminal: {', '.join(options)}", WRONG)
        *lines, question = question.splitlines()
        print("\n".join(lines))
        hint = "" if default is None else f" [{default + 1}]"
        while True:
            try:
                said = input(f"{question}{hint} ").strip()
            except EOFError:  # Ctrl-D
                raise KeyboardInterrupt from None
            if not said and default is not None:
                return default
            if said in options:
                return options.index(said)
            if said.isascii() and said.isdigit() and 0 < int(said[:9]) <= len(options):
                return int(said) - 1
            print(f"  a number from 1 to {len(options)}, please")


def is_terminal() -> bool:
    """Return whether questions can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def setup(args: Namespace) -> int:
    """Ask for what is missing, write the configuration and print what to do next.

    Raises:
        CliError: an answer is missing where nobody can be asked, or is wrong; nothing is written then.
    """
    path = Path(args.output or args.config or "gpugate.toml")
    if path.exists() and not args.force:
        raise CliError(f"{path} exists already; --force overwrites it")
    answers = Answers(args.yes, is_terminal())
    name, kind = _provider(args, answers)
    section = _section(args, answers, name, kind)
    service = args.service or SERVICES[_service(answers)]
    if not args.force:
        refuse_existing(service, path)
    settings = _write(path, _text(name, section), replace=args.force)
    print(f"wrote {path}, which you alone can read")
    for line in write_service(service, path, replace=args.force):
        print(line)
    _print_next(path, settings)
    return OK


def _service(answers: Answers) -> int:
    if not answers.interactive:
        return 0
    return answers.choose("--service", _numbered("Shall a service run it?", SERVICES), SERVICES)


def _provider(args: Namespace, answers: Answers) -> tuple[str, type[Provider]]:
    if args.provider:
        return args.provider.strip().lower(), registry.find(args.provider)
    found: dict[str, type[Provider]] = {}
    for plugin in registry.installed():
        with contextlib.suppress(SettingsError):  # `gpugate providers` says what is wrong with it
            found[plugin.name] = registry.find(plugin.name)
    names = sorted(found, key=lambda name: (found[name].capabilities.simulated, name == "local", name))
    default = 0 if answers.interactive else None  # nobody shall get another cloud than the one they meant
    name = names[answers.choose("--provider", _numbered("Which provider?", names), names, default)]
    return name, found[name]


def _numbered(question: str, options: Sequence[str]) -> str:
    return "\n".join([*(f"  {number}  {one}" for number, one in enumerate(options, 1)), question])


def _section(args: Namespace, answers: Answers, name: str, kind: type[Provider]) -> dict[str, object]:
    """Return the keys of `[providers.<name>]`."""
    keys = fields_of(kind.Config)
    if "api_key" not in keys:
        if args.pod or args.api_key:
            raise CliError(f"the provider {name} has no API key and no pods to choose from", WRONG)
        return {}
    section: dict[str, object] = {}
    for key, attribute in keys.items():  # such as api_base
        if attribute.type is str and (value := os.environ.get(f"GPUGATE_PROVIDERS__{name}__{key}".upper())):
            section[key] = value
    section["api_key"], choices = _key_and_choices(args, answers, name, kind, section)
    if not choices and args.pod:
        raise CliError(f"--pod: {name} shows no pod and no GPU to choose from")
    if not choices:
        print(f"{name} shows no pod to choose from: set the pod in [providers.{name}]")
        return section
    return {**section, **_chosen(args, answers, choices).settings}


def _key_and_choices(
    args: Namespace, answers: Answers, name: str, kind: type[Provider], section: Mapping[str, object]
) -> tuple[str, Sequence[PodChoice]]:
    given = args.api_key or section.get("api_key")
    for attempt in range(1, _TRIES + 1):
        key = str(given) if given else _ask_key(answers, name)
        try:
            # No question is asked under asyncio.run: Ctrl-C would not reach it.
            return key, asyncio.run(_list_choices(kind, {**section, "api_key": key}))
        except AuthFailed as error:
            if given or not answers.interactive or attempt == _TRIES:
                raise CliError(f"--api-key: {error.message}; {remedy_for(error, name)}") from None
            print(f"  {error.message}; try again, or end with Ctrl-C")
        except ValueError as error:  # of the plugin's Config
            raise CliError(f"--api-key: {error}", WRONG) from None
        except ProviderError as error:
            raise CliError("; ".join(filter(None, (error.message, remedy_for(error, name))))) from None
        except TimeoutError:
            raise CliError(f"{name} does not answer within {_TIMEOUT_S:g} s") from None
    raise AssertionError("the last attempt returns or raises")


async def _list_choices(kind: type[Provider], settings: Mapping[str, object]) -> Sequence[PodChoice]:
    async with client_session() as session, asyncio.timeout(_TIMEOUT_S):
        return await kind.list_choices(settings, session)


def _ask_key(answers: Answers, name: str) -> str:
    if not answers.interactive:
        raise CliError(
            f"--api-key: needed where there is no terminal (or GPUGATE_PROVIDERS__{name.upper()}__API_KEY)",
            WRONG,
        )
    while not (key := getpass.getpass(f"API key of {name} (not shown): ").strip()):
        pass
    return key


def _chosen(args: Namespace, answers: Answers, choices: Sequence[PodChoice]) -> PodChoice:
    ids = [choice.id for choice in choices]
    if args.pod:
        if args.pod not in ids:
            raise CliError(f"--pod: there is no {args.pod!r}; there are: {', '.join(ids)}")
        choice = choices[ids.index(args.pod)]
    else:
        lines = [line for number, one in enumerate(choices, 1) for line in _choice_lines(number, one)]
        default = 0 if answers.interactive or len(ids) == 1 else None
        choice = choices[answers.choose("--pod", "\n".join([*lines, "Which one?"]), ids, default)]
    print(f"pod: {plain(choice.title)}")
    for problem in choice.problems:
        print(f"  to do: {plain(problem)}")
    return choice


def _choice_lines(number: int, choice: PodChoice) -> list[str]:
    cost = "" if choice.per_hour is None else f", {price(choice.per_hour, choice.currency)} an hour"
    return [
        f"  {number:>2}  {plain(choice.title)}{cost}",
        *(f"        {plain(one)}" for one in choice.problems),
    ]


def _text(name: str, section: Mapping[str, object]) -> str:
    tables = {"auth": {"secret": secrets.token_hex(32)}, "pod": {"provider": name}}
    if section:
        tables[f"providers.{name}"] = dict(section)  # type: ignore[arg-type]
    parts = [
        "\n".join([f"[{title}]", *(f"{key} = {toml_value(value)}" for key, value in table.items())])
        for title, table in tables.items()
    ]
    return _HEAD + "\n" + "\n\n".join(parts) + "\n"


def _write(path: Path, text: str, *, replace: bool) -> Settings:
    """Write the file in one step, once it has proved to be a valid configuration; mode 0600.

    Raises:
        CliError: it exists already, or cannot be written.
    """
    try:
        descriptor, draft = tempfile.mkstemp(prefix=".gpugate-", suffix=".toml", dir=path.parent)
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        settings = load_settings(Path(draft), {}, complete=False)
        put: Callable[[str, Path], Any] = os.replace if replace else os.link
        put(draft, path)
        return settings
    except FileExistsError:
        raise CliError(f"{path} exists already; --force overwrites it") from None
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def _print_next(path: Path, settings: Settings) -> None:
    token = sign_token(settings, "first", _TOKEN_SCOPE, _TOKEN_DAYS * 86_400.0)
    named = "" if path == Path("gpugate.toml") else f" --config {path}"
    print(
        f"""
Next:
  gpugate doctor{named}    # is all well? starts nothing
  gpugate serve{named}

A token for your clients, good for {_TOKEN_DAYS} days (more: gpugate token issue{named} --subject NAME):
  {token}

Open WebUI, Admin Panel > Settings > Connections > Ollama API:
  URL  {url_of(settings)}
  Key  the token above"""
    )
