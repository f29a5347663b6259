"""Finds a reward function by its name: a Python function, or a model that scores tokens."""

import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError, did_you_mean
from tfppo.files import user_path
from tfppo.models.folder import load_language_model, load_reward_model
from tfppo.models.language_model import LanguageModel
from tfppo.models.reward_model import RewardModel
from tfppo.rewards.failures import told
from tfppo.rewards.learned import LearnedReward
from tfppo.rewards.likelihood import LikelihoodReward
from tfppo.rewards.scoring import Reward, RewardFunction


class ModelReward(NamedTuple):
    """A kind of reward that is computed by the model in a folder; settings name it `KIND:FOLDER`."""

    load: Callable[[Path], tuple[LanguageModel | RewardModel, Tokenizer]]  # from a folder
    make: Callable[[Any, bool], Reward]  # from what `load` gives, and whether XLA compiles it
    made_by: str  # the command that makes such a model


MODEL_REWARDS = {
    "likelihood": ModelReward(load_language_model, LikelihoodReward, "tfppo train-lm"),
    "reward_model": ModelReward(load_reward_model, LearnedReward, "tfppo train-reward-model"),
}


def load_reward(name: str) -> RewardFunction:
    """The callable that `module:function` or `path/to/file.py:function` names.

    Raises: UserError where there is no such module, file or function, or the module cannot be run.
    """
    where, _, attribute = name.rpartition(":")
    if not where or where.startswith(".") and not where.endswith(".py"):
        raise UserError(f"reward.functions has {name!r}; write module:function or path/file.py:function")
    try:
        module = _import_file(where) if where.endswith(".py") else _import_module(where)
    except (Exception, SystemExit) as error:  # a module is Python: it can raise anything
        raise UserError(f"reward.functions has {name!r}, but {where!r} cannot be imported: {told(error)}") from error
    function = getattr(module, attribute, None)
    if isinstance(function, type):
        raise UserError(
            f"reward.functions has {name!r}, which is a class; name a function, or an object that is called"
        )
    if not callable(function):
        there = [one for one in _functions(module) if one != attribute]
        hint = did_you_mean(attribute, there) or f"; it has {', '.join(there)}" * bool(there)
        raise UserError(f"reward.functions has {name!r}, but {where!r} has no function {attribute!r}{hint}")
    return function


def _functions(module):
    """The names of the functions that a module defines, but for those it keeps to itself."""
    own = {name: value for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"}
    return [name for name, value in own.items() if value.__module__ == module.__name__]


def _import_module(name):
    # `python -m` finds what is in the current folder, an installed command does not. Last, so that nothing there hides
    # an installed module; for good, as a function may import more when it is called.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(name)


def _import_file(name):
    path = os.path.abspath(user_path(name))
    return _load_file(path, os.stat(path).st_mtime_ns)


@functools.cache  # as an import would be: a file may load a model
def _load_file(path: str, modified: int) -> ModuleType:
    # Dataclasses, for example, look their module up in sys.modules. The name keeps a file called json.py from hiding
    # another module, also one of that name in another folder.
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"tfppo_reward_{Path(path).stem}_{digest}", path)
    assert spec and spec.loader  # always there for a name that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
