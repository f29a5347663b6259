"""The recipe `openrlhf` by name, from the language model of the quickstart.

    tfppo train-ppo --config=openrlhf --workdir=runs/openrlhf \\
        --config.language_model=runs/quickstart/lm

`tfppo/config/presets.py` says what the recipe is, and where its values are from.
"""

from tfppo.config.presets import openrlhf


def get_config():
    return openrlhf()
