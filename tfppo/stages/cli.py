"""What all binaries share: flags, one-line errors, exit codes.

Exit codes: 0 for success; 1 for a mistake of the user, reported in one line; 130 for a run that was stopped by a
signal, once its state is saved.
"""

import dataclasses
import difflib
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from tfppo.config import Config
from tfppo.errors import UserError
from tfppo.training.interrupt import Interrupted

if TYPE_CHECKING:
    from absl.flags import FlagValues

EXIT_USER_ERROR, EXIT_INTERRUPTED = 1, 130
_CONFIG_FLAG = re.compile(r"--?config(?:=(.*))?", re.DOTALL)
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:=.*)?", re.DOTALL)


def run(
    main: Callable[[Config, str, "FlagValues"], None],
    *,
    default_config: str,
    define_flags: Callable[[ModuleType], None] = lambda flags: None,
) -> None:
    """Parses the flags --config and --workdir and calls main(config, workdir, flags) with a validated config.

    TensorFlow is imported after that, so that a mistake on the command line is reported at once.

    Args: define_flags: defines further flags of the binary; it is called with the module `absl.flags`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    from absl import app, flags, logging
    from ml_collections import config_flags

    flags.disclaim_key_flags()  # the flags defined here count as flags of the binary, so that its --help lists them
    with one_line_errors():
        path = _config_path(sys.argv) or default_config
        _check_overrides(sys.argv)
        sys.argv, nones = _take_nones(_estimator_first(sys.argv))
    # Without --config, the default is loaded and overridden as soon as the flag is defined.
    with one_line_errors(), _config_errors(path):
        config_flag = config_flags.DEFINE_config_file(
            "config", default_config, "Experiment: a file of configs/; --config.section.field=value changes a field."
        )
        workdir = flags.DEFINE_string("workdir", None, "Folder of the run; the same one again goes on.")
        define_flags(flags)

    def parse(argv):
        with one_line_errors():
            with _config_errors(path):
                rest = parse_flags(argv)
            if len(rest) > 1:
                raise UserError(f"argument {rest[1]!r} is not a flag; write --name=value")
            if not workdir.value:
                raise UserError("--workdir is missing; name the folder of the run")
            config = flags.FLAGS["config"].value
            if not isinstance(config, Config):
                raise UserError(f"{path!r}: get_config() must return a tfppo.config.Config, not {config!r:.100}")
            for section, name in nones:
                setattr(getattr(config, section), name, None)
            config.validate()
            return rest

    def checked_main(argv):
        logging.set_verbosity(logging.WARNING)
        try:
            with one_line_errors():
                return main(config_flag.value, flags.FLAGS.workdir, flags.FLAGS)
        except Interrupted as interrupted:
            print(f"{interrupted}; run the same command again to go on", file=sys.stderr)
        except KeyboardInterrupt:
            print("stopped at once; run the same command again to go on from what was saved", file=sys.stderr)
        return EXIT_INTERRUPTED

    app.run(checked_main, flags_parser=parse)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags and returns the other arguments. --help exits with 0; absl alone would exit with 1.

    Raises: absl.flags.Error for a mistake; see `one_line_errors`.
    """
    from absl import flags

    try:
        return flags.FLAGS(argv)
    except SystemExit:  # only the help flags exit while parsing
        sys.exit(0)


def _config_path(argv):
    """The file that --config names; None without the flag. Raises: UserError where the file is missing."""
    path = None
    for position, argument in enumerate(argv):
        match = _CONFIG_FLAG.fullmatch(argument)
        if match:
            path = match[1] if match[1] is not None else (argv[position + 1 :] or [""])[0]
            if not os.path.isfile(path):
                raise UserError(f"--config names no file: {path!r}; the configs that come along are in configs/")
    return path


def _check_overrides(argv):
    """Raises UserError, with the most similar name, where --config.section.field is not a field of Config."""
    sections = _sections()
    fields = [f.name for f in dataclasses.fields(Config) if f.name not in sections]
    fields += [f"{name}.{f.name}" for name, section in sections.items() for f in dataclasses.fields(section)]
    for name in (match[1] for match in map(_OVERRIDE.fullmatch, argv) if match):
        if name in sections:
            raise UserError(f"--config.{name} is a section; write --config.{name}.FIELD=value")
        if name not in fields:
            nearest = _nearest(name, fields)
            hint = f"did you mean --config.{nearest}?" if nearest else "the fields are in tfppo/config/settings.py"
            raise UserError(f"--config.{name} is not a field of the configuration; {hint}")


def _sections():
    """The dataclass of each section of Config, by name."""
    return {field.name: field.type for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type)}


def _estimator_first(argv):
    """The arguments, of those that change the configuration the estimator's first: it resets settings.

    Whatever else is on the command line then stays, in any order.
    """
    overrides = [place for place, argument in enumerate(argv) if _OVERRIDE.fullmatch(argument)]
    chosen = [place for place in overrides if re.match(r"--?config\.ppo\.estimator=", argv[place])]
    if not chosen:
        return argv
    rest = [argument for place, argument in enumerate(argv) if place not in chosen]
    return [*rest[: overrides[0]], *(argv[place] for place in chosen), *rest[overrides[0] :]]


def _take_nones(argv):
    """Removes the arguments that set an optional field to none; returns the rest and their (section, field) pairs.

    ml_collections has no syntax that sets a number to None.
    """
    optional = {
        f"{name}.{field.name}"
        for name, section in _sections().items()
        for field in dataclasses.fields(section)
        if type(None) in typing.get_args(field.type)
    }
    rest, nones = [], []
    for argument in argv:
        match = re.fullmatch(r"--?config\.([^=]*)=none", argument, re.IGNORECASE)
        if match and match[1] in optional:
            nones.append(tuple(match[1].split(".")))
        else:
            rest.append(argument)
    return rest, nones


def _nearest(name, fields):
    """The most similar field, first among those of this name in other sections; None where none is similar."""
    same = [field for field in fields if field.rpartition(".")[2] == name.rpartition(".")[2]]
    return next(iter(difflib.get_close_matches(name, same or fields, n=1, cutoff=0.0 if same else 0.6)), None)


@contextmanager
def _config_errors(path: str) -> Iterator[None]:
    """Turns an error while a config file is loaded into a UserError with the reason; errors of absl pass."""
    from absl.flags import Error

    try:
        yield
    except Error as error:
        if "Error whilst parsing config file" not in str(error):
            raise
        raise UserError(f"config {path!r} cannot be loaded: {str(error).splitlines()[-1]}") from error
    except Exception as error:  # the file is Python: it can raise anything
        raise UserError(f"config {path!r} cannot be loaded: {type(error).__name__}: {error}") from error


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Reports a mistake of the user in one line and exits with code 1."""
    from absl.flags import Error

    try:
        yield
    except (Error, UserError) as error:
        print(f"error: {' '.join(str(error).split(chr(10)))}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
