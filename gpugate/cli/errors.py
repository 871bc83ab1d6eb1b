"""How a command ends badly: one line for people and an exit status; knows no command."""

from __future__ import annotations

OK, FAILED, WRONG = 0, 1, 2  # docs/api.md#exit-status


class Failure(Exception):
    """A command cannot be done.

    Attributes:
        message: one line for people, without secrets.
        status: FAILED (refused or failed) or WRONG (usage or configuration).
    """

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.message, self.status = message, status
