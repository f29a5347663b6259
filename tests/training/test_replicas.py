"""However the work is cut, over replicas, parts or padding, the same weights come out after three rounds.

The number of devices is fixed once in a process, so each count gets a process of its own: this file, run as a program.
"""

import functools
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from warm import WarmProcess

ROOT = Path(__file__).resolve().parents[2]
COUNTS = (1, 2, 4)
NUM_ROUNDS = 3
# Number of replicas and changes of the learner; "1" is what the others are compared with.
RUNS = {
    "1": (1, {}),
    "1_in_2_parts": (1, {"accumulation_steps": 2}),
    "1_padded_in_4_parts": (1, {"padding": 3, "accumulation_steps": 4}),
    "1_without_strategy": (1, {"mirrored": False}),
    "2": (2, {}),
    "4_in_2_parts": (4, {"accumulation_steps": 2}),
}
CUT = [name for name in RUNS if name != "1"]
# One round of the top block with a head of two layers, whitened by minibatch, against the same on one replica.
TOP = {"trainable_blocks": 1, "value_head": "mlp", "whiten_scope": "minibatch"}
ON_GPU = {**TOP, "accumulation_steps": 2, "on_gpu": True}  # its gradients and its step in one program each
TOP_RUNS = {"1_top": (1, TOP), "2_top": (2, TOP), "2_top_as_on_gpus": (2, ON_GPU)}
# One round in bfloat16, where a sum over replicas is made in float32 and gradients of one replica are rounded.
BFLOAT16 = {"dtype": "mixed_bfloat16"}
BFLOAT16_RUNS = {
    "1_bfloat16": (1, BFLOAT16),
    "2_bfloat16_checkpointed": (2, {**BFLOAT16, "gradient_checkpointing": True}),
}
# The values of cross_device_ops that work without GPUs; and two variables of different size with their targets.
WAYS_TO_SUM = ("auto", "hierarchical_copy", "reduction_to_one_device")
STARTS = (([[1.0, -2.0, 3.0]], 0.5), ([4.0], -1.0))
ALL_RUNS = {**RUNS, **BFLOAT16_RUNS, **TOP_RUNS}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What `train` saved, for every run."""
    folder = tmp_path_factory.mktemp("replicas")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    programs = {count: WarmProcess([__file__, str(count), str(folder)], env=environment, cwd=ROOT) for count in COUNTS}
    for count, program in programs.items():
        output = "".join(program.communicate(timeout=300))
        assert program.returncode == 0, f"{count} replicas:\n{output}"
    return {name: dict(np.load(folder / f"{name}.npz")) for name in ALL_RUNS}


@pytest.mark.parametrize("name", CUT)
def test_same_rollouts(results, name):
    found, expected = results[name], results["1"]
    for number in range(NUM_ROUNDS):
        for field in ("response_ids", "response_mask", "scores"):
            key = f"{field}_{number}"
            np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
        for field in ("logprobs", "values", "ref_logprobs"):
            key = f"{field}_{number}"
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", CUT)
def test_A8_L15_same_weights(results, name):
    start, expected, weights = results["1"]["weights_0"], results["1"]["weights"], results[name]["weights"]
    np.testing.assert_array_equal(results[name]["weights_0"], start)
    assert np.abs(expected - start).max() > 1e-2
    assert np.abs(weights - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.linalg.norm(weights - expected) <= 1e-4 * np.linalg.norm(expected - start)


def test_one_replica_is_bit_for_bit_what_no_strategy_is(results):
    for key, expected in results["1"].items():
        np.testing.assert_array_equal(results["1_without_strategy"][key], expected, err_msg=key)


def test_two_replicas_are_bit_for_bit_two_parts(results):
    """An update of one rollout. Samples of 8 rows and of 16 are not: their matrix products sum in other orders."""
    np.testing.assert_array_equal(
        results["2"]["weights_of_one_update"], results["1_in_2_parts"]["weights_of_one_update"]
    )
    assert (results["2"]["weights_of_one_update"] != results["1"]["weights_of_one_update"]).any()


@pytest.mark.parametrize("name", CUT)
def test_same_statistics(results, name):
    names = [key for key in results["1"] if "/" in key]
    assert len(names) > 10
    for key in names:
        np.testing.assert_allclose(results[name][key], results["1"][key], rtol=1e-3, atol=1e-5, err_msg=key)
    assert (results["1"]["policy/gradient_norm"] > 0.1).all()  # above max_grad_norm: the clip is active
    assert (results[name]["policy/first_ratio_error"] < 1e-4).all()


@pytest.mark.parametrize("name", CUT)
def test_a_ratio_that_is_off_is_seen_on_whichever_replica_it_is(results, name):
    """Of one token by half a nat, of each row in turn: e^0.5 - 1, where the row is one of the first minibatch."""
    expected = results["1"]["ratio_errors_by_row"]
    assert (expected > 0.6).sum() == 8
    np.testing.assert_allclose(expected[expected > 0.6], 0.648721, rtol=1e-3)
    np.testing.assert_allclose(results[name]["ratio_errors_by_row"], expected, atol=1e-3)


def test_bfloat16_gives_near_weights_on_two_replicas_that_recompute_their_blocks(results):
    one, two = results["1_bfloat16"], results["2_bfloat16_checkpointed"]
    np.testing.assert_array_equal(two["weights_0"], one["weights_0"])
    step = one["weights"] - one["weights_0"]
    assert np.linalg.norm(two["weights"] - one["weights"]) <= 0.05 * np.linalg.norm(step)


@pytest.mark.parametrize("name", RUNS)
def test_rewards_are_computed_once_for_the_whole_batch(results, name):
    np.testing.assert_array_equal(results[name]["rows_of_reward_calls"], [16] * NUM_ROUNDS)


@pytest.mark.parametrize("ops", WAYS_TO_SUM)
def test_however_sums_are_made_the_steps_are_those_of_adam(results, ops):
    """Two steps of Adam in plain loops, on 0.5 |w - target|^2, whose gradient the replicas have halves of."""
    for found, (weights, target) in zip((results["2"][f"{ops}_0"], results["2"][f"{ops}_1"]), STARTS, strict=True):
        w, m, v = np.array(weights, np.float64), 0.0, 0.0
        for step in (1, 2):
            gradient = w - target
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            w = w - 0.1 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(found, w, rtol=1e-5)
    assert results["2"][f"{ops}_sum"] == 3.0  # 1 of the first replica and 2 of the second


def test_replicas_draw_different_samples_of_one_prompt(results):
    rows = results["4_in_2_parts"]["responses_to_one_prompt"]
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)
    np.testing.assert_array_equal(rows, results["1"]["responses_to_one_prompt"])


@pytest.mark.parametrize("name", ["2_top", "2_top_as_on_gpus"])
def test_A7_A8_the_top_block_alone_whitened_by_minibatch_learns_the_same_on_two_replicas(results, name):
    one, two = results["1_top"], results[name]
    np.testing.assert_array_equal(one["weights_0"], two["weights_0"])
    step = one["weights"] - one["weights_0"]
    assert np.linalg.norm(two["weights"] - one["weights"]) <= 1e-4 * np.linalg.norm(step)
    for result in (one, two):
        np.testing.assert_array_equal(result["embeddings"], one["embeddings_0"])


@pytest.mark.parametrize("name", ALL_RUNS)
def test_all_replicas_hold_the_same_weights(results, name):
    assert len(results[name]["weights_of_replicas"]) == ALL_RUNS[name][0]
    for weights in results[name]["weights_of_replicas"]:
        np.testing.assert_array_equal(weights, results[name]["weights_of_replicas"][0])


@pytest.mark.parametrize("name", RUNS)
def test_a_gradient_that_is_not_finite_on_one_replica_stops_all(results, name):
    np.testing.assert_array_equal(results[name]["weights_after_inf"], results[name]["weights_of_replicas"])
    assert results[name]["steps_taken_with_inf"] == 0.0


@pytest.mark.parametrize(("name", "messages"), [("1", 0), ("4_in_2_parts", 2)])
def test_a_minibatch_that_the_replicas_do_not_divide_is_refused(results, name, messages):
    refusals = results[name]["refusals"].tolist()
    assert len(refusals) == messages
    if messages:
        assert "ppo.num_minibatches" in refusals[0] and "is 3;" in refusals[0] and "replicas, 4," in refusals[0]
        assert "ppo.accumulation_steps" in refusals[1] and "is 1;" in refusals[1]


rows_of_reward_calls = []


@functools.cache
def strategy_of(num_replicas):
    """One for all runs of a process: the sums of a second one would take the first one's numbers, and its shapes."""
    from tfppo.training.replicas import make_strategy

    return make_strategy(num_replicas)


@functools.cache
def make_collector(num_replicas, mirrored, mlp_value_head):
    """A policy, its weights, and what collects its rollouts, traced once for all runs of a process that it serves."""
    import keras
    import tensorflow as tf
    from computations import build_collector

    from tfppo.config import RewardConfig, SamplingConfig
    from tfppo.data.tokenizer import Tokenizer
    from tfppo.models.language_model import LanguageModel
    from tfppo.models.policy import Policy
    from tfppo.rewards.scoring import TextReward

    strategy = strategy_of(num_replicas) if mirrored else tf.distribute.get_strategy()
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    sizes = dict(num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=16)
    with strategy.scope():
        language_model = LanguageModel(40, **sizes)
        language_model.set_weights([w + rng.normal(0.0, 0.3, w.shape) for w in language_model.get_weights()])
        policy = Policy(language_model, mlp_value_head=mlp_value_head)
        ref_model = LanguageModel(40, **sizes)
        ref_model.set_weights([w + rng.normal(0.0, 0.02, w.shape) for w in language_model.get_weights()])

    sampling = SamplingConfig(response_length=5, temperature=0.7, stop_at_eos=True, jit_compile=False)

    def reward_fn(prompts, responses):
        rows_of_reward_calls.append(len(responses))
        return [sum(ord(character) % 3 for character in response) / 4 for response in responses]

    reward, rewards = RewardConfig(whiten=True), [TextReward("toy", reward_fn)]
    collector = build_collector(
        policy, ref_model, sampling, reward, tokenizer=Tokenizer([]), rewards=rewards, strategy=strategy
    )
    return strategy, policy, policy.get_weights(), reward, collector


def train(num_replicas, num_rounds, *, dtype=None, padding=0, mirrored=True, on_gpu=False, **changes):
    """Rounds of collecting and updating; everything that the tests compare, by name.

    Args:
        padding: on the right of every response, before the update; mirrored: under MirroredStrategy;
            on_gpu: with an engine as for GPUs.
        changes: of PpoConfig.
    """
    import tensorflow as tf
    from computations import build_learner
    from config_cases import ORIGINAL

    from tfppo.config import PpoConfig
    from tfppo.data.prompts import Prompts
    from tfppo.errors import UserError
    from tfppo.ops.seeds import seed_for

    mlp_value_head = changes.get("value_head") == "mlp"
    strategy, policy, start, reward, collector = make_collector(num_replicas, mirrored, mlp_value_head)
    policy.set_weights(start)
    rng = np.random.default_rng(1)
    settings = dict(rollout_batch_size=16, total_episodes=48, learning_rate=1e-2, max_grad_norm=0.1, jit_compile=False)
    config = PpoConfig(**{**ORIGINAL, **settings, "ppo_epochs": 2, "num_minibatches": 2, **changes})
    config.validate()
    language_model = policy.language_model

    learner = build_learner(policy, config, reward, strategy, temperature=0.7, dtype=dtype, on_gpu=on_gpu)
    optimizer_start = [variable.numpy() for variable in learner.optimizer.variables]

    def padded(rollout):
        fields = ("response_ids", "response_mask", "logprobs", "values", "ref_logprobs")
        return rollout._replace(**{name: tf.pad(getattr(rollout, name), [[0, 0], [0, padding]]) for name in fields})

    def flat_weights():
        return np.concatenate([weight.ravel() for weight in policy.get_weights()])

    def embeddings():
        return np.concatenate([variable.numpy().ravel() for variable in language_model.trunk.embeddings()])

    def weights_of_replicas():
        parts = [strategy.experimental_local_results(variable.value) for variable in policy.variables]
        return np.stack([np.concatenate([part[i].numpy().ravel() for part in parts]) for i in range(num_replicas)])

    one_prompt = Prompts(tf.fill([16, 4], 5), tf.ones([16, 4], tf.int32))
    samples = collector.sampler(one_prompt, seed_for(0, "sample"))
    saved, history = {"weights_0": flat_weights(), "responses_to_one_prompt": samples.response_ids.numpy()}, []
    saved["embeddings_0"] = embeddings()
    coefs = tf.constant(0.1), tf.constant(1.0)  # of the KL penalty and of the policy's loss
    lengths = np.array([4, 1, 3, 2] * 4)
    mask = (np.arange(4) >= 4 - lengths[:, None]).astype(np.int32)
    rows_of_reward_calls.clear()
    for number in range(num_rounds):
        prompt_ids = rng.integers(2, 40, [16, 4]).astype(np.int32) * mask
        prompts = Prompts(tf.constant(prompt_ids), tf.constant(mask))
        rollout = collector.collect(prompts, seed_for(0, "sample", number)).rollout
        statistics = learner.update(padded(rollout), seed_for(0, "shuffle", number), *coefs)
        history.append({name: float(value) for name, value in statistics.items()})
        saved |= {f"{name}_{number}": value.numpy() for name, value in rollout._asdict().items()}
    saved |= {name: np.array([statistics[name] for statistics in history]) for name in history[0]}
    saved["rows_of_reward_calls"] = np.array(rows_of_reward_calls)
    saved |= {"weights": flat_weights(), "embeddings": embeddings(), "weights_of_replicas": weights_of_replicas()}
    if num_rounds == 1:  # of what is learnt in other ways the rest is not compared
        return saved

    # A score of one row that is not finite spoils the whitening of the rollout: no step may be taken anywhere.
    scores = tf.tensor_scatter_nd_update(rollout.scores, [[15]], [np.inf])
    statistics = learner.update(padded(rollout._replace(scores=scores)), seed_for(0, "shuffle", 9), *coefs)
    saved["steps_taken_with_inf"] = statistics["policy/steps_taken"].numpy()
    saved["weights_after_inf"] = weights_of_replicas()

    policy.set_weights(start)
    rollout, errors = collector.collect(prompts, seed_for(0, "sample", 0)).rollout, []
    for row in range(16):
        off = rollout._replace(logprobs=tf.tensor_scatter_nd_add(rollout.logprobs, [[row, 0]], [-0.5]))
        errors.append(learner.update(padded(off), seed_for(0, "shuffle"), *coefs)["policy/first_ratio_error"].numpy())
        policy.set_weights(start)
    saved["ratio_errors_by_row"] = np.array(errors)

    refusals = []
    for changes in (dict(rollout_batch_size=6, num_minibatches=2), dict(num_minibatches=4, accumulation_steps=4)):
        try:
            build_learner(policy, PpoConfig(**{**settings, **changes}), reward, strategy)
        except UserError as error:
            refusals.append(str(error))
    saved["refusals"] = np.array(refusals, dtype=str)

    # One update of numbers that are the same whatever was sampled.
    policy.set_weights(start)
    for variable, value in zip(learner.optimizer.variables, optimizer_start, strict=True):
        variable.assign(value)
    shape = rollout.response_mask.shape
    numbers = {name: rng.normal(-2.0, 1.0, shape) for name in ("logprobs", "values", "ref_logprobs")}
    numbers |= {"scores": rng.normal(size=16), "response_mask": np.arange(shape[1]) < rng.integers(1, 6, [16, 1])}
    fixed = {name: tf.constant(value, tf.float32) for name, value in numbers.items()}
    ids = tf.constant(rng.integers(2, 40, shape), tf.int32)
    learner.update(padded(rollout._replace(response_ids=ids, **fixed)), seed_for(0, "shuffle"), *coefs)
    saved["weights_of_one_update"] = flat_weights()
    return saved


def steps_by_each_way_to_sum():
    """Two optimizer steps on two replicas for each of WAYS_TO_SUM: variables and summed statistics."""
    from tfppo.training.replicas import make_strategy

    found = {}
    for ops in WAYS_TO_SUM:
        strategy = strategy_of(2) if ops == "auto" else make_strategy(2, ops)
        total, *variables = two_steps(strategy)
        found[f"{ops}_sum"] = total
        found |= {f"{ops}_{number}": variable for number, variable in enumerate(variables)}
    return found


def two_steps(strategy):
    """The summed statistics of the second step, and the variables after it."""
    import keras
    import tensorflow as tf

    from tfppo.training.optimization import make_optimizer, optimize

    with strategy.scope():
        variables = [keras.Variable(start) for start, _ in STARTS]
        numbers = dict(learning_rate=0.1, beta_1=0.9, beta_2=0.999, epsilon=1e-8, weight_decay=0.0)
        optimizer = make_optimizer("adamw", variables, **numbers)

    def half_of_the_gradient():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        pairs = zip(variables, STARTS, strict=True)
        gradients = [0.5 * (tf.convert_to_tensor(variable) - target) for variable, (_, target) in pairs]
        return gradients, tf.cast(replica, tf.float32) + 1.0

    def step(number, _):
        return number + 1, optimize(strategy, optimizer, half_of_the_gradient, (), max_grad_norm=0.0)[0]

    @tf.function(autograph=False)
    def steps():
        return tf.while_loop(lambda number, _: number < 2, step, (0, 0.0))[1]

    return [steps().numpy(), *(variable.numpy() for variable in variables)]


if __name__ == "__main__":
    from conftest import run_graphs_as_traced

    run_graphs_as_traced(True)
    replicas, folder = int(sys.argv[1]), Path(sys.argv[2])
    for rounds, runs in ((NUM_ROUNDS, RUNS), (1, BFLOAT16_RUNS), (1, TOP_RUNS)):
        for run, (count, settings) in runs.items():
            if count == replicas:
                more = steps_by_each_way_to_sum() if run == "2" else {}
                np.savez(folder / f"{run}.npz", **train(count, rounds, **settings), **more)
