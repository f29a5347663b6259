"""What an experiment makes is a function of its configuration, whatever else draws random numbers meanwhile."""

import random

import numpy as np
import tensorflow as tf
from binaries import write_texts

from tfppo.config import Config, LmConfig, ModelConfig
from tfppo.models.folder import load_language_model
from tfppo.stages import language_model as stage
from tfppo.stages.workdir import open_run


def drawing(load):
    """Reads texts as a dataset that has to be prepared first is read: numbers are drawn for it."""

    def load_and_draw(*arguments):
        random.random(), np.random.rand(), tf.random.uniform([1])
        return load(*arguments)

    return load_and_draw


def test_weights_do_not_depend_on_what_preparing_the_data_draws(tmp_path, monkeypatch):
    source = write_texts(tmp_path / "texts.txt").removeprefix("data.source=")
    weights = []
    for number, load in enumerate((stage.load_texts, drawing(stage.load_texts))):
        monkeypatch.setattr(stage, "load_texts", load)
        config = Config(
            model=ModelConfig(num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, vocabulary_size=300),
            lm=LmConfig(num_steps=2, warmup_steps=1, eval_every=1, batch_size=8),
        )
        config.data.source = source
        stage.train_language_model(config, *open_run(config, tmp_path / str(number)))
        weights.append(load_language_model(tmp_path / str(number) / "lm")[0].get_weights())
    for found, expected in zip(*weights, strict=True):
        np.testing.assert_array_equal(found, expected)
