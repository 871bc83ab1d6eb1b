"""`[providers.slurm]`: every key with its default, its validator and its comment."""
# ruff: noqa: RUF009  (`_key` declares a field, as attrs.field does)

from __future__ import annotations

import getpass
import re
from typing import Any
from urllib.parse import urlsplit

from attrs import Attribute, Factory, field, frozen

from gpugate import Duration

FIRST_PORT, LAST_PORT = 20000, 29999
"""Where a job's port is chosen when `port` is 0 , so that two jobs fit on a node."""
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_VERSION = re.compile(r"v0\.0\.\d{1,3}|")
_SSH = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[0-9A-Fa-f:]+\]|[^@:\s/\[\]]+)(?::(?P<port>\d{1,5}))?")
_WORD = re.compile(r"[^\s'\"\\$`;|&<>(){}]*")


def _is_rest_url(_: object, __: Attribute[str], value: str) -> None:
    parts = urlsplit(value)
    if value and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("must be slurmrestd's URL, such as http://slurm.example.org:6820")


def _is_version(_: object, __: Attribute[str], value: str) -> None:
    if not _VERSION.fullmatch(value):
        raise ValueError("must be a version of slurmrestd's API, such as v0.0.38")


def _is_ssh(_: object, __: Attribute[str], value: str) -> None:
    if value and not _SSH.fullmatch(value):
        raise ValueError("must be user@host or user@host:port, such as me@login.example.org:22")


def _is_word(_: object, __: Attribute[str], value: str) -> None:
    if not _WORD.fullmatch(value):
        raise ValueError("must be one word as Slurm's options have it, without spaces and quotes")


def _are_words(_: object, __: Attribute[list[str]], value: list[str]) -> None:
    if not all(word and _WORD.fullmatch(word) for word in value):
        raise ValueError("must be names of modules, without spaces and quotes")


def _is_command(_: object, __: Attribute[list[str]], value: list[str]) -> None:
    if not value or not value[0] or any("\0" in word or "\n" in word for word in value):
        raise ValueError("must be a command and its arguments, such as ['ollama', 'serve']")


def _is_line(_: object, __: Attribute[str], value: str) -> None:
    if not value.isprintable():
        raise ValueError("must be one line of text")


def _is_token(_: object, __: Attribute[str], value: str) -> None:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("must be a JSON Web Token: no spaces, no line breaks")


def _is_port(_: object, __: Attribute[int], value: int) -> None:
    if value and not 1024 <= value < 65536:
        raise ValueError("must be a port, 1024 to 65535, or 0")


def _is_pattern(_: object, __: Attribute[str], value: str) -> None:
    try:
        parts = urlsplit(value.format(node="node", port=1))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError("may hold {node} and {port}, and no other braces") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL such as http://{node}:{port}")


def _is_name(_: object, __: Attribute[str], value: str) -> None:
    if not NAME.fullmatch(value):
        raise ValueError("must be 1 to 32 of a-z, 0-9 and -, such as home")


def _is_positive(_: object, __: Attribute[Any], value: float) -> None:
    if not value > 0:
        raise ValueError("must be more than 0")


def _is_not_negative(_: object, __: Attribute[Any], value: float) -> None:
    if value < 0:
        raise ValueError("must not be negative")


def _key(default: Any, help: str, validator: Any = None, **more: Any) -> Any:  # noqa: A002
    """Declare a key; `help` is its comment in the configuration that `gpugate init` writes."""
    return field(default=default, validator=validator, metadata={"help": help}, **more)


@frozen
class SlurmConfig:
    """A job of a Slurm cluster."""

    rest_url: str = _key(
        "", "slurmrestd; empty: the commands sbatch, squeue and scancel, here or by ssh", _is_rest_url
    )
    api_version: str = _key("", 'of slurmrestd, such as "v0.0.38"; empty: the newest of both', _is_version)
    user: str = _key("", "X-SLURM-USER-NAME; empty: the user that runs gpugate", _is_word)
    token: str = _key("", "slurmrestd's JSON Web Token (or token_file)", _is_token, repr=False)
    token_file: str = _key(
        "", "a file with the token; read again when it has changed or the token was refused", _is_line
    )
    ssh: str = _key("", 'such as "user@login.example.org:22": the commands run there', _is_ssh)
    ssh_key_file: str = _key("", "private key for ssh; empty: the agent's, or those in ~/.ssh", _is_line)
    known_hosts: str = _key("", "known host keys; empty: ~/.ssh/known_hosts", _is_line)
    tunnel: bool = _key(False, "the node's Ollama is reached through that ssh")
    instance: str = _key(
        "main", "in the comment of each job: whose it is, if gateways share an account", _is_name
    )
    partition: str = _key("", "empty: the cluster's default", _is_word)
    account: str = _key("", "empty: the user's default", _is_word)
    gres: str = _key("gpu:1", "the GPUs of one job", _is_word)
    time_limit: Duration = _key(14400.0, "of the job, in whole minutes, rounded up", _is_positive)
    modules: list[str] = _key(Factory(list), "environment modules that the job loads", _are_words)
    container: str = _key("", "an image for `apptainer exec --nv`; empty: none", _is_line)
    command: list[str] = _key(
        Factory(lambda: ["ollama", "serve"]),
        "{port} and {node} are filled in; OLLAMA_HOST is set",
        _is_command,
    )
    template: str = _key(
        "", "file with a job script of yours, with {command}, {port}, {gres}; its #SBATCH lines win", _is_line
    )
    port: int = _key(0, "of Ollama on the node; 0: for each job one of 20000 to 29999", _is_port)
    ollama_url: str = _key("http://{node}:{port}", "where the gateway reaches it", _is_pattern)
    orphan_after: Duration = _key(
        600.0, "the job ends itself when the gateway was silent for so long", _is_positive
    )
    hourly_rate: float = _key(0.0, "what one job costs per hour; 0: cost.hourly_rate", _is_not_negative)
    timeout: Duration = _key(10.0, "of one call or command", _is_positive)

    def __attrs_post_init__(self) -> None:
        """Raises ValueError: two keys do not go together, or one is missing."""
        if self.rest_url and not (self.token or self.token_file):
            raise ValueError("token or token_file is missing: rest_url needs one (scontrol token)")
        if self.token and self.token_file:
            raise ValueError("token is given twice, also as token_file")
        if self.tunnel and not self.ssh:
            raise ValueError("tunnel needs ssh: the host through which the node is reached")

    @property
    def user_name(self) -> str:
        """As whom slurmrestd is asked."""
        return self.user or getpass.getuser()

    @property
    def ssh_target(self) -> tuple[str, str, int]:
        """User (empty: the local one), host and port of `ssh`."""
        found = _SSH.fullmatch(self.ssh)
        assert found is not None  # the validator has seen it
        return found["user"] or "", found["host"].strip("[]"), int(found["port"] or 22)
