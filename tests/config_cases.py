"""What the tests of the configuration share."""

from typing import Any

from tfppo.config import Config

# Of PpoConfig, the settings of Ziegler et al. 2019 that are not its defaults: what tests were worked out with.
ORIGINAL: dict[str, Any] = dict(critic="shared", gae_lambda=0.95, optimizer="adam", adam_epsilon=1e-5)


def configured(**settings):
    """A Config with `section__field=value` assigned, as flags assign it."""
    config = Config()
    for name, value in settings.items():
        *section, field = name.split("__")
        holder = getattr(config, section[0]) if section else config
        assert hasattr(holder, field), name
        setattr(holder, field, value)
    return config
