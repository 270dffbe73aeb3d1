"""What a user's mistake raises: what was wrong, where, what was expected, what to do."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the person at the keyboard can mend. The command line prints it as one line, without traceback."""


class ToldError(UserError):
    """A mistake that another process of the same run tells the user."""
