"""What the tests of the configuration share."""

from tfppo.config import Config


def configured(**settings):
    """A Config with `section__field=value` assigned, as flags assign it."""
    config = Config()
    for name, value in settings.items():
        *section, field = name.split("__")
        holder = getattr(config, section[0]) if section else config
        assert hasattr(holder, field), name
        setattr(holder, field, value)
    return config
