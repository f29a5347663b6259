"""PPO learns: from random weights to sequences of rising digits, by the real collector and learner."""

import keras
import pytest
import tensorflow as tf
from computations import build_collector, build_learner

from tfppo.config import PpoConfig, RewardConfig, SamplingConfig
from tfppo.data.prompts import Prompts
from tfppo.models.folder import copy_language_model
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops.seeds import seed_for
from tfppo.rewards.scoring import TextReward
from tfppo.training.replicas import make_strategy
from tfppo.training.schedules import scheduled_rate

LENGTH, BATCH_SIZE, ITERATIONS = 8, 256, 55


class DigitTokenizer:
    """Ids 2 to 11 are the ten digits; pad and the end of text have no text."""

    pad_id, eos_id, vocabulary_size = 0, 1, 12

    def decode(self, ids):
        return "".join(str(token - 2) for token in ids if token >= 2)

    def decode_batch(self, batch):
        return [self.decode(ids) for ids in batch.tolist()]

    def digest(self):
        return "digits"


def rising(prompts, responses):
    """Share of the digits after the first that are larger than the one before; at most 1."""
    return [sum(b > a for a, b in zip(text, text[1:], strict=False)) / (LENGTH - 1) for text in responses]


def test_reward_by_hand():
    assert rising([""] * 4, ["01234567", "76543210", "00112233", "0102030"]) == [1.0, 0.0, 3 / 7, 3 / 7]


def sevens(prompts, responses):
    """Share of sevens among the tokens."""
    return [text.count("7") / LENGTH for text in responses]


def learn(ppo, function, iterations, width):
    """Mean scores of the iterations of a policy that starts from random weights."""
    keras.utils.set_random_seed(0)
    ppo.total_episodes = ppo.rollout_batch_size * iterations
    ppo.jit_compile = False
    ppo.validate()
    strategy = make_strategy(1)
    with strategy.scope():
        ref_model = LanguageModel(DigitTokenizer.vocabulary_size, 2, 2, width, 2 * width, 1 + LENGTH)
        policy = Policy(copy_language_model(ref_model, "float32"), ppo.critic == "separate")
    reward, sampling = RewardConfig(), SamplingConfig(response_length=LENGTH, jit_compile=False)
    rewards = [TextReward(function.__name__, function)]
    collector = build_collector(
        policy, ref_model, sampling, reward, tokenizer=DigitTokenizer(), rewards=rewards, strategy=strategy
    )
    learner = build_learner(policy, ppo, reward, strategy)
    prompts = Prompts(tf.fill([ppo.rollout_batch_size, 1], 1), tf.ones([ppo.rollout_batch_size, 1], tf.int32))
    scores = []
    for step in range(iterations):
        rate = scheduled_rate(step, iterations, peak=ppo.learning_rate, schedule=ppo.schedule)
        learner.optimizer.learning_rate.assign(rate)
        collected = collector.collect(prompts, seed_for(0, "sample", step))
        scores.append(collected.raw_scores.mean())
        learner.update(collected.rollout, seed_for(0, "shuffle", step), tf.constant(ppo.kl_coef), tf.constant(1.0))
    return scores


def test_ppo_learns_to_count_up():
    ppo = PpoConfig(
        rollout_batch_size=BATCH_SIZE,
        ppo_epochs=4,
        num_minibatches=2,
        gae_lambda=1.0,
        critic="shared",
        optimizer="adam",
        adam_epsilon=1e-5,
        learning_rate=5e-3,
        value_coef=0.5,
        entropy_coef=0.15,  # less of it, and a policy settles on texts that start too high to rise to the end
        kl_coef=0.0,
    )
    scores = learn(ppo, rising, ITERATIONS, width=32)
    assert 0.3 < scores[0] < 0.5  # two random digits rise with probability .45, and some tokens are no digit
    assert scores[-1] >= 0.95, scores


@pytest.mark.parametrize(("estimator", "iterations"), [("gae", 25), ("grpo", 40)])
def test_the_defaults_learn(estimator, iterations):
    scores = learn(PpoConfig(estimator=estimator), sevens, iterations, width=64)
    assert 0.05 < scores[0] < 0.15  # one of eleven tokens
    assert scores[-1] >= 0.8, scores
