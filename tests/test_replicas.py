"""One replica and four draw the same tokens and arrive at the same weights.

The number of devices is fixed once in a process, so each count gets a process of its own: this file, run as a program.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
COUNTS = (1, 4)
NUM_ROUNDS = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What `train` saved, for every count of replicas."""
    folder = tmp_path_factory.mktemp("replicas")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    programs = {
        count: subprocess.Popen(
            [sys.executable, __file__, str(count), str(folder / f"{count}.npz")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for count in COUNTS
    }
    for count, program in programs.items():
        output, _ = program.communicate(timeout=300)
        assert program.returncode == 0, f"{count} replicas:\n{output}"
    return {count: dict(np.load(folder / f"{count}.npz")) for count in COUNTS}


@pytest.mark.parametrize("count", COUNTS[1:])
def test_same_rollouts(results, count):
    for number in range(NUM_ROUNDS):
        for name in ("response_ids", "response_mask", "scores"):
            key = f"{name}_{number}"
            np.testing.assert_array_equal(results[count][key], results[1][key], err_msg=key)
        for name in ("logprobs", "values", "ref_logprobs"):
            key = f"{name}_{number}"
            np.testing.assert_allclose(results[count][key], results[1][key], rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("count", COUNTS[1:])
def test_same_weights(results, count):
    start, expected, weights = (results[key]["weights_" + when] for key, when in [(1, "0"), (1, "3"), (count, "3")])
    np.testing.assert_array_equal(results[count]["weights_0"], start)
    assert np.abs(expected - start).max() > 1e-2
    assert np.abs(weights - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.linalg.norm(weights - expected) <= 1e-4 * np.linalg.norm(expected - start)


@pytest.mark.parametrize("count", COUNTS[1:])
def test_same_statistics(results, count):
    names = [name for name in results[1] if "/" in name]
    assert len(names) > 10
    for name in names:
        np.testing.assert_allclose(results[count][name], results[1][name], rtol=1e-3, atol=1e-5, err_msg=name)
    assert (results[1]["policy/gradient_norm"] > 0.1).all()  # above max_grad_norm: the clip is active
    assert (results[count]["policy/first_ratio_error"] < 1e-4).all()


def test_replicas_draw_different_samples_of_one_prompt(results):
    rows = results[4]["responses_to_one_prompt"]
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)
    np.testing.assert_array_equal(rows, results[1]["responses_to_one_prompt"])


@pytest.mark.parametrize("count", COUNTS)
def test_all_replicas_hold_the_same_weights(results, count):
    assert len(results[count]["weights_of_replicas"]) == count
    for weights in results[count]["weights_of_replicas"]:
        np.testing.assert_array_equal(weights, results[count]["weights_of_replicas"][0])


@pytest.mark.parametrize("count", COUNTS)
def test_a_gradient_that_is_not_finite_on_one_replica_stops_all(results, count):
    np.testing.assert_array_equal(results[count]["weights_after_inf"], results[count]["weights_of_replicas"])
    assert results[count]["steps_taken_with_inf"] == 0.0


@pytest.mark.parametrize(("count", "messages"), [(1, 0), (4, 2)])
def test_a_minibatch_that_the_replicas_do_not_divide_is_refused(results, count, messages):
    refusals = results[count]["refusals"].tolist()
    assert len(refusals) == messages
    if messages:
        assert "ppo.num_minibatches" in refusals[0] and "is 3;" in refusals[0] and f"replicas, {count}," in refusals[0]
        assert "ppo.accumulation_steps" in refusals[1] and "is 1;" in refusals[1]


def train(num_replicas):
    """Rounds of collecting and updating; everything that the tests compare, by name."""
    import keras
    import tensorflow as tf

    from tfppo.config import PpoConfig, RewardConfig, SamplingConfig
    from tfppo.distribute import make_strategy
    from tfppo.errors import UserError
    from tfppo.learner import Learner
    from tfppo.models.language_model import LanguageModel
    from tfppo.models.policy import Policy
    from tfppo.rewards.scoring import TextReward
    from tfppo.rollout import RolloutCollector
    from tfppo.seeds import seed_for
    from tfppo.text.tokenizer import Tokenizer
    from tfppo.types import Prompts

    strategy = make_strategy(num_replicas)
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    sizes = dict(num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=16)
    with strategy.scope():
        language_model = LanguageModel(40, **sizes)
        language_model.set_weights([w + rng.normal(0.0, 0.3, w.shape) for w in language_model.get_weights()])
        policy = Policy(language_model)
        ref_model = LanguageModel(40, **sizes)
        ref_model.set_weights([w + rng.normal(0.0, 0.02, w.shape) for w in language_model.get_weights()])

    sampling = SamplingConfig(response_length=5, temperature=0.7, stop_at_eos=True, jit_compile=False)
    settings = dict(rollout_batch_size=16, total_episodes=48, learning_rate=1e-2, max_grad_norm=0.1, jit_compile=False)
    config = PpoConfig(**settings, ppo_epochs=2, num_minibatches=2, accumulation_steps=2)
    config.validate()

    def reward_fn(prompts, responses):
        return [sum(ord(character) % 3 for character in response) / 4 for response in responses]

    reward, rewards = RewardConfig(whiten=True), [TextReward("toy", reward_fn)]
    collector = RolloutCollector(
        policy, ref_model, sampling, reward, tokenizer=Tokenizer([]), rewards=rewards, strategy=strategy
    )
    learner = Learner(policy, config, reward, strategy, temperature=0.7)

    def flat_weights():
        return np.concatenate([weight.ravel() for weight in policy.get_weights()])

    def weights_of_replicas():
        parts = [strategy.experimental_local_results(variable.value) for variable in policy.variables]
        return np.stack([np.concatenate([part[i].numpy().ravel() for part in parts]) for i in range(num_replicas)])

    one_prompt = Prompts(tf.fill([16, 4], 5), tf.ones([16, 4], tf.int32))
    samples = collector.sampler(one_prompt, seed_for(0, "sample"))
    saved, history = {"weights_0": flat_weights(), "responses_to_one_prompt": samples.response_ids.numpy()}, []
    coefs = tf.constant(0.1), tf.constant(1.0)  # of the KL penalty and of the policy's loss
    lengths = np.array([4, 1, 3, 2] * 4)
    mask = (np.arange(4) >= 4 - lengths[:, None]).astype(np.int32)
    for number in range(NUM_ROUNDS):
        prompt_ids = rng.integers(2, 40, [16, 4]).astype(np.int32) * mask
        prompts = Prompts(tf.constant(prompt_ids), tf.constant(mask))
        rollout = collector.collect(prompts, seed_for(0, "sample", number)).rollout
        statistics = learner.update(rollout, seed_for(0, "shuffle", number), *coefs)
        history.append({name: float(value) for name, value in statistics.items()})
        saved |= {f"{name}_{number}": value.numpy() for name, value in rollout._asdict().items()}
    saved |= {name: np.array([statistics[name] for statistics in history]) for name in history[0]}
    saved |= {"weights_3": flat_weights(), "weights_of_replicas": weights_of_replicas()}

    # A score of one row that is not finite spoils the whitening of the rollout: no step may be taken anywhere.
    scores = tf.tensor_scatter_nd_update(rollout.scores, [[15]], [np.inf])
    statistics = learner.update(rollout._replace(scores=scores), seed_for(0, "shuffle", 9), *coefs)
    saved["steps_taken_with_inf"] = statistics["policy/steps_taken"].numpy()
    saved["weights_after_inf"] = weights_of_replicas()

    refusals = []
    for changes in (dict(rollout_batch_size=6, num_minibatches=2), dict(num_minibatches=4, accumulation_steps=4)):
        try:
            Learner(policy, PpoConfig(**{**settings, **changes}), reward, strategy)
        except UserError as error:
            refusals.append(str(error))
    saved["refusals"] = np.array(refusals, dtype=str)
    return saved


if __name__ == "__main__":
    np.savez(sys.argv[2], **train(int(sys.argv[1])))
