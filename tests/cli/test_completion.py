"""`gpugate completion`: what bash really completes, and that the other shells' scripts know every command."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gpugate.cli.main import main


def test_bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands, their flags, and words that a flag takes."""
    assert 0 == main(["completion", "bash"])
    script = tmp_path / "gpugate.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words: str) -> set[str]:
        call = f"source {script}; COMP_WORDS=({' '.join(words)} ''); COMP_CWORD={len(words) - 1}"
        line = f'{call}; _shtab_gpugate; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20, check=True)
        return set(done.stdout.split())

    assert {"status", "stop", "start", "setup", "serve"} >= completed("gpugate", "st") >= {"status", "stop"}
    assert {"--force"} == completed("gpugate", "stop", "--f")
    assert {"zsh"} == completed("gpugate", "completion", "z")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    """Every command is in the script."""
    assert 0 == main(["completion", shell])

    script = capsys.readouterr().out
    assert all(name in script for name in ("serve", "setup", "status", "top", "token", "doctor"))


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    """Is wrong usage, in one line that names those that are known."""
    with pytest.raises(SystemExit) as ended:
        main(["completion", "tcsh"])
    assert 2 == ended.value.code
    (line,) = capsys.readouterr().err.splitlines()
    assert "fish" in line
