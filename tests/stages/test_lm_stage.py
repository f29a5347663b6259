"""What an experiment makes is a function of its configuration, whatever else draws random numbers meanwhile."""

import random

import numpy as np
import pytest
import tensorflow as tf
from binaries import write_texts

from tfppo.config import Config, LmConfig, ModelConfig
from tfppo.data.chat import BUILT_IN, ChatTemplate
from tfppo.errors import UserError
from tfppo.models.folder import load_chat_template, load_language_model
from tfppo.stages import language_model as stage
from tfppo.stages.generate import _written
from tfppo.stages.workdir import open_run


def drawing(load):
    """Reads texts as a dataset that has to be prepared first is read: numbers are drawn for it."""

    def load_and_draw(*arguments):
        random.random(), np.random.rand(), tf.random.uniform([1])
        return load(*arguments)

    return load_and_draw


def tiny_config(source):
    config = Config(
        model=ModelConfig(num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, vocabulary_size=300),
        lm=LmConfig(num_steps=2, warmup_steps=1, eval_every=1, batch_size=8),
    )
    config.data.source = source
    return config


def test_weights_do_not_depend_on_what_preparing_the_data_draws(tmp_path, monkeypatch):
    source = write_texts(tmp_path / "texts.txt").removeprefix("data.source=")
    weights = []
    for number, load in enumerate((stage.load_texts, drawing(stage.load_texts))):
        monkeypatch.setattr(stage, "load_texts", load)
        config = tiny_config(source)
        stage.train_language_model(config, *open_run(config, tmp_path / str(number)))
        weights.append(load_language_model(tmp_path / str(number) / "lm")[0].get_weights())
    for found, expected in zip(*weights, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_nothing_of_a_diverged_training_is_kept(tmp_path):
    config = tiny_config(write_texts(tmp_path / "texts.txt").removeprefix("data.source="))
    config.lm.learning_rate, config.lm.max_grad_norm, config.lm.eval_every = 1e30, 0.0, 2
    with pytest.raises(UserError, match="not finite"):
        stage.train_language_model(config, *open_run(config, tmp_path / "run"))
    for name in ("lm", "lm_checkpoints", "config.json"):
        assert not (tmp_path / "run" / name).exists()


def test_the_template_of_chats_goes_on_with_the_model(tmp_path, capsys):
    rows = "".join(f"Say {n} twice.,{n} {n}\n" for n in range(40))
    (tmp_path / "alpaca.csv").write_text("instruction,output\n" + rows)
    hh = ChatTemplate("hh", BUILT_IN["hh"])
    first = tiny_config(str(tmp_path / "alpaca.csv"))
    first.data.chat_template = "hh"
    stage.train_language_model(first, *open_run(first, tmp_path / "first"))
    assert load_chat_template(tmp_path / "first" / "lm") == hh
    second = tiny_config(first.data.source)  # which names no template
    second.language_model = str(tmp_path / "first" / "lm")
    stage.train_language_model(second, *open_run(second, tmp_path / "second"))
    tokenizer = load_language_model(tmp_path / "second" / "lm")[1]
    assert tokenizer.chat_template == hh
    assert _written(second, tokenizer, ["Say 3."]) == ["\n\nHuman: Say 3.\n\nAssistant:"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("data:")]
    assert len(lines) == 1 and lines[0].endswith(
        "40 records; prompt from 'instruction'; response from 'output'; chat template hh"
    )
