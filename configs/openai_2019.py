"""The recipe `openai_2019` by name, from the language model of the quickstart.

    tfppo train-ppo --config=openai_2019 --workdir=runs/openai_2019 \\
        --config.language_model=runs/quickstart/lm --config.data.max_prompt_tokens=39

The recipe's prompts of up to 64 tokens and responses of 24 need 89 positions. The quickstart's model has 64,
so prompts are kept short here. With data of such lengths, in a file of prompts and responses, train a language model
of the recipe's size first:

    tfppo train-lm --config=openai_2019 --workdir=runs/openai_2019_posts --config.data.source=posts.jsonl
    tfppo train-ppo --config=openai_2019 --workdir=runs/openai_2019_posts --config.data.source=posts.jsonl

`tfppo/config/presets.py` says what the recipe is, and where its values are from.
"""

from tfppo.config.presets import openai_2019


def get_config():
    return openai_2019()
