"""Evaluation goes through the held-out prompts in batches, each with a seed of its own."""

import numpy as np
import tensorflow as tf

from tfppo.config import RewardConfig, SamplingConfig
from tfppo.data.prompts import PromptSet
from tfppo.data.tokenizer import Tokenizer
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ppo import evaluation
from tfppo.ppo.types import Samples
from tfppo.rewards.scoring import TextReward


def test_every_batch_is_drawn_by_a_seed_of_its_own(monkeypatch):
    """Five prompts in batches of two; the scores are 0, 1, 2, 3, 4 in their order."""
    seeds, scored = [], []

    class Recorder:
        def __init__(self, *_, **__):
            pass

        def __call__(self, prompts, seed):
            seeds.append(tuple(seed))
            ids = tf.fill([2, 3], 5)
            return Samples(ids, tf.ones([2, 3]), tf.zeros([2, 3]), tf.zeros([2, 3]), tf.fill([2], False))

    def count(prompts, responses):
        scored.extend(responses)
        return [float(number) for number in range(len(scored) - len(responses), len(scored))]

    monkeypatch.setattr(evaluation, "Sampler", Recorder)
    model = LanguageModel(40, 1, 2, 8, 16, 8)
    result = evaluation.evaluate(
        Policy(model),
        model,
        PromptSet([([1, 2 + n], []) for n in range(5)], 0, 4, seed=0),
        SamplingConfig(response_length=3),
        engines=(),
        tokenizer=Tokenizer([]),
        rewards=[TextReward("count", count)],
        reward=RewardConfig(),
        strategy=tf.distribute.get_strategy(),
        seed=0,
        batch_size=2,
    )
    assert len(set(seeds)) == len(seeds) == 3
    np.testing.assert_array_equal(result.scores, [0.0, 1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(result.figures["reward"], 2.0)
    np.testing.assert_allclose(result.figures["reward_standard_error"], (2.5 / 5) ** 0.5)
    np.testing.assert_allclose(result.figures["kl"], 0.0, atol=1e-6)
