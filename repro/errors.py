"""The one error class that is shown to people without a traceback."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message names it, says what was expected and what to do."""
