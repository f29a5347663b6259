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

from tfppo.config import Config
from tfppo.files import user_path
from tfppo.training.replicas import make_strategy
from tfppo.training.run_folder import open_folder


def open_run(config: Config, workdir: Path | str) -> tuple[Path, tf.distribute.Strategy]:
    """The run's folder, made where it is missing, and the strategy over its devices; global generators are seeded.

    Raises: UserError where the configuration cannot work, the folder cannot be written, or devices are missing.
    """
    config.validate()
    folder, strategy = open_folder(workdir), make_strategy(config.num_replicas)
    keras.utils.set_random_seed(config.seed)
    return folder, strategy


def language_model_folder(config: Config, folder: Path) -> Path:
    """The folder of the model that PPO and a reward model start from; it also is PPO's reference."""
    return user_path(config.language_model) if config.language_model else folder / "lm"


def model_folder(folder: Path, name: Path | str | None) -> Path:
    """The model that a user names: a folder, or the name of one in WORKDIR; WORKDIR/policy where none is named."""
    if name is None:
        return folder / "policy"
    named = user_path(name)
    return named if named.exists() or not (folder / named).exists() else folder / named
