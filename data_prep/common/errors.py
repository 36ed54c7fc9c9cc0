"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """Bad input: its message is one line that says what, which file or key, and what to do."""


class DamagedError(UserError):
    """A file or record that is not as it was written, and will not be when it is read again."""
