"""What a user's mistake raises: what was wrong, where, what was expected, what to do."""

import re

#: User and password in an address.
_PASSWORD = re.compile(r"(?<=://)[^\s/?#]*@")


def without_password(text: str) -> str:
    """`text` without the users and passwords that addresses in it name: `http://me:secret@host` -> `http://host`."""
    return _PASSWORD.sub("", text)


class UserError(ValueError):
    """A mistake that the person at the keyboard can mend. The command line prints it as one line, without traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(without_password(message))


class ToldError(UserError):
    """A mistake that another process of the same run tells the user."""
