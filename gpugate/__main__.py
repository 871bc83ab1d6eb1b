"""The entry point: blocks the signals that end a command until the command line can handle them."""

import sys

from gpugate.signals import block


def main() -> int:
    """Run the command line; a signal that comes during the import stays pending."""
    block()
    from gpugate.cli.main import main as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
