"""The stage that trains a tokenizer and a language model."""

import dataclasses
from pathlib import Path

import keras
import tensorflow as tf

from tfppo.computation.devices import has_fast_bfloat16
from tfppo.config import Config
from tfppo.config.resuming import LANGUAGE_MODEL
from tfppo.data.tokenizer import Tokenizer
from tfppo.lm.trainer import LmTrainer
from tfppo.models.folder import load_chat_template, load_language_model
from tfppo.models.language_model import LanguageModel
from tfppo.stages.history import SettingsHistory
from tfppo.stages.texts import check_responses, load_packed, load_texts, template_of
from tfppo.training.workers import SHARED, workers_of


def train_language_model(config: Config, folder: Path, strategy: tf.distribute.Strategy) -> None:
    """Trains on the texts; WORKDIR/lm holds the best language model afterwards.

    Where the configuration names a language model, that one is trained on, with its tokenizer and its sizes.
    """
    workers = workers_of(strategy)
    workers.barrier()  # what the chief has written is there
    history = SettingsHistory(config, folder, LANGUAGE_MODEL)
    with strategy.scope():
        model, tokenizer = _start(config, workers)
    length = model.max_sequence_length
    train, _ = load_packed(config.data, "train", tokenizer, length)
    validation, num_words = load_packed(config.data, "validation", tokenizer, length)
    trainer = LmTrainer(config.lm, config.seed, model, tokenizer, train, validation, num_words, strategy, folder)
    history.resume(trainer.keeper, trainer.done, left=not trainer.has_ended())
    trainer.train(config.profile_steps)


def _start(config, workers):
    """The model to train, and its tokenizer with the chat template of its texts, if they are chats."""
    kept = load_chat_template(config.language_model) if config.language_model else None
    examples = load_texts(config.data, "train", kept)
    check_responses(config.data, examples)
    dtype = config.lm.dtype
    if dtype == "auto":
        dtype = "mixed_bfloat16" if has_fast_bfloat16() else "float32"
    if config.language_model:
        model, tokenizer = load_language_model(config.language_model, dtype)
        tokenizer.chat_template = template_of(config.data, examples, kept)
        return model, tokenizer
    texts = [f"{example.prompt or ''}{example.text}" for example in examples]
    tokenizer = Tokenizer.train(texts, config.model.vocabulary_size)
    workers.agree("the tokenizer of the texts", tokenizer.digest(), SHARED)  # before weights are, of its size
    tokenizer.chat_template = template_of(config.data, examples, None)
    sizes = {**dataclasses.asdict(config.model), "vocabulary_size": tokenizer.vocabulary_size}
    keras.utils.set_random_seed(config.seed)  # preparing a dataset draws numbers too, the first time
    return LanguageModel(**sizes, pad_id=tokenizer.pad_id, dtype=dtype), tokenizer
