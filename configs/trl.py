"""The recipe `trl` by name, from the language model of the quickstart.

    tfppo train-ppo --config=trl --workdir=runs/trl \\
        --config.language_model=runs/quickstart/lm --config.data.max_prompt_tokens=10

The recipe's prompts of up to 512 tokens and responses of 53 need 566 positions. The quickstart's model has 64,
so prompts are kept short here. With data of such lengths, in a file of prompts and responses, train a language model
of the recipe's size first:

    tfppo train-lm --config=trl --workdir=runs/trl_posts --config.data.source=posts.jsonl
    tfppo train-ppo --config=trl --workdir=runs/trl_posts --config.data.source=posts.jsonl

`tfppo/config/presets.py` says what the recipe is, and where its values are from.
"""

from tfppo.config.presets import trl


def get_config():
    return trl()
