"""Where the process begins: holds signals back until the command line can hear them; knows no command."""

import sys

from gpugate.signals import hold_back


def main() -> int:
    """Run the command line; a signal that comes while it is imported waits until it can be heard."""
    hold_back()
    from gpugate.cli.main import main as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
