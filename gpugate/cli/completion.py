"""`gpugate completion`: prints what a shell reads to complete gpugate's commands and flags, made by shtab."""

from __future__ import annotations

from argparse import Namespace

from gpugate.cli.errors import OK
from gpugate.cli.parser import build_parser


def completion(args: Namespace) -> int:
    """Print the completion of one shell."""
    import shtab

    print(shtab.complete(build_parser(), args.shell))
    return OK
