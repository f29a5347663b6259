"""The folder of a run, and the devices that it runs on.

WORKDIR/
    config.json          the validated configuration of the last training command
    lm/                  the best language model with its tokenizer
    reward_model/        the reward model, normalised, with its tokenizer
    policy/              the policy that PPO made, with the tokenizer; policy_average/ its moving average
    checkpoints/         of PPO; lm_checkpoints/ of the language model, reward_checkpoints/ of the reward model
    ppo.jsonl, ppo/      metrics of PPO, and the same for TensorBoard; likewise lm_training, reward_training
    evaluation.json      the last evaluation
    reward_over_kl.png   the picture of the PPO run
    export/1, 2, ...     SavedModels
    run.lock             who trains there: held by that process, whatever the file says
"""

from pathlib import Path

import keras
import tensorflow as tf

from tfppo.config import Config
from tfppo.files import told, write_text
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


def write_config(config: Config, folder: Path) -> None:
    """Keeps the configuration of a training run as WORKDIR/config.json."""
    with told(f"{str(folder / 'config.json')!r}", "the one before is intact"):
        write_text(folder / "config.json", config.to_json())


def language_model_folder(config: Config, folder: Path) -> Path:
    """The folder of the model that PPO and a reward model start from; it also is PPO's reference."""
    return Path(config.language_model) if config.language_model else folder / "lm"
