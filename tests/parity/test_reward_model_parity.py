"""Reward models: the rows L16, L17, R14 and R15 of the literature, against numbers by hand and NumPy in float64."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from computations import engines_of
from reference_numbers import assert_close, float32

from tfppo.config import Config, RewardModelConfig
from tfppo.data.preferences import Comparisons
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.models.language_model import LanguageModel
from tfppo.models.reward_model import RewardModel
from tfppo.ops.losses import preference_loss
from tfppo.reward_model.normalization import gain_and_bias, normalize, sample_responses
from tfppo.reward_model.trainer import RewardTrainer
from tfppo.training.replicas import make_strategy

SIZES = dict(num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=24)
PAD, EOS = 0, 1


def make_language_model():
    rng = np.random.default_rng(0)
    model = LanguageModel(258, **SIZES)
    model.set_weights([w + rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
    return model


def loss_and_gradient(scores):
    scores = tf.constant(float32(scores))
    with tf.GradientTape() as tape:
        tape.watch(scores)
        loss = preference_loss(scores)
    return loss.numpy(), tape.gradient(loss, scores).numpy()


def test_L16_best_of_4_is_a_softmax_cross_entropy():
    loss, gradient = loss_and_gradient([[0.0] * 4, [np.log(3.0), 0, 0, 0]])
    assert_close(loss, [np.log(4), np.log(2)])  # 1/4 and 3/6 of the softmax
    assert_close(gradient, [[-3 / 4, 1 / 4, 1 / 4, 1 / 4], [-1 / 2, 1 / 6, 1 / 6, 1 / 6]])


def test_L16_against_float64():
    scores = np.random.default_rng(0).normal(0, 4, [64, 4])
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    loss, gradient = loss_and_gradient(scores)
    assert_close(loss, -np.log(shares[:, 0]))
    assert_close(gradient, shares - [1, 0, 0, 0])


def test_L16_defaults_of_ziegler_2019(tmp_path):
    """Learning rate 5e-5, linear to 0, one epoch of batches of 32, Adam with epsilon 1e-5 in TensorFlow's form."""
    config = RewardModelConfig()
    assert (config.learning_rate, config.num_epochs, config.batch_size) == (5e-5, 1, 32)
    assert (config.adam_epsilon, config.max_grad_norm) == (1e-5, 0.0)
    assert (config.normalize, config.normalize_samples) == ("samples", 256)
    data = Comparisons(
        np.ones([128, 1], np.int32),
        np.ones([128, 1], np.int32),
        np.ones([128, 4, 1], np.int32),
        np.ones([128, 4, 1], np.float32),
    )
    strategy = make_strategy(1)
    with strategy.scope():
        model = RewardModel.from_language_model(make_language_model())
    trainer = RewardTrainer(config, 0, model, Tokenizer([]), data, data, strategy, tmp_path)
    rates = [trainer.learning_rate(step) for step in range(trainer.num_steps)]
    assert rates == pytest.approx([5e-5, 3.75e-5, 2.5e-5, 1.25e-5])
    assert type(trainer.optimizer).__mro__[2] is keras.optimizers.Adam
    assert (trainer.optimizer.epsilon, trainer.optimizer.beta_1, trainer.optimizer.beta_2) == (1e-5, 0.9, 0.999)


@pytest.mark.parametrize(
    ("chosen", "rejected", "loss", "slope"),
    [
        (1.0, 0.0, 0.3132617, 0.2689414),  # log(1 + e^-1), 1 / (1 + e)
        (0.0, 1.0, 1.3132617, 0.7310586),
        (2.5, 2.5, 0.6931472, 0.5),
        (3.0, -3.0, 0.0024756851, 0.0024726232),
        (20.0, 0.0, 2.0611536e-9, 2.0611536e-9),  # where 1 + e^-20 is 1 in float32
        (-500.0, 500.0, 1000.0, 1.0),  # where e^1000 is not a number any more
    ],
)
def test_L17_pairwise_loss_is_minus_log_sigmoid(chosen, rejected, loss, slope):
    found, gradient = loss_and_gradient([[chosen, rejected]])
    np.testing.assert_allclose(found, [loss], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-slope, slope]], rtol=1e-6)


def test_L17_the_score_is_read_after_the_last_token_and_nowhere_else():
    model = RewardModel.from_language_model(make_language_model())
    model.head_bias.assign([0.25])
    rng = np.random.default_rng(1)
    prompts, lengths = [3, 1, 5, 2], [4, 1, 2, 0]
    prompt_ids, prompt_mask = np.full([4, 5], PAD, np.int32), np.zeros([4, 5], np.int32)
    response_ids, response_mask = np.full([4, 6], PAD, np.int32), np.zeros([4, 6], np.float32)
    expected = []
    for row, (before, after) in enumerate(zip(prompts, lengths, strict=True)):
        tokens = rng.integers(2, 258, before + after)
        tokens[-1] = EOS if after else tokens[-1]
        prompt_ids[row, 5 - before :], prompt_mask[row, 5 - before :] = tokens[:before], 1
        response_ids[row, :after], response_mask[row, :after] = tokens[before:], 1.0
        expected.append(model(tokens[None]).numpy()[0, -1])  # of the unpadded text
    found = model.response_scores(prompt_ids, prompt_mask, response_ids, response_mask)
    assert_close(found, expected, rtol=1e-5)
    assert np.ptp(expected) > 0.1
    # The last token itself counts, and what stands in the padding does not.
    changed = np.where(response_mask > 0, response_ids, 77)
    assert_close(model.response_scores(prompt_ids, prompt_mask, changed, response_mask), expected, rtol=1e-5)
    changed = response_ids.copy()
    changed[0, 3] = 99
    assert abs(model.response_scores(prompt_ids, prompt_mask, changed, response_mask)[0] - expected[0]) > 1e-3


def test_R14_gain_and_bias_by_hand():
    """g = sigma_T / sigma_D and b = mu_T - g mu_D, for a target of mean 0 and deviation 1."""
    assert gain_and_bias([1.0, 3.0, 5.0, 7.0], keep_gain=False) == pytest.approx((5**-0.5, -4 * 5**-0.5))
    assert gain_and_bias([1.0, 3.0, 5.0, 7.0], keep_gain=True) == (1.0, -4.0)


@pytest.fixture
def setting():
    """A language model, a reward model on it whose scores lie elsewhere, comparisons and their configuration."""
    language_model = make_language_model()
    keras.utils.set_random_seed(0)
    model = RewardModel.from_language_model(language_model)
    model.head_bias.assign([3.0])
    model.head_kernel.assign(5.0 * model.head_kernel)
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 8, [40, 2])
    train = Comparisons(
        np.concatenate([np.full([40, 1], EOS), rng.integers(2, 258, [40, 3])], axis=1).astype(np.int32),
        np.ones([40, 4], np.int32),
        rng.integers(2, 258, [40, 2, 8]).astype(np.int32),
        (np.arange(8) < lengths[:, :, None]).astype(np.float32),
    )
    config = Config(reward_model=RewardModelConfig(batch_size=24))
    config.sampling = dataclasses.replace(config.sampling, response_length=8, jit_compile=False)
    return language_model, model, train, config


def scores_one_by_one(model, texts: Comparisons):
    """The score after the last real token of each first response, a text at a time and unpadded: float64 [N]."""
    scores = []
    for prompt, there, response, mask in zip(*texts, strict=True):
        row = [*prompt[there > 0], *response[0][mask[0] > 0]]
        scores.append(model(tf.constant([row])).numpy()[0, -1])
    return np.array(scores, np.float64)


def scores_at_the_end(model, texts: Comparisons):
    """As `scores_one_by_one`, of texts without padding."""
    assert texts.prompt_mask.all() and texts.response_mask.all()
    rows = np.concatenate([texts.prompt_ids, texts.response_ids[:, 0]], axis=1)
    return model(tf.constant(rows)).numpy()[:, -1].astype(np.float64)


def test_R14_scores_of_samples_get_mean_0_and_deviation_1(setting):
    language_model, model, train, config = setting
    tokenizer = Tokenizer([])
    samples = sample_responses(language_model, train, tokenizer, config, engines_of(config))
    assert samples.response_ids.shape == (256, 1, 8)
    before, kernel, bias = scores_at_the_end(model, samples), *(w.numpy() for w in (model.head_kernel, model.head_bias))
    assert abs(before.mean()) > 1 and abs(before.std() - 1) > 0.5
    normalize(model, language_model, train, tokenizer, config, engines_of(config))
    after = scores_at_the_end(model, samples)
    assert abs(after.mean()) < 1e-5 and abs(after.std() - 1) < 1e-5
    gain = 1 / before.std()
    assert_close(after, gain * before - gain * before.mean(), rtol=1e-5)  # one affine map of every score,
    assert_close(model.head_kernel, gain * kernel)  # folded into the head
    assert_close(model.head_bias, gain * bias - gain * before.mean(), rtol=1e-5)
    # Other samples of the same model, 1,024 of them: within four standard errors of the 256.
    config.seed, config.reward_model.normalize_samples = 1, 1024
    others = scores_at_the_end(model, sample_responses(language_model, train, tokenizer, config, engines_of(config)))
    assert abs(others.mean()) < 0.25 and abs(others.std() - 1) < 0.25


@pytest.mark.parametrize("kind", ["samples", "demonstrations"])
def test_scores_that_are_not_finite_normalise_nothing(setting, kind):
    language_model, model, train, config = setting
    config.reward_model.normalize = kind
    model.head_bias.assign([np.nan])
    with pytest.raises(UserError, match=f"reward_model.normalize is '{kind}', but .* not finite"):
        normalize(model, language_model, train, Tokenizer([]), config, engines_of(config))


def test_R15_scores_of_demonstrations_get_mean_0_and_keep_their_gain(setting):
    language_model, model, train, config = setting
    config.reward_model.normalize = "demonstrations"
    before, kernel = scores_one_by_one(model, train), model.head_kernel.numpy()
    normalize(model, language_model, train, Tokenizer([]), config, engines_of(config))
    after = scores_one_by_one(model, train)
    assert abs(after.mean()) < 1e-5
    assert_close(after, before - before.mean(), rtol=1e-5)
    np.testing.assert_array_equal(model.head_kernel, kernel)
