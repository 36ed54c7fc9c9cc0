"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """Bad input: its message is one line that says what, which file or key, and what to do."""
