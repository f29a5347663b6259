"""The stage that trains a reward model on comparisons."""

from pathlib import Path

import tensorflow as tf

from tfppo.config import Config
from tfppo.config.resuming import NORMALIZATIONS, REWARD_MODEL, changes
from tfppo.config.validation import validate_positions
from tfppo.data.chat import choose_template
from tfppo.data.preferences import encode_preferences, load_preferences
from tfppo.models.folder import load_chat_template, load_language_model, read_about, save_model
from tfppo.models.reward_model import RewardModel
from tfppo.reward_model.normalization import normalize
from tfppo.reward_model.trainer import RewardTrainer
from tfppo.stages.engines import engines_that_sample
from tfppo.stages.history import SettingsHistory, write_settings
from tfppo.stages.workdir import language_model_folder
from tfppo.training.seeding import set_keras_seed
from tfppo.training.workers import workers_of


def train_reward_model(config: Config, folder: Path, strategy: tf.distribute.Strategy) -> None:
    """Trains a reward model, from the language model; WORKDIR/reward_model holds it afterwards, normalised."""
    workers_of(strategy).barrier()  # what the chief has written is there
    config = config.with_ends()
    settings = config.reward_model
    history = SettingsHistory(config, folder, REWARD_MODEL)
    model_folder = language_model_folder(config, folder)
    template = choose_template(config.data.chat_template, load_chat_template(model_folder))
    preferences = load_preferences(settings.source, template)
    language_model, tokenizer = load_language_model(model_folder)
    responses = ["reward_model.max_response_tokens"]
    responses += ["sampling.response_length"] if settings.normalize == "samples" else []
    for response in responses:
        validate_positions(
            config,
            language_model.max_sequence_length,
            folder=model_folder,
            prompt="reward_model.max_prompt_tokens",
            response=response,
        )
    train, validation = (
        encode_preferences(preferences[split], tokenizer, settings) for split in ("train", "validation")
    )
    set_keras_seed(config.seed, "reward_model")
    with strategy.scope():
        model = RewardModel.from_language_model(language_model)
    trainer = RewardTrainer(settings, config.seed, model, tokenizer, train, validation, strategy, folder)
    history.resume(trainer.keeper, trainer.done, left=trainer.done < trainer.num_steps)
    trainer.train(config.profile_steps)
    engines = engines_that_sample(config.sampling, language_model) if settings.normalize == "samples" else ()
    say_anew(config, folder)
    normalize(model, language_model, train, tokenizer, config, engines)
    save_model(model, tokenizer, folder / "reward_model", about=normalization_settings(config))
    write_settings(folder, normalization_settings(config))


def normalization_settings(config: Config) -> dict[str, object]:
    """The settings {section.field: value} that the normalisation depends on. They are kept with the model."""
    return NORMALIZATIONS[config.reward_model.normalize].settings(config)


def say_anew(config: Config, folder: Path) -> None:
    """Says what differs from the settings that the run's reward model was normalised with, if there is one."""
    for change in changes(Config, read_about(folder / "reward_model"), normalization_settings(config)):
        print(f"{change}: the reward model is normalised anew", flush=True)
