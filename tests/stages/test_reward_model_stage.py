"""A reward model is normalised after each training, and other settings of that are said."""

from types import SimpleNamespace

import numpy as np
import pytest
from config_cases import configured

from tfppo.stages import reward_model

STUBBED = [
    "choose_template",
    "load_chat_template",
    "load_preferences",
    "validate_positions",
    "RewardModel",
    "engines_that_sample",
    "set_keras_seed",
    "normalize",
]


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """A function that is the stage without its models, of a finished run; it returns what was said."""
    for name in STUBBED:
        monkeypatch.setattr(reward_model, name, lambda *values, **named: SimpleNamespace())
    trainer = SimpleNamespace(keeper=SimpleNamespace(scalars={}), done=3, num_steps=3, train=lambda profile_steps: None)
    model = SimpleNamespace(max_sequence_length=64, weights=[])
    tokenizer = SimpleNamespace(save=lambda folder: folder.mkdir())
    saved = SimpleNamespace(save=lambda path: path.touch(), weights=[], variables=[np.zeros(1)])
    monkeypatch.setattr(reward_model, "load_language_model", lambda folder: (model, tokenizer))
    monkeypatch.setattr(reward_model, "load_preferences", lambda *values: {"train": [], "validation": []})
    monkeypatch.setattr(reward_model, "encode_preferences", lambda *values: [])
    monkeypatch.setattr(reward_model, "RewardModel", SimpleNamespace(from_language_model=lambda model: saved))
    monkeypatch.setattr(reward_model, "RewardTrainer", lambda *values: trainer)
    monkeypatch.setattr("tfppo.models.folder.require_finite", lambda *values: None)
    strategy = SimpleNamespace(scope=lambda: pytest.MonkeyPatch.context())

    def function(**settings):
        reward_model.train_reward_model(configured(**settings), tmp_path, strategy)
        return capsys.readouterr().out

    return function


def test_another_normalisation_is_taken_and_said(train):
    assert train(reward_model__normalize="demonstrations") == ""
    assert train(reward_model__normalize="demonstrations", sampling__temperature=0.5) == ""  # which it does not use
    line = "reward_model.normalize demonstrations -> samples: the reward model is normalised anew\n"
    assert train(reward_model__normalize="samples") == line
    assert train(reward_model__normalize="samples") == ""
    line = "sampling.temperature 1.0 -> 0.5: the reward model is normalised anew\n"
    assert train(reward_model__normalize="samples", sampling__temperature=0.5) == line
