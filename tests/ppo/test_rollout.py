"""From prompts to a rollout: against full forwards of unpadded texts and a transcription of a published trainer."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from computations import build_collector, build_learner
from native_support import ops_of_sampling

from tfppo.computation.graph import GraphEngine
from tfppo.config import PpoConfig, RewardConfig, SamplingConfig
from tfppo.data.prompts import pad_left
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops.seeds import seed_for
from tfppo.ppo.scored_part import first_stop_mask
from tfppo.ppo.targets import prepare_targets
from tfppo.ppo.teacher_forcing import TeacherForcing, by_length
from tfppo.rewards.scoring import TextReward
from tfppo.training.replicas import make_strategy

PAD, EOS, VOCABULARY_SIZE, RESPONSE, BATCH = 0, 1, 24, 6, 16
TEMPERATURE, KL_COEF = 0.7, 0.3


def byte_sum(prompts, responses):
    """A tenth of the sum of a response's bytes: the id of a token is its byte plus 2."""
    return [sum(response.encode()) / 10 for response in responses]


@functools.cache
def strategy():
    return make_strategy(1)


@functools.cache
def models():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    with strategy().scope():
        made = [LanguageModel(VOCABULARY_SIZE, 1, 2, 8, 16, 12) for _ in range(2)]
        for model in made:
            model.set_weights([w + rng.normal(0.0, 0.3, w.shape) for w in model.get_weights()])
        policy = Policy(made[0])
        policy.value_kernel.assign(rng.normal(0.0, 0.5, policy.value_kernel.shape))
        policy.value_bias.assign([0.2])
    return policy, made[1]


COLLECTORS = {}


def make_collector(reward, stop_at_eos, rewards=None, native=None, dtype=None, ops=None):
    """A collector with a reward of its own, traced once for all the tests that ask for the same settings."""
    sampling = SamplingConfig(
        response_length=RESPONSE, temperature=TEMPERATURE, stop_at_eos=stop_at_eos, jit_compile=False, native=native
    )
    key = repr((sampling, reward, dtype))
    if key not in COLLECTORS:
        policy, ref_model = models()
        COLLECTORS[key] = build_collector(
            policy,
            ref_model,
            sampling,
            reward,
            tokenizer=Tokenizer([]),
            rewards=[],
            strategy=strategy(),
            dtype=dtype,
            native=ops,
        )
    COLLECTORS[key].rewards = rewards or [TextReward("byte_sum", byte_sum)]
    return COLLECTORS[key]


@functools.cache
def prompt_rows():
    rng = np.random.default_rng(1)
    return [[EOS, *rng.integers(2, VOCABULARY_SIZE, size).tolist()] for size in rng.integers(0, 4, BATCH)]


def prompts():
    return pad_left(prompt_rows(), PAD, 5)


def full_forward(prompt, response):
    """Of one unpadded text: log-probabilities of its response under both models, and values of all states after the
    prompt, the one after the last token too.
    """
    policy, ref_model = models()
    text = np.array([prompt + response])
    logits, values = policy(text)
    states = slice(len(prompt) - 1, len(text[0]) - 1)
    logprobs = []
    for numbers in (logits, ref_model(text)):
        scaled = np.asarray(numbers, np.float64)[0, states] / TEMPERATURE
        normal = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
        logprobs.append(normal[np.arange(len(response)), response])
    return *logprobs, np.asarray(values, np.float64)[0, len(prompt) - 1 :]


@pytest.mark.parametrize("native", [False, True])
def test_in_bfloat16_all_of_a_rollout_is_of_one_dtype(native):
    ops = ops_of_sampling(None, "mixed_bfloat16") if native else None
    if native and ops is None:
        pytest.skip("the processor does not multiply bfloat16 numbers")
    collector = make_collector(RewardConfig(), True, native=native, dtype="mixed_bfloat16", ops=ops)
    rollout = collector.collect(prompts(), tf.constant([3, 4])).rollout
    replayed = collector.replay(prompts(), rollout.response_ids, rollout.response_mask).rollout
    errors = {"sampled": [], "reference": [], "value": [], "replayed": []}
    for row, prompt in enumerate(prompt_rows()):
        size = int(rollout.response_mask[row].numpy().sum())
        response = rollout.response_ids[row, :size].numpy().tolist()
        logprobs, ref_logprobs, values = full_forward(prompt, response)
        errors["sampled"] += list(rollout.logprobs[row, :size] - logprobs)
        errors["replayed"] += list(replayed.logprobs[row, :size] - logprobs)
        errors["reference"] += list(rollout.ref_logprobs[row, :size] - ref_logprobs)
        errors["value"] += list(rollout.values[row, :size] - values[:size])
    for name, of_tokens in errors.items():  # those of float32 are a thousand times smaller
        assert 1e-4 < np.abs(of_tokens).max() < 0.1, name
    assert np.abs(rollout.logprobs - replayed.logprobs).max() < 0.1


def n_plus_targets(ids, logprobs, ref_logprobs, values, scores, config):
    """The reward and advantage block of the N+ trainer (Huang et al. 2024), which TRL kept, in NumPy.

    values [B, R + 1]: the state before each token, and after the last. Returns: values, advantages, returns [B, R].
    """
    sequence_lengths = np.array([(row == PAD).argmax() if (row == PAD).any() else len(row) for row in ids]) - 1
    positions = np.arange(ids.shape[1])[None]
    padding_mask = positions > sequence_lengths[:, None]
    sequence_lengths_p1 = sequence_lengths + 1
    padding_mask_p1 = positions > sequence_lengths_p1[:, None]
    logprobs, ref_logprobs = np.where(padding_mask, 1.0, logprobs), np.where(padding_mask, 1.0, ref_logprobs)
    values = np.where(padding_mask_p1, 0.0, values[:, : ids.shape[1]])
    rewards = -KL_COEF * (logprobs - ref_logprobs)
    actual_end = np.where(sequence_lengths_p1 < ids.shape[1], sequence_lengths_p1, sequence_lengths)
    rewards[np.arange(len(ids)), actual_end] += scores
    last, advantages = 0.0, np.zeros(ids.shape)
    for t in reversed(range(ids.shape[1])):
        following = values[:, t + 1] if t < ids.shape[1] - 1 else 0.0
        delta = rewards[:, t] + config.gamma * following - values[:, t]
        advantages[:, t] = last = delta + config.gamma * config.gae_lambda * last
    returns = advantages + values
    real = advantages[~padding_mask]
    variance = real.var(ddof=int(config.whiten_unbiased))
    whitened = np.where(padding_mask, 0.0, (advantages - real.mean()) / np.sqrt(variance + 1e-8))
    return values, whitened, np.where(padding_mask_p1, 0.0, returns)


@pytest.mark.parametrize("whiten_unbiased", [False, True], ids=["n_plus", "trl"])
def test_a_score_after_the_stop_token_is_that_of_n_plus(whiten_unbiased):
    reward = RewardConfig(placement="after_last", missing_stop_penalty=-1.0, missing_stop_mode="replace")
    ppo = PpoConfig(whiten_unbiased=whiten_unbiased)
    rollout = make_collector(reward, stop_at_eos=True).collect(prompts(), seed_for(3, "sample")).rollout
    ids = rollout.response_ids.numpy()
    logprobs, ref_logprobs, values, scores = (np.zeros([BATCH, RESPONSE + extra]) for extra in (0, 0, 1, 0))
    scores = np.zeros(BATCH)
    for row, prompt in enumerate(prompt_rows()):
        response = [token for token in ids[row].tolist() if token != PAD]
        size = len(response)
        logprobs[row, :size], ref_logprobs[row, :size], values[row, : size + 1] = full_forward(prompt, response)
        scores[row] = sum(token - 2 for token in response[:-1]) / 10 if response[-1] == EOS else -1.0
    stopped = (ids == EOS).any(axis=1)
    assert 2 < stopped.sum() < BATCH - 2 and len(set((ids != PAD).sum(axis=1))) > 2
    np.testing.assert_array_equal(rollout.stopped, stopped)
    np.testing.assert_allclose(rollout.scores, scores, rtol=1e-6)
    expected_values, advantages, returns = n_plus_targets(ids, logprobs, ref_logprobs, values, scores, ppo)
    targets, _ = prepare_targets(rollout, ppo, reward, KL_COEF)
    np.testing.assert_allclose(targets.old_values, expected_values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets.advantages, advantages, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(targets.returns, returns, rtol=1e-4, atol=1e-4)
    # The critic learns of the state after the stop token too, the policy does not.
    sizes = (ids != PAD).sum(axis=1)
    np.testing.assert_array_equal(targets.response_mask, np.arange(RESPONSE) < sizes[:, None])
    np.testing.assert_array_equal(targets.critic_mask, np.arange(RESPONSE) < sizes[:, None] + 1)


def test_the_first_stop_by_hand():
    ids = np.array([[5, 1, 6, 1, 7], [1, 1, 1, 1, 1], [5, 5, 5, 5, 5], [5, 6, 7, 1, 1]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.float32)
    cut, found = first_stop_mask(ids, mask, 1, 0)
    assert cut.tolist() == [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert found.tolist() == [True, True, False, False]
    cut, found = first_stop_mask(ids, mask, 1, 2)
    assert cut.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert found.tolist() == [True, True, False, False]
    cut, found = first_stop_mask(ids, mask, 1, 4)
    assert cut.tolist() == [[1] * 5, [1] * 5, [1] * 5, [1, 1, 1, 0, 0]] and found.tolist() == [
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("truncate_after", [0, 2])
def test_rewards_see_a_text_up_to_its_stop_and_the_policy_all_of_it(truncate_after):
    reward = RewardConfig(
        placement="last_position",
        truncate_at_eos=True,
        truncate_after=truncate_after,
        missing_stop_penalty=-1.0,
        missing_stop_mode="replace",
    )
    collected = make_collector(reward, stop_at_eos=False).collect(prompts(), seed_for(3, "sample"))
    rollout, ids = collected.rollout, collected.rollout.response_ids.numpy()
    expected, raw, cut = np.full(BATCH, -1.0), np.zeros(BATCH), 0
    for row in range(BATCH):
        ends = [t for t in range(truncate_after, RESPONSE) if ids[row, t] == EOS]
        seen = [token for token in ids[row, : (ends or [RESPONSE])[0]].tolist() if token != EOS]
        assert collected.responses[row].encode() == bytes(token - 2 for token in seen)
        raw[row] = sum(token - 2 for token in seen) / 10
        if ends:
            expected[row] = raw[row]
            cut += ends[0] < RESPONSE - 1
    assert 1 < cut < BATCH
    np.testing.assert_allclose(rollout.scores, expected, rtol=1e-6)
    np.testing.assert_allclose(collected.raw_scores, raw, rtol=1e-6)
    assert collected.reward_means == {"reward/byte_sum": pytest.approx(raw.mean(), rel=1e-6)}
    np.testing.assert_array_equal(rollout.stopped, expected != -1.0)
    assert (rollout.response_mask.numpy() == 1.0).all() and (rollout.logprobs.numpy() < 0).all()
    config = PpoConfig(kl_coef=0.0, whiten_advantages=False, gae_lambda=1.0)
    returns = prepare_targets(rollout, config, reward, 0.0)[0].returns
    np.testing.assert_allclose(returns, np.repeat(expected[:, None], RESPONSE, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("placement", ["last_token", "after_last"])
def test_a_replay_has_the_actions_of_the_data(placement):
    rng = np.random.default_rng(5)
    responses = [[*rng.integers(2, VOCABULARY_SIZE, size).tolist(), EOS][:RESPONSE] for size in range(8)] * 2
    ids, mask = np.zeros([2, BATCH, RESPONSE], np.int32)
    for row, response in enumerate(responses):
        ids[row, : len(response)], mask[row, : len(response)] = response, 1
    reward = RewardConfig(placement=placement)
    collector = make_collector(reward, stop_at_eos=True)
    rollout = collector.replay(prompts(), ids, mask.astype(np.float32)).rollout
    np.testing.assert_array_equal(rollout.response_ids, ids)
    np.testing.assert_array_equal(rollout.response_mask, mask)
    np.testing.assert_array_equal(rollout.stopped, (ids == EOS).any(axis=1))
    for row, (prompt, response) in enumerate(zip(prompt_rows(), responses, strict=True)):
        size = len(response)
        logprobs, ref_logprobs, values = full_forward(prompt, response)
        np.testing.assert_allclose(rollout.logprobs[row, :size], logprobs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rollout.ref_logprobs[row, :size], ref_logprobs, rtol=1e-4, atol=1e-5)
        valued = min(size + (placement == "after_last"), RESPONSE)
        np.testing.assert_allclose(rollout.values[row, :valued], values[:valued], rtol=1e-4, atol=1e-5)
        for part, start in ((rollout.logprobs, size), (rollout.ref_logprobs, size), (rollout.values, valued)):
            assert not part[row, start:].numpy().any()
        np.testing.assert_allclose(rollout.scores[row], sum(token - 2 for token in response if token != EOS) / 10)
    ppo = PpoConfig(rollout_batch_size=BATCH, num_minibatches=1, ppo_epochs=1, jit_compile=False)
    if placement == "after_last":  # as while learning: neither ratio nor value has moved
        before = models()[0].get_weights()
        learner = build_learner(models()[0], ppo, reward, strategy(), TEMPERATURE)
        statistics = learner.update(rollout, seed_for(0, "shuffle"), tf.constant(KL_COEF), tf.constant(1.0))
        models()[0].set_weights(before)
        assert statistics["policy/first_ratio_error"] < 1e-4 and statistics["value/clip_fraction"] == 0.0


def test_a_reward_function_that_fails_while_the_reference_computes_leaves_nothing_behind():
    failures = iter([True, False])

    def fails_once(prompts, responses):
        if next(failures):
            raise RuntimeError("no connection to the judge")
        return byte_sum(prompts, responses)

    expected = make_collector(RewardConfig(), stop_at_eos=True).collect(prompts(), seed_for(3, "sample"))
    collector = make_collector(RewardConfig(), stop_at_eos=True, rewards=[TextReward("judge", fails_once)])
    with pytest.raises(
        UserError, match="reward judge raised RuntimeError: no connection to the judge at .*test_rollout.py"
    ):
        collector.collect(prompts(), seed_for(3, "sample"))
    again = collector.collect(prompts(), seed_for(3, "sample"))
    for one, other in zip(again.rollout, expected.rollout, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_rows_of_like_length_are_computed_together_and_come_back_in_order(num_parts):
    lengths = np.array([1, 7, 3, 0, 7, 2])
    mask = (np.arange(7) < lengths[:, None]).astype(np.float32)
    ids = np.arange(42, dtype=np.int32).reshape(6, 7)
    seen = []

    def fn(offsets, response_ids, response_mask):
        seen.append(tuple(response_ids.shape))
        return (offsets[:, None] + tf.cast(response_ids, tf.float32)) * response_mask

    offsets = tf.constant([100.0, 200.0, 300.0, 400.0, 500.0, 600.0])
    found = by_length(fn, [offsets], responses=(tf.constant(ids), tf.constant(mask)), num_parts=num_parts, buckets=4)
    np.testing.assert_array_equal(found, (offsets.numpy()[:, None] + ids) * mask)
    # Lengths in order: 0 and 1, 2 and 3, 7 and 7; cut to multiples of 2, but to no more than 7.
    assert seen == {1: [(6, 7)], 2: [(3, 2), (3, 7)], 3: [(2, 2), (2, 4), (2, 7)]}[num_parts]


def test_a_reference_by_length_is_the_same():
    reward = RewardConfig()
    collector = make_collector(reward, stop_at_eos=True)
    collected = collector.collect(prompts(), seed_for(3, "sample")).rollout
    whole = collector.teacher_forcing.of_reference(
        collected.prompt_ids, collected.prompt_mask, collected.response_ids, collected.response_mask
    )
    assert len(set(collected.response_mask.numpy().sum(axis=1))) > 1
    np.testing.assert_allclose(collected.ref_logprobs, whole, rtol=1e-5, atol=1e-6)


def test_on_a_gpu_the_reference_reads_all_rows_at_once():
    """Parts of like length would be compiled one by one."""
    reads = []

    class Engine(GraphEngine):
        def response_states(self, trunk, *batch):
            reads.append(batch[2].shape.as_list())
            return super().response_states(trunk, *batch)

    policy, ref_model = models()
    collected = make_collector(RewardConfig(), stop_at_eos=True).collect(prompts(), seed_for(3, "sample")).rollout
    forcing = TeacherForcing(
        policy,
        ref_model,
        Engine("float32", compiled=True, fixed_shapes=True),
        temperature=TEMPERATURE,
        lengths_vary=True,
        strategy=strategy(),
    )
    found = forcing.ref_logprobs(prompts(), collected.response_ids, collected.response_mask)
    assert reads == [collected.response_ids.shape.as_list()]
    np.testing.assert_allclose(found, collected.ref_logprobs, rtol=1e-5, atol=1e-5)
