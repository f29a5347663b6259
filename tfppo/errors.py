"""The exception for mistakes that the user can correct."""


class UserError(ValueError):
    """Invalid input. The message names the field, its value and the remedy; the binaries print it as one line."""
