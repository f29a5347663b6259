"""A model on disk: one folder with `model.keras` and the tokenizer that belongs to it."""

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import keras
import tensorflow as tf

from tfppo.cluster import chief_writes
from tfppo.data.chat import ChatTemplate
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.files import beside, sync, sync_tree, told, user_path
from tfppo.models.finite import require_finite
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.reward_model import RewardModel

_MODEL_FILE, _TOKENIZER, _ABOUT_FILE = "model.keras", "tokenizer", "about.json"


@chief_writes
def save_model(
    model: LanguageModel | Policy | RewardModel,
    tokenizer: Tokenizer,
    folder: str | os.PathLike,
    about: Mapping[str, object] | None = None,
) -> None:
    """Saves a model with its tokenizer in a folder, which replaces an existing one as a whole.

    Of several workers the chief alone does it.

    If the process is killed, the functions here find either the old or the new model: see `_finish_swap`.

    Args: about: what to know about the model, kept beside it as JSON; `read_about` reads it.
    Raises: UserError where a weight is not finite; an existing model stays.
    """
    folder = user_path(folder)
    require_finite(model, f"the model {str(folder)!r}")
    _finish_swap(folder)
    fresh, old = beside(folder)
    # In this order: a `.saving` beside an `.old` is taken for complete.
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(fresh, ignore_errors=True)
    kept = "the model that was there before is intact" if folder.exists() else "there was none before"
    with told(f"the model in {str(folder)!r}", kept, others=(tf.errors.OpError,)):
        try:
            fresh.mkdir(parents=True)
            tokenizer.save(fresh / _TOKENIZER)
            model.save(fresh / _MODEL_FILE)
            if about is not None:
                (fresh / _ABOUT_FILE).write_text(json.dumps(dict(about), indent=2) + "\n")
            sync_tree(fresh)
        except Exception:
            shutil.rmtree(fresh, ignore_errors=True)  # it may be what filled the disk
            raise
        if folder.exists():
            folder.rename(old)
        _take_name(fresh, folder)
        sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_about(folder: str | os.PathLike) -> dict:
    """What was said of the model in a folder when it was saved; empty where nothing was, or there is no model."""
    _finish_swap(user_path(folder))
    try:
        return json.loads((user_path(folder) / _ABOUT_FILE).read_text())
    except (OSError, ValueError):
        return {}


def model_exists(folder: str | os.PathLike) -> bool:
    """Whether there is a model in a folder. Raises: UserError where an interrupted save cannot be finished."""
    _finish_swap(user_path(folder))
    return (user_path(folder) / _MODEL_FILE).is_file()


def check_model(folder: str | os.PathLike, made_by: str) -> None:
    """Raises UserError where there is no model in a folder; `made_by` is the command that makes one."""
    if not model_exists(folder):
        raise UserError(f"there is no model in {str(folder)!r} ({_MODEL_FILE} is missing); train one with {made_by}")


def language_model_sizes(folder: str | os.PathLike) -> dict[str, int] | None:
    """The sizes of the language model in a folder, without its weights; None where there is none that can be read."""
    _finish_swap(user_path(folder))
    try:
        with zipfile.ZipFile(user_path(folder) / _MODEL_FILE) as archive:
            config = json.loads(archive.read("config.json"))["config"]
        config = config["language_model"]["config"] if "language_model" in config else config
        return config if "hidden_dim" in config else None  # a reward model, or none of tfppo's
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None  # what is wrong with it, loading says


def load_chat_template(folder: str | os.PathLike) -> ChatTemplate | None:
    """The chat template that is kept with the model in a folder; None where there is none. Raises: UserError."""
    _finish_swap(user_path(folder))
    return Tokenizer.load_chat_template(user_path(folder) / _TOKENIZER)


def _finish_swap(folder: Path) -> None:
    """Finishes a `save_model` that was killed between its two renames.

    Only then are `.saving` and `.old` there but not the folder itself, and `.saving` is complete.
    """
    if folder.exists():
        return
    fresh, old = beside(folder)
    if not (fresh.is_dir() and old.is_dir()):
        return
    try:
        _take_name(fresh, folder)
    except OSError as error:
        raise UserError(
            f"the model in {str(folder)!r} was being replaced when its process was killed, and {str(fresh)!r}, the "
            f"new one, cannot be renamed: {error.strerror}; rename it to {folder.name!r}"
        ) from error


def _take_name(fresh: Path, folder: Path) -> None:
    try:
        fresh.rename(folder)
    except FileNotFoundError:  # a process that reads the model has finished the swap
        if not folder.exists():
            raise


def _load(folder, made_by="tfppo train-lm"):
    check_model(folder, made_by)
    path = user_path(folder) / _MODEL_FILE
    try:
        model = keras.saving.load_model(path, compile=False)
    except (ValueError, TypeError, OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{str(path)!r} cannot be read as a tfppo model: {reason}") from error
    if not isinstance(model, LanguageModel | Policy | RewardModel):
        raise UserError(f"{str(path)!r} cannot be read as a tfppo model: it holds a {type(model).__name__}")
    tokenizer = Tokenizer.load(user_path(folder) / _TOKENIZER)
    trunk = model.language_model.trunk if isinstance(model, Policy) else model.trunk
    if trunk.sizes["vocabulary_size"] != tokenizer.vocabulary_size:
        raise UserError(
            f"{str(folder)!r} holds a model of {trunk.sizes['vocabulary_size']} tokens and a tokenizer of "
            f"{tokenizer.vocabulary_size}; copy the whole folder again"
        )
    return model, tokenizer


def load_language_model(folder: str | os.PathLike, dtype: str = "float32") -> tuple[LanguageModel, Tokenizer]:
    """The language model in a folder (the actor, where it holds a policy), under the given dtype policy, dropout off.

    Raises: UserError where there is none or it cannot be read.
    """
    model, tokenizer = _load(folder)
    if isinstance(model, RewardModel):
        raise UserError(f"the model in {str(folder)!r} is a RewardModel; a language model or a policy is needed")
    actor = model.language_model if isinstance(model, Policy) else model
    return copy_language_model(actor, dtype), tokenizer


def load_policy(folder: str | os.PathLike, dtype: str = "float32") -> tuple[Policy, Tokenizer]:
    """The policy in a folder; a language model becomes a policy whose values are 0. Raises: UserError."""
    model, tokenizer = _load(folder)
    if not isinstance(model, Policy):
        return Policy(copy_language_model(model, dtype)), tokenizer
    actor = copy_language_model(model.language_model, dtype)
    policy = Policy(actor, model.separate_critic, model.mlp_value_head)
    policy.set_weights(model.get_weights())
    return policy, tokenizer


def load_reward_model(folder: str | os.PathLike) -> tuple[RewardModel, Tokenizer]:
    """The reward model in a folder. Raises: UserError where there is none."""
    model, tokenizer = _load(folder, made_by="tfppo train-reward-model")
    if not isinstance(model, RewardModel):
        raise UserError(f"the model in {str(folder)!r} is a {type(model).__name__}; a RewardModel is needed")
    return model, tokenizer


def copy_language_model(model: LanguageModel, dtype: str) -> LanguageModel:
    """A copy with the same weights under another dtype policy."""
    copy = LanguageModel.from_config({**model.get_config(), "dtype": dtype})
    copy.set_weights(model.get_weights())
    return copy


def copy_policy(policy: Policy) -> Policy:
    """A copy with the same weights."""
    copy = Policy.from_config(policy.get_config())
    copy.set_weights(policy.get_weights())
    return copy
