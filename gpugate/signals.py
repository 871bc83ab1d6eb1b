"""The signals that end a command, and how they are blocked until it can handle them."""

import signal

ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Each ends a gateway in the same orderly way; SIGHUP is a closed terminal."""


def block() -> None:
    """Block the signals that end a command, and ignore SIGUSR1 and SIGUSR2, whose default is to kill."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def handled() -> frozenset[signal.Signals]:
    """Return the signals of `ENDING`, without those that were ignored when the process began (`nohup`)."""
    return frozenset(number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN)
