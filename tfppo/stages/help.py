"""What --help prints of flags and settings: the value and the meaning of each."""

import dataclasses
import os
import sys
import textwrap
from collections.abc import Iterable

from tfppo.config import Config
from tfppo.config.meanings import meanings
from tfppo.stages.overrides import config_sections, shipped_configs

_WIDTH = 118
_TEXT_AT = 44  # the column of a flag's meaning


def describe_flags(flags: Iterable[tuple[str, object, str]]) -> str:
    """Flags as (name, default, meaning), one below the other."""
    lines = [_line(f"  --{name}" + (f"={_shown(default)}" if default else ""), text) for name, default, text in flags]
    return "\n".join(["Flags:", *lines])


def describe_settings(config: Config) -> str:
    """Every setting: the flag that changes it with its value in a configuration, its meaning, and another default."""
    names = ", ".join(shipped_configs())
    lines = [
        f"Configs that come along, for --config=NAME: {names}.",
        "Settings, as this command line has them; --config.section.field=value changes one, =none switches off what",
        "may be None. In brackets: the default, where that is another value.",
    ]
    sections = config_sections()
    lines += ["", f"  {_first_line(Config)}"]
    lines += _fields("", config, Config(), skip=sections)
    for name, section in sections.items():
        lines += ["", f"  {name}: {_first_line(section)}"]
        lines += _fields(f"{name}.", getattr(config, name), section(), skip=())
    return "\n".join(lines)


def _fields(prefix, values, defaults, skip):
    meaning = meanings()[type(values).__name__]
    for field in dataclasses.fields(values):
        if field.name not in skip:
            value, default = (getattr(settings, field.name) for settings in (values, defaults))
            text = meaning[field.name] + (f" [default {_shown(default)}]" if value != default else "")
            yield _line(f"  --config.{prefix}{field.name}={_shown(value)}", text)


def _shown(value):
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return f'"{value}"'
    return "none" if value is None else str(value)


def _first_line(cls):
    return (cls.__doc__ or "").splitlines()[0]


def _line(name, text):
    wrapped = textwrap.wrap(text.strip(), _WIDTH - _TEXT_AT) or [""]
    first, rest = (name.ljust(_TEXT_AT) + wrapped[0], wrapped[1:]) if len(name) < _TEXT_AT else (name, wrapped)
    return "\n".join([first.rstrip(), *(" " * _TEXT_AT + line for line in rest)])


def print_help(*parts: str) -> None:
    """Prints parts of a help text with a line between them; `| head` may close the output before its end."""
    try:
        print(*parts, sep="\n\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
