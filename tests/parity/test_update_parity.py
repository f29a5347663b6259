"""Whole PPO updates of a linear policy, against the same in PyTorch float64: six steps over a rollout."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from computations import build_learner
from config_cases import ORIGINAL
from reference_numbers import assert_close, float32, load, mask_of

from tfppo.config import PpoConfig, RewardConfig
from tfppo.ppo.loss import STEP_STATISTICS
from tfppo.ppo.types import Rollout
from tfppo.training.replicas import make_strategy

NAMES = ("ziegler_2019", "ziegler_2019_by_minibatch", "trl", "clipped_gradients", "everything_in_the_loss")
SEED = np.array([1, 2], np.int32)


class StatesAreLogits:
    """A language model with nothing above its trunk."""

    def has_many_logits(self, hidden):
        return False

    def logits(self, hidden, arithmetic):
        return hidden


class LinearPolicy(keras.Model):
    """The state of a token is the token before it: logits = weights[state], value = values_of[state]."""

    def __init__(self, weights, values_of):
        super().__init__()
        self.rows = self.add_weight(shape=weights.shape, name="rows", initializer="zeros")
        self.values_of = self.add_weight(shape=values_of.shape, name="values_of", initializer="zeros")
        self.rows.assign(weights)
        self.values_of.assign(values_of)
        self.language_model = StatesAreLogits()
        self.built = True

    def product_weights(self):
        return []

    def critic_variables(self):
        return [self.values_of]

    def response_states(self, prompt_ids, prompt_mask, response_ids, response_mask, **computation):
        del prompt_mask, response_mask, computation  # there are no products, nothing is shared, and all are wanted
        states = tf.concat([prompt_ids[:, -1:], response_ids[:, :-1]], axis=1)
        return tf.gather(tf.convert_to_tensor(self.rows), states), tf.gather(
            tf.convert_to_tensor(self.values_of), states
        )


def make_config(setting, **changes):
    arguments = dict(
        total_episodes=8,
        rollout_batch_size=8,
        ppo_epochs=3,
        num_minibatches=2,
        learning_rate=0.05,
        gamma=setting["gamma"],
        gae_lambda=setting["gae_lambda"],
        whiten_scope=setting.get("whiten_scope", "rollout"),
        whiten_unbiased=setting.get("unbiased", False),
        clip_range_high=setting.get("clip_range_high"),
        dual_clip=setting.get("dual_clip"),
        loss_aggregation=setting.get("aggregation", "token_mean"),
        value_coef=setting["value_coef"],
        entropy_coef=setting.get("entropy_coef", 0.0),
        kl_coef=setting["kl_coef"],
        kl_loss_coef=setting.get("kl_loss_coef", 0.0),
        optimizer={"tensorflow": "adam", "torch": "adamw"}[setting["form"]],
        adam_epsilon=setting["epsilon"],
        weight_decay=setting.get("weight_decay", 0.0),
        max_grad_norm=setting.get("max_grad_norm", 0.0),
        jit_compile=False,
    )
    config = PpoConfig(**ORIGINAL | arguments | changes)
    config.validate()
    return config


def make_rollout(fixture, padding):
    mask, parts = mask_of(fixture["lengths"]), fixture["rollout"]
    states = mask_of(np.minimum(np.array(fixture["lengths"]) + 1, 6))
    logprobs, ref_logprobs = (np.where(mask > 0, float32(parts[n]), padding) for n in ("logprobs", "ref_logprobs"))
    return Rollout(
        prompt_ids=tf.constant(fixture["prompt_ids"]),
        prompt_mask=tf.ones([8, 2], tf.int32),
        response_ids=tf.constant(fixture["response_ids"]),
        response_mask=tf.constant(mask),
        logprobs=tf.constant(float32(logprobs)),
        values=tf.constant(float32(np.where(states > 0, parts["values"], padding))),
        ref_logprobs=tf.constant(float32(ref_logprobs)),
        scores=tf.constant(float32(parts["scores"])),
        stopped=tf.constant([size < 6 for size in fixture["lengths"]]),
    )


def run(name, padding=0.0, steps=None, **changes):
    """The way of the weights in an update over the fixture's minibatches (the first `steps`), and the statistics."""
    fixture = load("updates")[name]
    setting = fixture["setting"]
    start = [float32(fixture["weights"]), float32(fixture["values_of"])]
    if steps is not None:
        changes = dict(ppo_epochs=1, num_minibatches=1) | changes
    strategy = make_strategy(1)
    with strategy.scope():
        policy = LinearPolicy(*start)
    reward = RewardConfig(placement=setting["placement"], whiten=setting.get("whiten_rewards", False))
    learner = build_learner(
        policy, make_config(setting, **changes), reward, strategy, temperature=setting["temperature"]
    )
    minibatches = fixture["minibatches"][:steps]
    learner._minibatches = lambda seed: tf.constant(minibatches, tf.int32)
    statistics = learner.update(make_rollout(fixture, padding), SEED, tf.constant(setting["kl_coef"]))
    ways = [weights - origin for weights, origin in zip(policy.get_weights(), start, strict=True)]
    return ways, {key: float(value) for key, value in statistics.items()}


def expected_ways(name, key):
    fixture = load("updates")[name]
    return [np.subtract(fixture[key][0], fixture["weights"]), np.subtract(fixture[key][1], fixture["values_of"])]


# Six steps of Adam: the bias correction's cancellation (test_L12) in the first ones, and where the second moment is
# young the step is g / |g|, which passes on the relative error of small gradients.
UPDATE_TOLERANCE = 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_A7_a_whole_update(name):
    ways, statistics = run(name)
    for way, expected in zip(ways, expected_ways(name, "final_weights"), strict=True):
        assert_close(way, expected, rtol=UPDATE_TOLERANCE)
    expected = dict(zip((*STEP_STATISTICS, "policy/gradient_norm"), load("updates")[name]["statistics"], strict=True))
    assert 0 < expected["policy/clip_fraction"] < 1 and 0 < expected["value/clip_fraction"] < 1
    for key, value in expected.items():
        # In units of 1 where a loss is a small difference of gains and costs.
        assert abs(statistics[key] - value) <= UPDATE_TOLERANCE * max(abs(value), 1.0), key
    assert statistics["policy/steps_taken"] == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_the_first_step(name):
    ways, _ = run(name, steps=1)
    for way, expected in zip(ways, expected_ways(name, "first_weights"), strict=True):
        assert_close(way, expected, rtol=3e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("trl", dict(jit_compile=True)),
        ("clipped_gradients", dict(accumulation_steps=4)),
        ("everything_in_the_loss", dict(accumulation_steps=2)),  # L9, its means are over sequences
        ("trl", dict(padding=np.nan)),  # L10: what stands at the padding changes nothing
    ],
    ids=["xla", "accumulation_4", "accumulation_2", "nan_padding"],
)
def test_L9_L10_the_same_update_computed_otherwise(name, changes):
    ways, statistics = run(name, **changes)
    for way, expected in zip(ways, expected_ways(name, "final_weights"), strict=True):
        assert_close(way, expected, rtol=UPDATE_TOLERANCE)
    expected = dict(zip(STEP_STATISTICS, load("updates")[name]["statistics"], strict=False))
    for key in ("policy/approx_kl", "policy/clip_fraction", "policy/entropy", "value/clip_fraction"):
        assert abs(statistics[key] - expected[key]) <= UPDATE_TOLERANCE, key


def test_L8_every_epoch_has_a_permutation_of_its_own():
    strategy = make_strategy(1)
    with strategy.scope():
        policy = LinearPolicy(np.zeros([6, 6], np.float32), np.zeros([6], np.float32))
    learner = build_learner(policy, make_config(load("updates")["trl"]["setting"]), RewardConfig(), strategy)
    epochs = learner._minibatches(tf.constant(SEED)).numpy().reshape(3, 8)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(8), [3, 1]))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = learner._minibatches(tf.constant(SEED + 1)).numpy().reshape(3, 8)
    assert np.any(other != epochs)
