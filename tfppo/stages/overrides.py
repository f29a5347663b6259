"""--config and --config.section.field=value on the command line, before absl reads them."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Sequence
from pathlib import Path

from tfppo.config import Config
from tfppo.errors import UserError
from tfppo.files import user_path

_CONFIG_FLAG = re.compile(r"(--?config)(?:=(.*))?", re.DOTALL)
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:=.*)?", re.DOTALL)
_PACKAGE = Path(__file__).parents[1]


def shipped_configs() -> dict[str, Path]:
    """The configs that come along, by name: in the package, or beside it in a checkout."""
    folders = [folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()]
    return {path.stem: path for path in sorted(folders[0].glob("*.py")) if path.stem != "__init__"} if folders else {}


def resolve_config(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments with the file in place of the name that --config gives, and that file; None without the flag.

    Raises: UserError where there is neither a config of that name nor a file.
    """
    argv, file = list(argv), None
    for position, argument in enumerate(argv):
        match = _CONFIG_FLAG.fullmatch(argument)
        if not match:
            continue
        if match[2] is not None:
            file = _config_file(match[2])
            argv[position] = f"{match[1]}={file}"
        else:
            file = _config_file((argv[position + 1 :] or [""])[0])
            argv[position + 1] = file
    return argv, file


def _config_file(name):
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    if user_path(name).is_file():
        return str(user_path(name))
    nearest = difflib.get_close_matches(Path(name).stem, shipped, n=1)
    hint = f"; did you mean --config={nearest[0]}?" if nearest else ""
    raise UserError(f"--config names no file: {name!r}; the configs that come along are {', '.join(shipped)}{hint}")


def check_overrides(argv: Sequence[str]) -> None:
    """Raises UserError, with the most similar name, where --config.section.field is not a field of Config."""
    sections, fields = config_sections(), _fields()
    for name in (match[1] for match in map(_OVERRIDE.fullmatch, argv) if match):
        if name in sections:
            raise UserError(f"--config.{name} is a section; write --config.{name}.FIELD=value")
        if name not in fields:
            nearest = _nearest(name, fields)
            hint = f"did you mean --config.{nearest}?" if nearest else "--help lists the fields"
            raise UserError(f"--config.{name} is not a field of the configuration; {hint}")


def unknown_flag(name: str) -> str:
    """What to say of a flag that there is not, where a setting has its name; else ""."""
    meant = [f"--config.{field}" for field in _fields() if field.rpartition(".")[2] == name]
    return f"--{name} is not a flag; did you mean {' or '.join(meant)}?" if meant else ""


def wrong_type(message: str) -> str:
    """What absl says of a value that has not the type of its setting, in plain words; else the message as it is."""
    match = re.match(r"flag --config\.([^=]+)=(.*?): ", message, re.DOTALL)
    kind = _kinds().get(match[1]) if match else None
    return f"--config.{match[1]} is {match[2]!r}; it must be {kind}" if match and kind else message


def _kinds():
    """What a value must be, in words, by setting; those of which absl's own words will do are left out."""
    words: dict[object, str] = {int: "a whole number", float: "a number", bool: "True or False"}
    words |= {
        int | None: "a whole number, or none",
        float | None: "a number, or none",
        bool | None: "True, False, or none",
    }
    return {name: words[kind] for name, kind in _fields().items() if kind in words}


def _fields():
    """The type of every setting, by name: "seed", "ppo.gamma"."""
    sections = config_sections()
    types = {f.name: f.type for f in dataclasses.fields(Config) if f.name not in sections}
    return types | {
        f"{name}.{f.name}": f.type for name, section in sections.items() for f in dataclasses.fields(section)
    }


def config_sections() -> dict[str, type]:
    """The dataclass of each section of Config, by name."""
    return {
        field.name: typing.cast(type, field.type)
        for field in dataclasses.fields(Config)
        if dataclasses.is_dataclass(field.type)
    }


def estimator_first(argv: Sequence[str]) -> list[str]:
    """The arguments, of those that change the configuration the estimator's first: it resets settings.

    Whatever else is on the command line then stays, in any order.
    """
    argv = list(argv)
    for place in range(len(argv) - 2, -1, -1):
        if re.fullmatch(r"--?config\.ppo\.estimator", argv[place]):  # its value is the next argument
            argv[place : place + 2] = [f"{argv[place]}={argv[place + 1]}"]
    overrides = [place for place, argument in enumerate(argv) if _OVERRIDE.fullmatch(argument)]
    chosen = [place for place in overrides if re.match(r"--?config\.ppo\.estimator=", argv[place])]
    if not chosen:
        return argv
    rest = [argument for place, argument in enumerate(argv) if place not in chosen]
    return [*rest[: overrides[0]], *(argv[place] for place in chosen), *rest[overrides[0] :]]


def take_nones(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Removes the arguments that set an optional field to none; returns the rest and their (section, field) pairs.

    ml_collections has no syntax that sets a number to None. A field that a later argument sets is not among the pairs.
    """
    optional = {name for name, kind in _fields().items() if "." in name and type(None) in typing.get_args(kind)}
    rest: list[str] = []
    nones: dict[str, None] = {}
    for argument in argv:
        match = re.fullmatch(r"--?config\.([^=]*)=none", argument, re.IGNORECASE)
        if match and match[1] in optional:
            nones[match[1]] = None
            continue
        rest.append(argument)
        if other := _OVERRIDE.fullmatch(argument):
            nones.pop(other[1], None)
    return rest, [(section, field) for section, _, field in (name.partition(".") for name in nones)]


def _nearest(name, fields):
    """The most similar field, first among those of this name in other sections; None where none is similar."""
    same = [field for field in fields if field.rpartition(".")[2] == name.rpartition(".")[2]]
    return next(iter(difflib.get_close_matches(name, same or fields, n=1, cutoff=0.0 if same else 0.6)), None)
