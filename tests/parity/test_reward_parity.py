"""Reward shaping: the rows R1 to R16 of the literature, against loops in float64."""

import numpy as np
import pytest
import tensorflow as tf
from reference_numbers import assert_close, float32, load, mask_of

from tfppo.config import Config, PpoConfig, RewardConfig
from tfppo.config.presets import openai_2019, openai_tldr_n_plus, openrlhf, trl
from tfppo.ops.kl import adaptive_kl_coef, kl_estimate, kl_exact
from tfppo.ops.losses import importance_ratio
from tfppo.ops.shaping import mask_after_last, place_scores
from tfppo.ppo.scored_part import first_stop_mask
from tfppo.ppo.targets import prepare_targets
from tfppo.ppo.types import Rollout
from tfppo.rewards.shaping import ScoreShaper

LENGTHS = [6, 1, 4, 3, 6, 2, 5, 3]


def make_rollout(parts, lengths, padding=0.0, value_padding=None):
    """A rollout of the fixture's numbers, with `padding` where there is no token (and no value)."""
    mask = mask_of(lengths, len(parts["values"][0]))
    states = mask if value_padding is None else value_padding
    logprobs, ref_logprobs = (np.where(mask > 0, float32(parts[n]), padding) for n in ("logprobs", "ref_logprobs"))
    values = np.where(states > 0, float32(parts["values"]), padding)
    batch = len(lengths)
    return Rollout(
        prompt_ids=tf.ones([batch, 1], tf.int32),
        prompt_mask=tf.ones([batch, 1], tf.int32),
        response_ids=tf.ones(mask.shape, tf.int32),
        response_mask=tf.constant(mask),
        logprobs=tf.constant(float32(logprobs)),
        values=tf.constant(float32(values)),
        ref_logprobs=tf.constant(float32(ref_logprobs)),
        scores=tf.constant(float32(parts["scores"])),
        stopped=tf.constant([size < mask.shape[1] for size in lengths]),
    )


def test_R1_kl_penalty_is_a_reward_of_every_token():
    logprobs, ref_logprobs = [[-3.3213, -4.9980, -3.8690]], [[-3.0, -5.0, -4.0]]
    parts = dict(logprobs=logprobs, ref_logprobs=ref_logprobs, values=[[0.0] * 3], scores=[0.0])
    ppo = PpoConfig(gamma=0.0, whiten_advantages=False)
    targets, _ = prepare_targets(make_rollout(parts, [3]), ppo, RewardConfig(), 0.15)
    # With gamma 0 the returns are the rewards: -.15 * (logprob - ref_logprob).
    assert_close(targets.returns, [[0.15 * 0.3213, -0.15 * 0.002, -0.15 * 0.131]])


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("padding", [0.0, np.nan])
def test_R2_scores_to_advantages_in_three_conventions(number, padding):
    """LM-human-preferences; last token; N+ and TRL with padding_mask_p1 and the value after the stop."""
    fixture = load("rewards")
    case = fixture["cases"][number]
    mask = mask_of(case["lengths"])
    after_last = case["placement"] == "after_last"
    states = mask_of(np.minimum(np.array(case["lengths"]) + 1, 6)) if after_last else mask
    rollout = make_rollout(fixture["rollout"], case["lengths"], padding, states)
    ppo = PpoConfig(
        gamma=fixture["gamma"], gae_lambda=fixture["gae_lambda"], whiten_unbiased=case["unbiased"], kl_coef=0.0
    )
    reward = RewardConfig(placement=case["placement"], whiten=case["whiten_rewards"])
    targets, _ = prepare_targets(rollout, ppo, reward, fixture["kl_coef"])
    assert_close(targets.advantages, case["advantages"])
    assert_close(targets.returns, case["returns"])
    np.testing.assert_array_equal(targets.critic_mask, states)


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("last_token", [[0, 0, 0, 2], [0, 3, 0, 0], [5, 0, 0, 0]]),
        ("after_last", [[0, 0, 0, 2], [0, 0, 3, 0], [0, 5, 0, 0]]),
        ("last_position", [[0, 0, 0, 2], [0, 0, 0, 3], [0, 0, 0, 5]]),
    ],
)
def test_R2_where_a_score_goes(placement, expected):
    placed = place_scores(tf.constant([2.0, 3.0, 5.0]), tf.constant(mask_of([4, 2, 1], 4)), placement)
    np.testing.assert_array_equal(placed, expected)


def test_R3_default_is_the_last_token_and_after_last_needs_one_state_more():
    assert RewardConfig().placement == "last_token"
    assert openai_tldr_n_plus().reward.placement == trl().reward.placement == "after_last"
    np.testing.assert_array_equal(mask_after_last(tf.constant(mask_of([2, 3], 3))), [[1, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(mask_after_last(tf.constant(mask_of([1, 0], 3))), [[1, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
def test_R4_kl_estimators(estimator):
    fixture = load("kl")
    estimates = kl_estimate(tf.constant(float32(fixture["log_ratios"])), estimator).numpy()
    # Number by number: the smallest ones are where a careless k3 cancels. It still adds d to expm1(-d), two numbers
    # of size |d| whose sum is of size d^2 / 2: that leaves an absolute error of 2^-24 |d|, and d is float32 itself.
    d = np.array(fixture["log_ratios"])
    allowed = 1e-6 * np.abs(fixture[estimator]) + (2.0**-23 * np.abs(d) if estimator == "k3" else 0.0)
    assert np.all(np.abs(estimates - fixture[estimator]) <= allowed), estimates
    published = {"k1": [0.5, -0.5], "k2": [0.125, 0.125], "k3": [0.106531, 0.148721], "abs": [0.5, 0.5]}
    np.testing.assert_allclose(estimates[:2], published[estimator], rtol=1e-5)


def test_R4_estimators_agree_with_the_exact_kl_on_average():
    rng = np.random.default_rng(0)
    logits, ref_logits = rng.normal(0, 1, [2, 1, 5]).astype(np.float32)
    logprobs, ref_logprobs = (tf.nn.log_softmax(x / 0.7).numpy()[0] for x in (logits, ref_logits))
    d, p = tf.constant(logprobs - ref_logprobs), np.exp(logprobs)
    exact = kl_exact(logits, ref_logits, 0.7).numpy()[0]
    for estimator in ("k1", "k3"):  # the unbiased ones
        np.testing.assert_allclose(np.sum(p * kl_estimate(d, estimator).numpy()), exact, rtol=1e-5)


def test_R5_extremes_stay_finite():
    fixture = load("kl")
    extremes = tf.constant(float32(fixture["extremes"]))
    assert_close(kl_estimate(extremes, "k3"), fixture["k3_of_extremes"])
    assert_close(importance_ratio(extremes, tf.zeros(4)), np.exp([20.0, -20.0, 20.0, -20.0]))


def test_R6_absolute_kl():
    np.testing.assert_array_equal(kl_estimate(tf.constant([0.5, -0.5, 0.0]), "abs"), [0.5, 0.5, 0.0])


def test_R7_fixed_coefficients_of_the_recipes():
    assert [preset().ppo.kl_coef for preset in (openai_2019, openai_tldr_n_plus, trl, openrlhf)] == [
        0.15,
        0.05,
        0.05,
        0.01,
    ]


@pytest.mark.parametrize(
    ("kl", "coef"), [(12.0, 0.151536), (6.6, 0.150768), (6.0, 0.15), (4.8, 0.148464), (0, 0.148464)]
)
def test_R8_adaptive_kl_table(kl, coef):
    np.testing.assert_allclose(
        adaptive_kl_coef(0.15, kl, target=6.0, horizon=10_000, num_episodes=512), coef, rtol=1e-9
    )


@pytest.mark.parametrize(("kl", "factor"), [(12.0, 1.02), (6.6, 1.01), (6.0, 1.0), (5.4, 0.99), (0.0, 0.98)])
@pytest.mark.parametrize("num_episodes", [64, 512])
def test_R9_a_horizon_of_ten_batches_is_the_controller_of_rl4lms(kl, factor, num_episodes):
    """There the gain is 0.1 whatever the number of episodes: coef *= 1 + 0.1 * clip(kl / target - 1, +-0.2)."""
    coef = adaptive_kl_coef(0.15, kl, target=6.0, horizon=10 * num_episodes, num_episodes=num_episodes)
    np.testing.assert_allclose(coef, 0.15 * factor, rtol=1e-9)


def test_R8_C3_adaptive_kl_trajectory():
    fixture = load("kl")
    table = fixture["table"]
    coefs = [adaptive_kl_coef(0.15, kl, target=6.0, horizon=10_000, num_episodes=512) for kl in table["kl"]]
    assert_close(coefs, table["coef"], rtol=1e-9)
    loop, coef, coefs, kl = fixture["closed_loop"], 0.15, [], None
    for _ in range(50):
        kl = 3.0 / coef**0.5
        coef = adaptive_kl_coef(
            coef, kl, target=loop["target"], horizon=loop["horizon"], num_episodes=loop["num_episodes"]
        )
        coefs.append(coef)
    assert_close(coefs, loop["coef"], rtol=1e-9)
    assert abs(kl / loop["target"] - 1) < 0.02  # and it arrives


def test_R8_the_kl_is_summed_over_a_response_and_averaged_over_the_batch():
    parts = load("rewards")["rollout"]
    _, statistics = prepare_targets(make_rollout(parts, LENGTHS), PpoConfig(), RewardConfig(), 0.1)
    d = np.array(parts["logprobs"]) - np.array(parts["ref_logprobs"])
    assert_close(statistics["objective/kl"], np.mean([sum(d[b, :size]) for b, size in enumerate(LENGTHS)]))


@pytest.mark.parametrize(
    ("mode", "penalty", "key"), [("replace", -1.0, "replaced_by_minus_1"), ("subtract", 1.0, "less_1")]
)
def test_R10_missing_stop_penalty(mode, penalty, key):
    fixture = load("rewards")
    shaper = ScoreShaper(RewardConfig(missing_stop_penalty=penalty, missing_stop_mode=mode))
    stopped, lengths = np.array(fixture["stopped"]), np.full(8, 6)
    assert_close(shaper(float32(fixture["rollout"]["scores"]), stopped, lengths), fixture[key])


def test_R10_recipes():
    ziegler, n_plus = openai_2019().reward, openai_tldr_n_plus().reward
    for reward in (ziegler, n_plus):
        assert (reward.missing_stop_penalty, reward.missing_stop_mode) == (-1.0, "replace")
    assert (trl().reward.missing_stop_penalty, trl().reward.missing_stop_mode) == (None, "subtract")


def test_R11_R12_a_reward_sees_the_response_up_to_its_stop_and_the_loss_sees_all_of_it():
    ids = np.array([[5, 1, 4, 1, 3], [1, 4, 4, 4, 4], [4, 4, 4, 4, 1]])
    ones = np.ones(ids.shape, np.float32)
    mask, found = first_stop_mask(ids, ones, stop_id=1, truncate_after=2)
    np.testing.assert_array_equal(mask, mask_of([4, 5, 5], 5))  # a stop before position 2 does not count
    np.testing.assert_array_equal(found, [True, False, True])
    mask, found = first_stop_mask(ids, ones, stop_id=1, truncate_after=0)
    np.testing.assert_array_equal(mask, mask_of([2, 1, 5], 5))
    config: Config = openai_2019()
    assert not config.sampling.stop_at_eos and config.reward.truncate_at_eos and config.reward.truncate_after == 16


def test_R13_padding_has_no_share_in_any_statistic():
    fixture = load("rewards")
    clean, dirty = (make_rollout(fixture["rollout"], LENGTHS, padding) for padding in (0.0, np.nan))
    results = [prepare_targets(rollout, PpoConfig(), RewardConfig(whiten=True), 0.1) for rollout in (clean, dirty)]
    for first, second in zip(*(targets for targets, _ in results), strict=True):
        np.testing.assert_array_equal(first, second)
    for name, value in results[0][1].items():
        np.testing.assert_array_equal(value, results[1][1][name], err_msg=name)
    assert results[0][1]["objective/entropy"] >= 0
    entropy = [-sum(row[:size]) for row, size in zip(fixture["rollout"]["logprobs"], LENGTHS, strict=True)]
    assert_close(results[0][1]["objective/entropy"], np.mean(entropy))


def test_running_normalisation_gives_all_scores_so_far_mean_0_and_deviation_1():
    shaper = ScoreShaper(RewardConfig(normalize=True))
    scores = np.random.default_rng(0).normal(3.0, 5.0, 256).astype(np.float32)
    shaped = shaper(scores, np.ones(256, bool), np.full(256, 6))
    assert abs(shaped.mean()) < 1e-6 and abs(shaped.std() - 1) < 1e-6
    more = np.random.default_rng(1).normal(-1.0, 2.0, 64).astype(np.float32)
    everything = np.concatenate([scores, more]).astype(np.float64)
    shaped = shaper(more, np.ones(64, bool), np.full(64, 6))
    assert_close(shaped, (more - everything.mean()) / everything.std())


def test_R16_score_clip():
    shaper = ScoreShaper(RewardConfig(clip=5.0, scale=2.0))
    np.testing.assert_array_equal(
        shaper(float32([-9, -1, 0.5, 9]), np.ones(4, bool), np.full(4, 6)), float32([-5, -2, 1, 5])
    )
