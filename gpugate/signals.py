"""The signals that end a command, and how they are held back while it starts; knows no command."""

import signal

ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Each ends a gateway in the same orderly way; SIGHUP is a closed terminal."""


def hold_back() -> None:
    """Block the signals that end a command, and ignore those that mean nothing here (their default kills)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def heard() -> frozenset[signal.Signals]:
    """Return those of `ENDING` that count; one that was ignored when the process began (`nohup`) stays so."""
    return frozenset(number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN)
