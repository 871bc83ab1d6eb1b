"""Exit statuses, and the error that ends a command with one line on standard error."""

from __future__ import annotations

OK, FAILED, WRONG = 0, 1, 2  # done; refused or failed; wrong usage or configuration (docs/api.md#exit-status)


class CliError(Exception):
    """A command cannot be carried out.

    Attributes:
        message: one line, without secrets.
        status: FAILED or WRONG.
    """

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.message, self.status = message, status
