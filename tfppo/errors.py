"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """Bad input: the message names the field, the value and the remedy. Binaries print it as one line."""
