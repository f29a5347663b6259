"""What every binary has in common: flags, one-line errors, exit codes.

Exit codes: 0 done; 1 the user's mistake, told in one line; 130 stopped on request, state saved.
"""

import os
import re
import sys
from contextlib import contextmanager

EXIT_USER_ERROR, EXIT_INTERRUPTED = 1, 130


def run(main, *, default_config, define_flags=lambda flags: None):
    """Parses the flags --config and --workdir and calls main(config, workdir, flags).

    Args: define_flags: gets `absl.flags`, to define what the binary has besides.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    from absl import app, flags, logging
    from ml_collections import config_flags

    with _one_line_errors():
        config_flag = config_flags.DEFINE_config_file(
            "config", default_config, "Experiment: a file of configs/; --config.section.field=value changes a field."
        )
        workdir = flags.DEFINE_string("workdir", None, "Folder of the run; the same one again goes on.", required=True)
        define_flags(flags)

    def parse(argv):
        with _one_line_errors():
            _check_config_path(argv, default_config)
            return flags.FLAGS(argv)

    def checked_main(argv):
        from tfppo.errors import UserError
        from tfppo.interrupt import Interrupted

        logging.set_verbosity(logging.WARNING)
        try:
            if len(argv) > 1:
                raise UserError(f"argument {argv[1]!r} is not a flag; write --name=value")
            return main(config_flag.value, workdir.value, flags.FLAGS)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USER_ERROR
        except Interrupted as interrupted:
            print(f"{interrupted}; run the same command again to go on", file=sys.stderr)
            return EXIT_INTERRUPTED

    app.run(checked_main, flags_parser=parse)


def _check_config_path(argv, default):
    """Raises ValueError, with the file's name, where --config names no file."""
    for position, argument in enumerate(argv):
        match = re.fullmatch(r"--?config(=(.*))?", argument)
        if match:
            path = match[2] if match[1] else (argv[position + 1 :] or [""])[0]
            if not os.path.isfile(path):
                raise ValueError(f"--config names no file: {path!r}; the configs that come along are in configs/")


@contextmanager
def _one_line_errors():
    """Turns what goes wrong while flags are parsed into one line and exit code 1."""
    from absl.flags import Error

    try:
        yield
    except (Error, AttributeError, KeyError, ValueError, OSError) as error:
        message = str(error).strip("\"'").splitlines()
        print(f"error: {message[0] if message else type(error).__name__}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
