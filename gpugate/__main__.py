"""Where the process begins: holds signals back until the command line can hear them; knows no command."""

import signal
import sys


def main() -> int:
    """Run the command line; a signal that comes while it is imported waits until it can be heard."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    from gpugate import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
