"""The exception for mistakes that the user can correct, and what a misspelt name may have meant."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Invalid input. The message names the field, its value and the remedy; the binaries print it as one line."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name that is most similar to one, as "; did you mean 'NAME'?"; "" where none is similar."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
