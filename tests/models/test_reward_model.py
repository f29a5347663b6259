"""The reward model, and the critic that starts from one."""

import numpy as np
import pytest
import tensorflow as tf

from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.models.folder import load_language_model, load_reward_model, save_model
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.reward_model import RewardModel
from tfppo.models.transformer import Transformer

TOKENIZER = Tokenizer.train(["a good film", "a bad film"], 258)
SIZES = dict(vocabulary_size=258, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=16)


@pytest.fixture(scope="module")
def reward_model():
    model = RewardModel(Transformer(**SIZES))
    model.head_bias.assign([0.5])
    return model


def test_a_critic_copied_from_it_values_every_state_at_its_score(reward_model):
    policy = Policy(LanguageModel(**SIZES), separate_critic=True)
    policy.copy_critic(reward_model)
    ids = tf.constant([[0, 1, 40, 41, 42], [1, 50, 51, 52, 53]])
    mask = tf.constant([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    scores = reward_model(ids, mask).numpy()
    assert np.ptp(scores) > 0.1
    np.testing.assert_array_equal(policy(ids, mask)[1].numpy(), scores)


def test_a_critic_of_other_sizes_is_refused(reward_model):
    policy = Policy(LanguageModel(**{**SIZES, "hidden_dim": 32}), separate_critic=True)
    with pytest.raises(UserError, match=r"ppo.critic_init .* hidden_dim 16, but the policy has 32"):
        policy.copy_critic(reward_model)


def test_save_and_load(reward_model, tmp_path):
    save_model(reward_model, TOKENIZER, tmp_path / "rm")
    loaded, _ = load_reward_model(tmp_path / "rm")
    ids = tf.constant([[1, 60, 61]])
    np.testing.assert_array_equal(loaded(ids).numpy(), reward_model(ids).numpy())
    with pytest.raises(UserError, match="a language model or a policy is needed"):
        load_language_model(tmp_path / "rm")


def test_a_language_model_is_no_reward_model(tmp_path):
    save_model(LanguageModel(**SIZES), TOKENIZER, tmp_path / "lm")
    with pytest.raises(UserError, match="is a LanguageModel; a RewardModel is needed"):
        load_reward_model(tmp_path / "lm")
