"""The recipe `openai_tldr_n_plus` by name, from the language model of the quickstart.

    python tools/train_ppo.py --config=configs/openai_tldr_n_plus.py --workdir=runs/openai_tldr_n_plus \\
        --config.language_model=runs/quickstart/lm

`tfppo/config/presets.py` says what the recipe is, and where its values are from.
"""

from tfppo.config.presets import openai_tldr_n_plus


def get_config():
    return openai_tldr_n_plus()
