"""The recipe `openai_2019` by name, from the language model of the quickstart.

    python tools/train_ppo.py --config=configs/openai_2019.py --workdir=runs/openai_2019 \\
        --config.language_model=runs/quickstart/lm

`tfppo/config/presets.py` says what the recipe is, and where its values are from.
"""

from tfppo.config.presets import openai_2019


def get_config():
    return openai_2019()
