"""Finds a reward function by its name."""

import importlib
import importlib.util
import sys
from pathlib import Path

from tfppo.errors import UserError


def load_reward(name):
    """The callable that `module:function` or `path/to/file.py:function` names.

    Raises: UserError where there is no such module, file or function.
    """
    where, _, attribute = name.rpartition(":")
    if not where or where.startswith(".") and not where.endswith(".py"):
        raise UserError(f"reward.functions has {name!r}; write module:function or path/file.py:function")
    try:
        module = _load_file(where) if where.endswith(".py") else importlib.import_module(where)
    except (ImportError, OSError, SyntaxError) as error:
        raise UserError(f"reward.functions has {name!r}, but {where!r} cannot be imported: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise UserError(f"reward.functions has {name!r}, but {where!r} has no function {attribute!r}")
    return function


def _load_file(path):
    # Dataclasses, and other things that look their own module up, need it to be in sys.modules; under a name of its
    # own, so that a file called json.py hides nothing.
    spec = importlib.util.spec_from_file_location(f"tfppo_reward_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
