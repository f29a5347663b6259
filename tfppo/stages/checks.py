"""Checks that the models of a run fit each other."""

from pathlib import Path

from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError


def check_tokenizer(setting: str, folder: Path | str, its_tokenizer: Tokenizer, tokenizer: Tokenizer) -> None:
    """Raises UserError where the model in a folder has another tokenizer than the language model."""
    if its_tokenizer.digest() != tokenizer.digest():
        raise UserError(
            f"{setting}, but the model in {str(folder)!r} has another tokenizer than the language model, and scores "
            f"tokens; name one that was trained from this language model"
        )
