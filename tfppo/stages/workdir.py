"""The folder of a run, and the devices that it runs on.

WORKDIR/
    config.json          the settings that were trained with last
    config_history.jsonl the same for each stage, from its start, with all that was changed since
    lm/                  the best language model with its tokenizer
    reward_model/        the reward model, normalised, with its tokenizer
    policy/              the policy that PPO made, with the tokenizer; policy_average/ its moving average
    policy_best/         the policy that was the best on held-out prompts in between; its about.json says when
    checkpoints/         of PPO; lm_checkpoints/ of the language model, reward_checkpoints/ of the reward model
    ppo.jsonl, ppo/      metrics of PPO, and the same for TensorBoard; likewise lm_training, reward_training
    ppo_evaluation       likewise, of held-out prompts during PPO
    evaluation.json      the last evaluation, and its tables in samples.md; evaluation/ for TensorBoard
    reward_over_kl.png   the picture of the PPO run; ppo/picture/ for TensorBoard
    export/1, 2, ...     SavedModels
    run.lock             who trains there: held by that process, whatever the file says
"""

from pathlib import Path

import keras
import tensorflow as tf

from tfppo import __version__
from tfppo.config import Config
from tfppo.errors import UserError
from tfppo.files import user_path
from tfppo.models.folder import model_exists
from tfppo.training.replicas import make_strategy
from tfppo.training.run_folder import LOCK_FILE, open_folder
from tfppo.training.workers import workers_of

# The models of a run that can be named, and what makes each of them.
_MADE_BY = {
    "lm": "tfppo train-lm makes it",
    "policy": "tfppo train-ppo makes it",
    "policy_best": "tfppo train-ppo keeps it where evaluation.every is above 0 and the data has held-out prompts",
    "policy_average": "tfppo train-ppo keeps it where ppo.ema_decay is set",
}


def open_run(config: Config, workdir: Path | str) -> tuple[Path, tf.distribute.Strategy]:
    """The run's folder, made where it is missing, and the strategy over its devices; global generators are seeded.

    Raises: UserError where the configuration cannot work, the folder cannot be written, or devices are missing.
    """
    config.validate()
    folder = open_folder(workdir)
    strategy = make_strategy(config.num_replicas, config.cross_device_ops, config.tensorfloat32)
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    _agree(config, folder, workers_of(strategy))
    return folder, strategy


def _agree(config, folder, workers):
    """Raises UserError where the workers are not of one run."""
    workers.agree("the configuration", config.to_json(), "start all workers with the same command")
    workers.agree("the version", f"{__version__} {tf.__version__}", "install the same on all machines")
    shared = f"put --workdir {str(folder)!r} on a file system that all machines share"
    workers.agree("the folder of the run", _owner(folder), shared)


def _owner(folder):
    """What is in the lock file: at all workers what the chief has written, if they see the same folder."""
    path = folder / LOCK_FILE
    return path.read_text() if path.exists() else ""


def language_model_folder(config: Config, folder: Path) -> Path:
    """The folder of the model that PPO and a reward model start from; it also is PPO's reference."""
    return user_path(config.language_model) if config.language_model else folder / "lm"


def model_folder(folder: Path, name: Path | str | None) -> Path:
    """The model that a user names: a folder, or the name of one in WORKDIR; WORKDIR/policy where none is named.

    Raises: UserError where there is no model, with what would make it and the models that there are.
    """
    named = user_path("policy" if name is None else name)
    for path in (folder / named,) if name is None else (named, folder / named):
        if model_exists(path):
            return path
    path = named if len(named.parts) > 1 else folder / named
    made_by = _MADE_BY.get(path.name) if path.parent == folder else None
    there = [one for one in _MADE_BY if model_exists(folder / one)]
    raise UserError(
        f"there is no model in {str(path)!r} (model.keras is missing){f': {made_by}' * bool(made_by)}; "
        f"the models in {str(folder)!r}: {', '.join(there) or 'none'}"
    )
