"""What settings of the data must hold."""

from typing import TYPE_CHECKING

from tfppo.config.choices import CHAT_TEMPLATES, LONG_PROMPTS
from tfppo.config.validation import require, require_one_of, require_positive

if TYPE_CHECKING:  # settings.py imports this module
    from tfppo.config.settings import DataConfig


def validate_data(data: "DataConfig") -> None:
    """Raises UserError for values of a DataConfig that do not fit."""
    require(bool(data.source), "data.source", data.source, "name tfds:NAME, or files: .txt, .jsonl, .csv ...")
    require(
        data.chat_template in ("", *CHAT_TEMPLATES) or data.chat_template.endswith(".json"),
        "data.chat_template",
        data.chat_template,
        f"choose one of {', '.join(CHAT_TEMPLATES)}, or name a .json file",
    )
    require_one_of("data.long_prompts", data.long_prompts, LONG_PROMPTS)
    require(
        data.max_given_prompt_tokens is None or data.max_given_prompt_tokens > 0,
        "data.max_given_prompt_tokens",
        data.max_given_prompt_tokens,
        "it must be above 0, or None for what the model has room for",
    )
    require_positive("data", data, "min_prompt_tokens", "max_prompt_tokens")
    require(
        data.min_prompt_tokens <= data.max_prompt_tokens,
        "data.min_prompt_tokens",
        data.min_prompt_tokens,
        f"it must be at most data.max_prompt_tokens {data.max_prompt_tokens}",
    )
