"""The job's script and options: what stands in it, what a template changes, and that it ends itself."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from gpugate_slurm import SlurmConfig
from gpugate_slurm.rest import megabytes_of
from gpugate_slurm.script import JobRequest, job_request, minutes_of

from gpugate.errors import Misconfigured


def test_the_limit_and_the_slot(tmp_path: Path) -> None:
    """pod.max_session goes before time_limit, a template before both; the second slot is in the comment."""
    config = SlurmConfig(time_limit=3600.0)
    assert 60 == job_request(config, "main", 20001).minutes
    made = job_request(config, "main", 20001, slot=1, limit_s=90.0)
    assert ("gpugate-main", "gpugate main port=20001 slot=1", 2) == (made.name, made.comment, made.minutes)
    assert 90 == template(tmp_path, "#SBATCH --time=1:30:00\n{command}\n").minutes


def request(**settings: Any) -> JobRequest:
    return job_request(SlurmConfig(**settings), "main", 20001)


def test_the_defaults() -> None:
    """GPU, limit, no requeue; ollama serve on all addresses of the port."""
    made = request()
    assert ("gpugate-main", "gpugate main port=20001") == (made.name, made.comment)
    assert "#SBATCH --gres=gpu:1\n" in made.script
    assert "#SBATCH --time=240\n" in made.script
    assert "#SBATCH --no-requeue\n" in made.script
    assert "export OLLAMA_HOST=0.0.0.0:20001\nollama serve &\n" in made.script
    assert "partition" not in made.script


def test_all_settings() -> None:
    """Modules are loaded, a container is entered, the limit is rounded up, words are quoted."""
    made = request(
        partition="a100",
        account="lab",
        gres="gpu:a100:2",
        time_limit=601.0,
        modules=["cuda/12", "ollama"],
        container="/shared/my images/ollama.sif",
        command=["ollama", "serve", "--name={node}", "--port={port}", "it's"],
    )
    options = ("gres=gpu:a100:2", "partition=a100", "account=lab", "time=11")
    assert all(f"#SBATCH --{option}\n" in made.script for option in options)
    assert "command -v module > /dev/null || . /etc/profile\nmodule load cuda/12 ollama\n" in made.script
    assert "apptainer exec --nv '/shared/my images/ollama.sif' ollama serve " in made.script
    assert "--name=\"$SLURMD_NODENAME\" --port=20001 'it'\"'\"'s' &\n" in made.script


def template(folder: Path, text: str, **settings: Any) -> JobRequest:
    file = folder / "job.sh"
    file.write_text(text)
    return request(template=str(file), **settings)


def test_a_template(tmp_path: Path) -> None:
    """Its options win, but not the name; its places are filled in, the shell's variables are not."""
    made = template(
        tmp_path,
        '#!/bin/zsh\n#SBATCH -p fast --gres=gpu:4\n#SBATCH --job-name=mine --mem "64G"\n#SBATCH -t 30\n'
        'module load x\necho ${port} "$command" {port} {gres}\n#SBATCH --late\n{command}\n',
        partition="slow",
    )
    assert ("fast", "gpu:4", "64G", "30") == tuple(
        made.options[key] for key in ("partition", "gres", "mem", "time")
    )
    assert "job-name" not in made.options
    assert 'echo ${port} "$command" 20001 gpu:1\n' in made.script
    assert "\nollama serve\n" in made.script
    assert '/bin/zsh "$gpugate_script" &' in made.script
    assert made.script.startswith("#!/bin/bash\n#SBATCH ")


@pytest.mark.parametrize(
    "text", ["#SBATCH --array=1-4\n{command}\n", "#SBATCH --comment='half\n{command}\n", None]
)
def test_a_template_that_cannot_be(tmp_path: Path, text: str | None) -> None:
    """The key is named."""
    with pytest.raises(Misconfigured, match=r"providers\.slurm\.template"):
        template(tmp_path, text) if text is not None else request(template=str(tmp_path / "none"))


def run(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_it_ends_when_the_gateway_is_silent(tmp_path: Path) -> None:
    """A signal puts it off; it says why it ends. What it has started is ended by Slurm."""
    process = run(request(orphan_after=2.0, command=["sleep", "4"]).script)
    began = time.monotonic()
    time.sleep(1.5)
    process.send_signal(signal.SIGURG)
    said, _ = process.communicate(timeout=10)
    assert 3.0 <= time.monotonic() - began
    assert "no sign of life of the gateway for 2 s" in said
    assert 0 == process.returncode


def test_it_ends_as_its_program(tmp_path: Path) -> None:
    """With the exit status, and without a file that is left; a template's body is a program as well."""
    made = template(tmp_path, f"export TMPDIR={tmp_path}\necho here {{port}}\nexit 7\n")
    process = run(f"export TMPDIR={tmp_path}\n{made.script}")
    said, _ = process.communicate(timeout=10)
    assert ("here 20001\n", 7) == (said, process.returncode)
    assert ["job.sh"] == [file.name for file in tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("30:30", 31), ("2:00:00", 120), ("1-0", 1440), ("1-2:30", 1590), ("1-0:0:1", 1441)],
)
def test_a_time_limit(text: str, minutes: int) -> None:
    """As sbatch takes it."""
    assert minutes == minutes_of(text)


@pytest.mark.parametrize(("text", "megabytes"), [("100", 100), ("64G", 65536), ("1T", 1048576), ("2048K", 2)])
def test_memory(text: str, megabytes: int) -> None:
    """As sbatch takes it."""
    assert megabytes == megabytes_of(text)


@pytest.mark.parametrize("text", ["soon", "1:2:3:4", "-", ""])
def test_no_time_limit(text: str) -> None:
    """It is told."""
    with pytest.raises(Misconfigured):
        minutes_of(text)
