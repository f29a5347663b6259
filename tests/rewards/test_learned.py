"""Reward models as reward functions: by token ids, of what reward functions see, and of the right tokenizer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from computations import build_collector

from tfppo.config import Config, PpoConfig, RewardConfig, SamplingConfig
from tfppo.data.prompts import Prompts
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.models.folder import load_reward_model, save_model
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.reward_model import RewardModel
from tfppo.models.transformer import Transformer
from tfppo.ppo.types import Samples
from tfppo.rewards.batch import Batch
from tfppo.rewards.learned import LearnedReward
from tfppo.rewards.likelihood import LikelihoodReward
from tfppo.rewards.loading import MODEL_REWARDS
from tfppo.stages.ppo import check_ppo, new_policy
from tfppo.stages.rewards import load_rewards

TOKENIZER = Tokenizer([])
OTHER_TOKENIZER = Tokenizer.train(["good good good"], 259)
SIZES = dict(vocabulary_size=258, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=64)
PROMPTS = Prompts(tf.constant([[0, 1, 40], [1, 41, 42], [1, 43, 44]]), tf.constant([[0, 1, 1], [1, 1, 1], [1, 1, 1]]))
# Bytes that are no text by themselves: decoded and encoded again, they would be other tokens.
RESPONSES = np.array([[130, 131, 1, 140], [132, 1, 141, 142], [133, 134, 135, 136]], np.int32)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = RewardModel(Transformer(**SIZES))
    model.set_weights([np.random.default_rng(0).normal(0.0, 0.5, w.shape) for w in model.get_weights()])
    return model


def score_alone(model, *rows):
    """The model's own score at the last of a row of real tokens, without any padding."""
    return np.array([model(tf.constant([row])).numpy()[0, -1] for row in rows])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_scores_are_those_of_the_tokens(model, jit_compile):
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], np.float32)
    batch = Batch([""] * 3, ["not looked at"] * 3, PROMPTS, RESPONSES, mask, TOKENIZER)
    reward = LearnedReward(model, jit_compile)
    expected = score_alone(model, [1, 40, 130, 131, 1], [1, 41, 42, 132, 1], [1, 43, 44, 133, 134, 135, 136])
    np.testing.assert_allclose(reward(batch), expected, rtol=1e-4, atol=1e-5)
    assert reward.name == "reward_model" and np.ptp(expected) > 0.1


@pytest.mark.parametrize(("truncate", "ends"), [(True, (3, 2, 4)), (False, (4, 4, 4))])
def test_truncation_at_eos_moves_the_score_to_the_first_eos(model, truncate, ends):
    language_model = LanguageModel(**SIZES)
    collector = build_collector(
        Policy(language_model),
        language_model,
        SamplingConfig(response_length=4, jit_compile=False),
        RewardConfig(truncate_at_eos=truncate),
        tokenizer=TOKENIZER,
        rewards=[LearnedReward(model, jit_compile=False)],
        strategy=tf.distribute.get_strategy(),
    )
    zeros = tf.zeros([3, 4])
    samples = Samples(tf.constant(RESPONSES), tf.ones([3, 4]), zeros, zeros, tf.fill([3], False))
    _, scores, means, _ = collector.score(PROMPTS, samples)
    prompts = ([1, 40], [1, 41, 42], [1, 43, 44])
    rows = [[*prompt, *row[:end]] for prompt, row, end in zip(prompts, RESPONSES.tolist(), ends, strict=True)]
    np.testing.assert_allclose(scores, score_alone(model, *rows), rtol=1e-4, atol=1e-5)
    assert means == {"reward/reward_model": pytest.approx(scores.mean())}


@pytest.fixture
def folder(model, tmp_path):
    """A workdir with a reward model, and others beside it."""
    save_model(model, TOKENIZER, tmp_path / "reward_model")
    save_model(RewardModel(Transformer(**{**SIZES, "vocabulary_size": 259})), OTHER_TOKENIZER, tmp_path / "other")
    save_model(RewardModel(Transformer(**{**SIZES, "max_sequence_length": 32})), TOKENIZER, tmp_path / "short")
    save_model(LanguageModel(**SIZES), TOKENIZER, tmp_path / "lm")
    return tmp_path


def test_by_name(folder):
    config = Config()
    for name in ("reward_model:", f"reward_model:{folder / 'reward_model'}"):
        config.reward.functions = (name, "likelihood:", "tfppo.rewards.vader:vader_sentiment")
        config.reward.weights = (1.0, 0.1, 1.0)
        check_ppo(config, folder)
        learned, likelihood, text = load_rewards(config, folder, TOKENIZER)
        assert isinstance(learned, LearnedReward) and isinstance(likelihood, LikelihoodReward)
        assert text.name == "vader_sentiment"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reward_model:{}/other", "'reward_model:.*other', but the model in .*other' has another tokenizer than the"),
        ("likelihood:{}/other_lm", "'likelihood:.*other_lm', but the model in .* has another tokenizer than the"),
        ("reward_model:{}/short", "sampling.response_length is 24: .* 33 positions, .*short' has 32; lower one"),
        ("reward_model:{}/lm", "is a LanguageModel; a RewardModel is needed"),
        ("likelihood:{}/reward_model", "is a RewardModel; a language model or a policy is needed"),
    ],
)
def test_a_model_that_does_not_fit(folder, name, message):
    save_model(LanguageModel(**{**SIZES, "vocabulary_size": 259}), OTHER_TOKENIZER, folder / "other_lm")
    config = Config(reward=RewardConfig(functions=(name.format(folder),)))
    with pytest.raises(UserError, match=message):
        load_rewards(config, folder, TOKENIZER)


def test_a_critic_does_not_start_from_a_model_of_another_tokenizer(folder):
    ppo = PpoConfig(critic="separate", critic_init=str(folder / "reward_model"))
    language_model = LanguageModel(**SIZES)
    policy = new_policy(ppo, 0, language_model, TOKENIZER)
    np.testing.assert_array_equal(policy.value_kernel, load_reward_model(ppo.critic_init)[0].head_kernel)
    with pytest.raises(UserError, match="ppo.critic_init is .*reward_model', but .* has another tokenizer than the"):
        new_policy(ppo, 0, language_model, OTHER_TOKENIZER)


@pytest.mark.parametrize(("name", "maker"), [("reward_model", "train-reward-model"), ("likelihood", "train-lm")])
def test_a_model_that_is_not_there_is_missed_before_anything_is_trained(tmp_path, name, maker):
    config = Config(reward=RewardConfig(functions=(f"{name}:{tmp_path / 'nothing'}",)))
    with pytest.raises(UserError, match=rf"there is no model in .*nothing' .*; train one with tfppo {maker}"):
        check_ppo(config, tmp_path)


def test_a_critics_reward_model_that_is_not_there_is_missed_before_anything_is_trained(tmp_path):
    config = Config(ppo=PpoConfig(critic="separate", critic_init=str(tmp_path / "nothing")))
    with pytest.raises(UserError, match=r"there is no model in .*nothing' .*; train one with tfppo train-reward-model"):
        check_ppo(config, tmp_path)


def test_a_language_model_that_is_named_must_be_there(tmp_path):
    config = Config(language_model=str(tmp_path / "nothing"), ppo=PpoConfig(trainable_blocks=99))
    with pytest.raises(UserError, match=r"there is no model in .*nothing' .*; train one with tfppo train-lm"):
        check_ppo(config, tmp_path)


def test_the_language_model_that_the_quickstart_will_train_may_still_be_missing(tmp_path):
    check_ppo(Config(reward=RewardConfig(functions=("likelihood:",))), tmp_path)
    assert set(MODEL_REWARDS) == {"likelihood", "reward_model"}
