"""What all commands share: flags, help, one-line errors, exit codes.

Exit codes: 0 for success; 1 for a mistake of the user, reported in one line; 130 for a run that was stopped by a
signal, once its state is saved.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from tfppo.cluster import require_one_worker, this_cluster
from tfppo.config import Config
from tfppo.errors import UserError
from tfppo.files import REMEDIES, reason, remedy
from tfppo.stages.help import describe_flags, describe_settings, print_help
from tfppo.stages.invocation import Invocation, quote
from tfppo.stages.overrides import (
    check_overrides,
    estimator_first,
    resolve_config,
    shipped_configs,
    take_nones,
    unknown_flag,
    wrong_type,
)
from tfppo.stages.start import start_tensorflow
from tfppo.training.interrupt import EXIT_INTERRUPTED, Interrupted, Program
from tfppo.training.progress import duration
from tfppo.training.run_folder import claim, release

if TYPE_CHECKING:
    from absl.flags import FlagValues

EXIT_USER_ERROR = 1
DEFAULT_CONFIG = "movie_snippets"
HELP_FLAGS = ("--help", "-help", "-h")


class Next(NamedTuple):
    """A command that a user may want after another one, on the same run."""

    purpose: str
    command: str
    arguments: tuple[str, ...] = ()
    without: tuple[str, ...] = ()  # starts of settings that it is not to have
    keeps: tuple[str, ...] = ()  # flags of the command before, which it is to have where they were given


MEASURE = Next("measure it", "evaluate")
TRY = Next("try it", "generate", ("--prompt=...",))
AFTER_QUICKSTART = (MEASURE, TRY)  # which has exported
AFTER_PPO = (*AFTER_QUICKSTART, Next("serve it", "export"))

# Starts of the settings that a command on a run has a use for. A model that is there has its own sizes; what is left of
# that section is held against the length of prompts and responses.
_WITH_A_MODEL = (
    "seed",
    "num_replicas",
    "cross_device_ops",
    "tensorfloat32",
    "deterministic",
    "language_model",
    "data.",
    "model.max_sequence_length",
    "sampling.",
)
USES = {
    "train-ppo": (*_WITH_A_MODEL, "checkpoint_every", "keep_checkpoints", "reward.", "ppo.", "evaluation."),
    "evaluate": (*_WITH_A_MODEL, "reward.", "evaluation."),
    "generate": _WITH_A_MODEL,
    "export": _WITH_A_MODEL,
}


def run(
    main: Callable[[Config, str, "FlagValues"], None],
    *,
    doc: str,
    define_flags: Callable[[ModuleType], None] = lambda flags: None,
    required: Mapping[str, str] | None = None,
    then: Sequence[Next] = (),
    trains: bool = False,
    distributed: bool = False,
) -> None:
    """Parses the flags --config and --workdir and calls main(config, workdir, flags) with a validated config.

    TensorFlow is imported after that, so that a mistake on the command line is reported at once.

    Args:
        doc: what --help says of the command, before its flags and settings.
        define_flags: defines further flags of the command; it is called with the module `absl.flags`.
        required: flags beside --workdir that must be given, each with the remedy where it is not.
        then: what is printed at the end as the commands to type next; TensorBoard comes last.
        trains: whether it writes what training goes on from: then one process at a time has the run's folder.
        distributed: whether several workers may run it together, as all that train.
    """
    with Program():
        _run(
            main,
            doc,
            define_flags,
            {"workdir": "name the folder of the run", **(required or {})},
            then,
            trains,
            distributed,
        )


def _run(main, doc, define_flags, required, then, trains, distributed):
    started, invocation = time.monotonic(), Invocation(sys.argv)
    from absl import app, flags, logging
    from ml_collections import config_flags

    wants_help = any(argument in HELP_FLAGS for argument in sys.argv[1:])
    with one_line_errors():
        argv, path = resolve_config([argument for argument in sys.argv if argument not in HELP_FLAGS])
        path = path or str(shipped_configs()[DEFAULT_CONFIG])
        check_overrides(argv)
        sys.argv, nones = take_nones(estimator_first(argv))
    others = set(flags.FLAGS)
    # Without --config, the default is loaded and overridden as soon as the flag is defined.
    with one_line_errors(), _config_errors(path):
        config_flag = config_flags.DEFINE_config_file(
            "config", path, "Experiment: the name of a config that comes along, or a file with get_config()."
        )
        flags.DEFINE_string("workdir", None, "Folder of the run; the same one again goes on.")
        define_flags(flags)
    own = [name for name in flags.FLAGS if name not in others and not name.startswith("config.")]

    def parse(argv):
        with one_line_errors():
            with _config_errors(path):
                rest = parse_flags(argv)
            if len(rest) > 1:
                raise UserError(f"argument {rest[1]!r} is not a flag; write --name=value")
            config = flags.FLAGS["config"].value
            if not isinstance(config, Config):
                raise UserError(f"{path!r}: get_config() must return a tfppo.config.Config, not {config!r:.100}")
            for section, name in nones:
                setattr(getattr(config, section), name, None)
            if wants_help:
                print_help(help_text(doc, own), describe_settings(config))
                sys.exit(0)
            for name, hint in required.items():
                if not flags.FLAGS[name].value:
                    raise UserError(f"--{name} is missing; {hint}")
            config.validate()
            return rest

    def checked_main(argv):
        logging.set_verbosity(logging.WARNING)
        try:
            folder = os.path.expanduser(flags.FLAGS.workdir)  # a shell leaves the ~ of --workdir=~/runs as it is
            with one_line_errors(), no_empty_folders(folder):
                name = main.__module__.rpartition(".")[2].replace("_", "-")
                if not (trains or distributed):
                    require_one_worker(f"tfppo {name}")
                keep_quiet_beside_the_chief()
                if trains and this_cluster().is_chief:
                    claim(folder, invocation.whole(name))
                config = config_flag.value
                start_tensorflow(keeps_programs=config.compilation_cache, deterministic=config.deterministic)
                run_together(lambda: main(config, folder, flags.FLAGS))
            if then:
                print(f"done in {duration(time.monotonic() - started)}; what next:", flush=True)
                print(what_next(invocation, then, folder, flags.FLAGS), flush=True)
            return 0
        except Interrupted as interrupted:
            print(f"{interrupted}; run the same command again to go on", file=sys.stderr)
            return EXIT_INTERRUPTED

    app.run(checked_main, flags_parser=parse)


def keep_quiet_beside_the_chief() -> None:
    """Of several workers the chief alone prints what a run says; the others print errors and warnings."""
    cluster = this_cluster()
    if not cluster.is_chief:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    elif cluster.count > 1:
        print(f"worker 0 of {cluster.count}, the chief: waiting for the others at {cluster.addresses[0]}", flush=True)


def run_together(main: Callable[[], None]) -> None:
    """Calls main, and waits at its end for the other workers, if there are any."""
    from tfppo.computation.memory import no_memory_told
    from tfppo.training.workers import together

    with no_memory_told(), together():
        main()


def what_next(invocation: Invocation, then: Sequence[Next], workdir: str, flags: "FlagValues") -> str:
    """Commands to type next, as they work in this place, one a line."""
    commands = {}
    for next in then:
        kept = [f"--{name}={flags[name].value}" for name in next.keeps if flags[name].value is not None]
        commands[next.purpose] = invocation.next(
            next.command, *kept, *next.arguments, uses=USES[next.command], without=next.without
        )
    commands["look at the curves"] = f"tensorboard {quote(f'--logdir={workdir}')}"
    return "\n".join(f"  {purpose + ':':20}{command}" for purpose, command in commands.items())


def run_without_config(main: Callable[[Sequence[str]], None], *, doc: str, module: str) -> None:
    """Parses the flags that a module defines, and calls main with the arguments that are none of them.

    Args: doc: what --help says of the command, before its flags.
    """
    from absl import app

    def parse(argv):
        if any(argument in HELP_FLAGS for argument in argv[1:]):
            from absl import flags

            print_help(help_text(doc, [flag.name for flag in flags.FLAGS.flags_by_module_dict()[module]]))
            sys.exit(0)
        with one_line_errors():
            require_one_worker(f"tfppo {module.rpartition('.')[2]}")
            return parse_flags(argv)

    with Program("stopped at once"):
        app.run(main, flags_parser=parse)


def help_text(doc: str, names: Sequence[str]) -> str:
    """What a command does, with its examples as they are typed here, and the flags of these names."""
    from absl import flags

    command = Invocation(sys.argv)
    lines = [command.adapted(line) for line in doc.strip().splitlines()]
    found = [flags.FLAGS[name] for name in names]
    # absl adds to a flag that may be repeated that it may: in words that its own text already has.
    meanings = [flag.help.partition(";\n    repeat this option")[0] for flag in found]
    defaults = [None if flag.name == "config" else flag.default for flag in found]
    described = list(zip(names, defaults, meanings, strict=True))
    return "\n".join([*lines, "", describe_flags(described)])


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags and returns the other arguments. absl's own flags for help exit with 0; absl would with 1.

    Raises: absl.flags.Error for a mistake; see `one_line_errors`.
    """
    from absl import flags

    try:
        return flags.FLAGS(argv)
    except SystemExit:  # only the help flags exit while parsing
        sys.exit(0)


@contextmanager
def _config_errors(path: str) -> Iterator[None]:
    """Turns an error while a config file is loaded, or a flag is parsed, into a UserError with the reason."""
    from absl.flags import Error, UnrecognizedFlagError

    try:
        yield
    except Error as error:
        if isinstance(error, UnrecognizedFlagError):
            raise UserError(unknown_flag(error.flagname) or str(error)) from error
        if "Error whilst parsing config file" not in str(error):
            raise UserError(wrong_type(str(error))) from error
        raise UserError(f"config {path!r} cannot be loaded: {str(error).splitlines()[-1]}") from error
    except Exception as error:  # the file is Python: it can raise anything
        raise UserError(f"config {path!r} cannot be loaded: {type(error).__name__}: {error}") from error


@contextmanager
def no_empty_folders(folder: str) -> Iterator[None]:
    """Removes the folder again, with those above it, where the context made it, ends in an error and left it empty."""
    path = Path(folder)
    missing = [one for one in (path, *path.parents) if not one.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it is not there, or holds something
            release(path)
            for one in missing:
                one.rmdir()
        raise


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Reports a mistake of the user, or a full disk and the like, in one line and exits with code 1."""
    from absl.flags import Error

    try:
        yield
    except (Error, UserError) as error:
        print(f"error: {' '.join(str(error).split(chr(10)))}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        place = repr(error.filename) if error.filename else "a file"
        print(f"error: {place} cannot be written or read: {reason(error)}; {remedy(error)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
