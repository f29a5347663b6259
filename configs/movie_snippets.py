"""Movie-review sentences, fine-tuned to speak well of films: the quickstart.

    python tools/quickstart.py --workdir=runs/quickstart

About five minutes on two CPU cores.
"""

from tfppo.config import Config


def get_config():
    return Config()
