"""The job: its script with the watch that ends it when the gateway is silent, and its options.

The gateway's sign of life is the signal URG, sent through Slurm itself to the batch shell: it needs no
network between the node and the gateway, and no common file system; other programs ignore it by default
(docs/providers.md#slurm-signs-of-life).
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from attrs import evolve, field, frozen

from gpugate import Misconfigured
from gpugate_slurm.jobs import PREFIX, comment_of
from gpugate_slurm.settings import SlurmConfig

SIGN_OF_LIFE = "URG"
_NODE = '"$SLURMD_NODENAME"'
_PLACE = re.compile(r"(?<!\$)\{(command|port|gres|partition|account|time_limit|name|comment|node)\}")
_OPTION = re.compile(r"#SBATCH\s+(.*)")
_SHORT = {
    "-p": "partition",
    "-A": "account",
    "-t": "time",
    "-q": "qos",
    "-N": "nodes",
    "-n": "ntasks",
    "-c": "cpus-per-task",
    "-C": "constraint",
    "-x": "exclude",
    "-w": "nodelist",
    "-o": "output",
    "-e": "error",
    "-J": "job-name",
    "-D": "chdir",
    "-G": "gpus",
}
_MODULES = """command -v module > /dev/null || . /etc/profile
module load {}
"""
FLAGS = frozenset({"no-requeue", "requeue", "exclusive", "contiguous", "overcommit", "hold"})


def _frozen(options: Mapping[str, str]) -> Mapping[str, str]:
    return dict(options)


@frozen(kw_only=True)
class JobRequest:
    """What is submitted.

    Attributes:
        name: of the job.
        comment: of the job.
        options: of sbatch by their long names, those of the template included; flags have an empty value.
        more: lines of the template's `#SBATCH` with options that have no name here.
        body: the script below its options.
        port: of its Ollama.
    """

    name: str
    comment: str
    options: Mapping[str, str] = field(converter=_frozen)
    body: str
    port: int
    more: tuple[str, ...] = ()

    @property
    def minutes(self) -> int:
        """Its time limit."""
        return minutes_of(self.options["time"])

    @property
    def script(self) -> str:
        """The whole script, as sbatch reads it from its standard input."""
        lines = [
            f"#SBATCH --{name}" + (f"={shlex.quote(value)}" if value else "")
            for name, value in self.options.items()
        ]
        return "\n".join(["#!/bin/bash", *lines, *self.more, self.body])


def job_request(
    config: SlurmConfig, pod: str, port: int, *, slot: int = 0, limit_s: float = 0.0
) -> JobRequest:
    """Describe the job of this pod; `limit_s` goes before the configured time limit.

    Raises: Misconfigured, the template cannot be read or makes no sense.
    """
    name, comment = f"{PREFIX}{pod}", comment_of(config.instance, port, slot)
    options = {
        "time": str(math.ceil((limit_s or config.time_limit) / 60)),
        "output": f"/tmp/{name}-%j.log",
        "no-requeue": "",
    }
    for key in ("gres", "partition", "account"):
        if value := getattr(config, key):
            options[key] = value
    request = JobRequest(name=name, comment=comment, options=options, body="", port=port)
    command = _command(config, port)
    if not config.template:
        return evolve(request, body=_watched(config, port, f"{command} &"))
    return _from_template(config, request, command)


def _command(config: SlurmConfig, port: int) -> str:
    """The command as a line of the shell; the node's name is known there only."""
    words = (["apptainer", "exec", "--nv", config.container] if config.container else []) + list(
        config.command
    )
    filled = (word.replace("{port}", str(port)) for word in words)
    return " ".join(
        _NODE.join(shlex.quote(part) if part else "" for part in word.split("{node}")) for word in filled
    )


def _watched(config: SlurmConfig, port: int, start: str) -> str:
    """The script around what it starts in the background.

    `wait` is the one command of a shell that a trapped signal interrupts at once. When the batch shell exits,
    Slurm ends whatever the job has started.
    """
    silence = max(1, round(config.orphan_after))
    modules = _MODULES.format(" ".join(config.modules)) if config.modules else ""
    return f"""
# Made by gpugate. It ends itself when no gateway has sent it the signal {SIGN_OF_LIFE} for {silence} s.
gpugate_heard=$SECONDS
trap 'gpugate_heard=$SECONDS' {SIGN_OF_LIFE}
export OLLAMA_HOST=0.0.0.0:{port}
{modules}{start}
gpugate_job=$!
while kill -0 "$gpugate_job" 2>/dev/null; do
  if (( SECONDS - gpugate_heard >= {silence} )); then
    echo "gpugate: no sign of life of the gateway for {silence} s, the job ends" >&2
    exit 0
  fi
  sleep {max(1, min(2, silence // 4))} &
  wait $!
done
wait "$gpugate_job"
"""


# --- a template --------------------------------------------------------------------------------------


def _from_template(config: SlurmConfig, request: JobRequest, command: str) -> JobRequest:
    """The user's script runs below ours: under its own interpreter, with its options before ours."""
    try:
        text = Path(config.template).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"providers.slurm.template cannot be read ({type(error).__name__})") from error
    places = {
        "command": command,
        "port": str(request.port),
        "gres": config.gres,
        "partition": config.partition,
        "account": config.account,
        "time_limit": request.options["time"],
        "name": request.name,
        "comment": request.comment,
        "node": "$SLURMD_NODENAME",
    }
    text = _PLACE.sub(lambda found: places[found[1]], text)
    lines = text.splitlines()
    interpreter = lines[0][2:].strip() if lines and lines[0].startswith("#!") else "/bin/bash"
    options, more = _options_of(lines)
    if {"array", "wait"} & options.keys():
        raise Misconfigured(
            "providers.slurm.template: #SBATCH --array and --wait are not for a job of gpugate"
        )
    mark = "GPUGATE_SCRIPT"
    while mark in lines:
        mark += "_"
    start = f"""gpugate_script=$(mktemp) || exit 1
trap 'rm -f "$gpugate_script"' EXIT
cat > "$gpugate_script" <<'{mark}'
{text.rstrip()}
{mark}
{interpreter} "$gpugate_script" &"""
    ours = {name: value for name, value in request.options.items() if name not in options}
    if "requeue" in options:
        ours.pop("no-requeue", None)
    options.pop("job-name", None)  # by these two the gateway knows its job
    options.pop("comment", None)
    return evolve(
        request, options=ours | options, more=tuple(more), body=_watched(config, request.port, start)
    )


def _options_of(lines: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options in the `#SBATCH` lines before the first command, as sbatch takes them."""
    options: dict[str, str] = {}
    more: list[str] = []
    for line in lines:
        if line.strip() and not line.startswith("#"):
            break
        if (found := _OPTION.match(line)) is None:
            continue
        try:
            words = shlex.split(found[1], comments=True)
        except ValueError as error:
            raise Misconfigured(f"providers.slurm.template: {line!r} cannot be read ({error})") from error
        _take_options(words, options, more)
    return options, more


def _take_options(words: list[str], options: dict[str, str], more: list[str]) -> None:
    """Add what one `#SBATCH` line says."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            name, given, value = word[2:].partition("=")
            if not given and name not in FLAGS and rest and not rest[0].startswith("-"):
                value = rest.pop(0)
        elif (name := _SHORT.get(word[:2], "")) and word.startswith("-"):
            value = word[2:] or (rest.pop(0) if rest else "")
        else:
            more.append("#SBATCH " + " ".join(map(shlex.quote, [word, *rest])))
            return
        options[name] = value


def minutes_of(text: str) -> int:
    """A time limit as sbatch takes it: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s; in whole minutes."""
    days, dash, rest = text.rpartition("-")
    try:
        parts = [int(part) for part in rest.split(":")]
        day_minutes = int(days) * 24 * 60 if dash else 0
    except ValueError as error:
        raise Misconfigured(f"providers.slurm.template: --time={text} is no time limit") from error
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) <= 3:
        hours, minutes, seconds = parts if len(parts) == 3 else (0, *(*parts, 0)[:2])
    else:
        raise Misconfigured(f"providers.slurm.template: --time={text} is no time limit")
    return day_minutes + hours * 60 + minutes + (1 if seconds else 0)
