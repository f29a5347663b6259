"""Evaluation while PPO trains: its figures against plain loops, when it is due, and which policy is kept."""

import functools
import json
import re

import keras
import numpy as np
import pytest
from computations import build_collector

from tfppo.config import EvaluationConfig, RewardConfig, SamplingConfig
from tfppo.data import report
from tfppo.data.prompts import PromptSet, Trajectory
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.models.folder import copy_language_model, load_policy
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops.seeds import seed_for
from tfppo.ppo.held_out import Best, HeldOut
from tfppo.rewards.scoring import TextReward
from tfppo.training.replicas import make_strategy

EOS, BATCH, RESPONSE, PROMPTS, KL_COEF = 1, 8, 6, 12, 0.25


@functools.cache
def make_collector():
    """A collector of a policy that differs from its reference; its reward counts letters, and notes its calls."""
    calls, numbers = [], []

    def letters(prompts, responses, number):
        calls.append((prompts, responses))
        numbers.extend(number)
        return [float(len(response)) for response in responses]

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    ref_model = LanguageModel(258, 1, 2, 8, 16, 16)
    ref_model.set_weights([w + rng.normal(0.0, 0.3, w.shape) for w in ref_model.get_weights()])
    # EOS where the states are on average: some responses stop.
    mean = ref_model.trunk.final_norm.beta.numpy()
    embedding = ref_model.trunk.token_embedding.numpy()
    embedding[EOS] = 4.0 * mean / np.square(mean).sum()
    ref_model.trunk.token_embedding.assign(embedding)
    policy = Policy(copy_language_model(ref_model, "float32"))
    policy.set_weights([w + rng.normal(0.0, 0.1, w.shape) for w in policy.get_weights()])
    collector = build_collector(
        policy,
        ref_model,
        SamplingConfig(response_length=RESPONSE, stop_at_eos=True, jit_compile=False, native=False),
        RewardConfig(),
        tokenizer=Tokenizer([]),
        rewards=[TextReward("letters", letters)],
        strategy=make_strategy(1),
    )
    return collector, calls, numbers


def make_held_out(folder, collector=None, **changes):
    config = EvaluationConfig(**{"every": 2, "num_prompts_in_training": PROMPTS, **changes})
    config.validate()
    trajectories = [Trajectory([EOS, 2 + n % 5, 7 + n // 5], [EOS], {"number": n}) for n in range(20)]
    prompts = PromptSet(trajectories, 0, 4, seed=0)
    collector = collector or make_collector()[0]
    return HeldOut(config, collector, prompts, folder, batch_size=BATCH, kl_coef=KL_COEF, seed=5)


def scripted(folder, figures, **changes):
    """Evaluations whose score and KL are given, one pair after the other."""
    held_out, script = make_held_out(folder, **changes), iter(figures)

    def measure():
        score, kl = next(script)
        return {"evaluation/score": score, "evaluation/kl": kl}, [("prompt", "response", "score")]

    held_out.measure = measure
    return held_out


def fresh(held_out):
    held_out.open(0, held_out.state)
    return held_out


def about(folder):
    return json.loads((folder / "policy_best" / "about.json").read_text())


def rows(folder):
    return [json.loads(line) for line in (folder / "ppo_evaluation.jsonl").read_text().splitlines()]


def log_softmax(logits):
    logits = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_the_figures_are_those_of_plain_loops_over_the_samples(tmp_path):
    collector, calls, numbers = make_collector()
    held_out = make_held_out(tmp_path)
    calls.clear()
    numbers.clear()
    figures, table = held_out.measure()
    assert [len(responses) for _, responses in calls] == [BATCH, PROMPTS - BATCH]  # no copy is scored, nor paid for
    asked = [prompt for prompts, _ in calls for prompt in prompts]
    assert len(set(asked)) == PROMPTS  # each once
    tokenizer = collector.tokenizer
    assert asked == [tokenizer.decode([2 + n % 5, 7 + n // 5]) for n in numbers]  # the column of the same row

    policy, ref_model = collector.sampler.policy, collector.ref_model
    scores, kls, lengths, stops = [], [], [], []
    for number, (batch, _) in enumerate(held_out.prompts.batches(BATCH)):
        real = len(batch.prompt_ids)
        whole = type(batch)(*(np.resize(part.numpy(), [BATCH, 4]) for part in batch))
        drawn = collector.sampler(
            type(batch)(*map(keras.ops.convert_to_tensor, whole)), seed_for(5, "held-out", number)
        )
        arguments = *whole, drawn.response_ids, drawn.response_mask
        models = policy.language_model, ref_model
        states = (model.trunk.response_states(*arguments) for model in models)
        logits, ref_logits = (model.logits(own).numpy() for model, own in zip(models, states, strict=True))
        for row in range(real):
            ids = drawn.response_ids[row].numpy().tolist()
            length = ids.index(EOS) + 1 if EOS in ids else RESPONSE
            kl = 0.0
            for t in range(length):
                kl += log_softmax(logits[row, t])[ids[t]] - log_softmax(ref_logits[row, t])[ids[t]]
            kls.append(kl)
            lengths.append(length)
            stops.append(EOS in ids)
    scores = [len(response) for _, responses in calls for response in responses]
    assert 0 < np.mean(stops) < 1 and np.std(kls) > 0.01  # what would show nothing does not count
    np.testing.assert_allclose(figures["evaluation/score"], np.mean(scores), rtol=1e-6)
    np.testing.assert_allclose(figures["evaluation/kl"], np.mean(kls), rtol=1e-4)
    np.testing.assert_allclose(figures["evaluation/length"], np.mean(lengths), rtol=1e-6)
    np.testing.assert_allclose(figures["evaluation/stopped"], np.mean(stops), rtol=1e-6)
    assert figures["evaluation/prompts"] == PROMPTS
    expected = np.mean(scores) - KL_COEF * np.mean(kls)
    np.testing.assert_allclose(figures["evaluation/rlhf_reward"], expected, rtol=1e-4)
    assert table[0] == ("prompt", "response", "score") and len(table) == 1 + 4
    assert table[1] == (calls[0][0][0], calls[0][1][0], float(scores[0]))


def test_each_time_the_same_prompts_and_numbers(tmp_path):
    held_out = make_held_out(tmp_path)
    assert held_out.measure() == held_out.measure()


def test_it_is_due_at_the_start_at_every_second_iteration_and_at_the_end(tmp_path):
    held_out = fresh(scripted(tmp_path, [(float(n), -0.001) for n in range(9)]))
    lines = [held_out(done, finished=done == 5) for done in range(6)]
    held_out.close()
    assert [done for done, said in enumerate(lines) if said] == [0, 2, 4, 5]
    assert [(row["step"], row["evaluation/score"]) for row in rows(tmp_path)] == [
        (0, 0.0),
        (2, 1.0),
        (4, 2.0),
        (5, 3.0),
    ]
    assert lines[5] == ["held-out prompts after 5 iterations: score 3.000, KL 0.00; policy_best is this one"]


@pytest.mark.parametrize(
    ("given", "wanted", "warning"),
    [
        (31, None, "held-out prompts: 31, fewer than 32: .*; give more data\n"),
        (40, 31, "held-out prompts: 31, fewer than 32: .*; raise evaluation.num_prompts_in_training\n"),
        (40, 32, ""),
    ],
)
def test_few_prompts_are_warned_of_once_with_the_remedy(tmp_path, capsys, monkeypatch, given, wanted, warning):
    monkeypatch.setattr(report, "_told", set())
    config = EvaluationConfig(num_prompts_in_training=wanted)
    prompts = PromptSet([Trajectory([EOS, 5 + n], [EOS]) for n in range(given)], 0, 2, seed=0)
    for _ in range(2):
        fresh(HeldOut(config, make_collector()[0], prompts, tmp_path, batch_size=64, kl_coef=KL_COEF, seed=5)).close()
    assert re.fullmatch(warning, capsys.readouterr().out)


@pytest.mark.parametrize("off", [{"every": 0}, {"prompts": None}])
def test_without_prompts_or_a_period_nothing_is_measured_or_written(tmp_path, off):
    config = EvaluationConfig(every=off.get("every", 2))
    prompts = off.get("prompts", PromptSet([Trajectory([EOS, 5], [EOS])], 0, 4, seed=0))
    held_out = HeldOut(config, make_collector()[0], prompts, tmp_path, batch_size=BATCH, kl_coef=KL_COEF, seed=5)
    fresh(held_out)
    assert [held_out(done, finished=done == 4) for done in range(5)] == [[]] * 5
    held_out.close()
    assert list(tmp_path.iterdir()) == []


# Scores 1, 3, 2 at KL 0, 10, 1: minus 0.25 a nat these are worth 1, 0.5, 1.75.
@pytest.mark.parametrize(("by", "expected"), [("score", 2), ("rlhf_reward", 4)])
def test_the_best_by_the_named_figure_is_kept(tmp_path, by, expected):
    held_out = fresh(scripted(tmp_path, [(1.0, 0.0), (3.0, 10.0), (2.0, 1.0)], best_by=by))
    policy = held_out.collector.sampler.policy
    start, weights = policy.get_weights(), {}
    try:
        for done in (0, 2, 4):
            policy.set_weights([w + 0.125 * done for w in start])
            weights[done] = policy.get_weights()
            (line,) = held_out(done, finished=False)
    finally:
        policy.set_weights(start)
    held_out.close()
    assert about(tmp_path)["iteration"] == expected == held_out.best.iteration and about(tmp_path)["best_by"] == by
    kept, _ = load_policy(tmp_path / "policy_best")
    for mine, theirs in zip(kept.get_weights(), weights[expected], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert line.endswith("policy_best is this one" if expected == 4 else "policy_best is that after 2 iterations")


def test_equal_figures_keep_the_earlier_policy_and_no_number_is_never_the_best(tmp_path):
    nan = float("nan")
    held_out = fresh(scripted(tmp_path, [(1.0, nan), (1.0, 0.0), (1.0, 0.0), (2.0, nan)]))
    best = []
    for done in (0, 2, 4, 6):
        held_out(done, finished=False)
        best.append(held_out.best.iteration)
    held_out.close()
    assert best == [0, 2, 2, 2]  # the first one there is, whatever it is


def test_a_resumed_run_knows_the_best_so_far(tmp_path):
    first = fresh(scripted(tmp_path, [(1.0, 0.0), (3.0, 1.0)]))
    for done in (0, 2):
        first(done, finished=False)
    first.close()
    again = scripted(tmp_path, [(2.0, 0.0), (4.0, 0.0)])
    again.open(3, first.state)
    assert again.best == Best(2, 3.0, 1.0)
    again(4, finished=False)
    assert about(tmp_path)["iteration"] == 2
    again(6, finished=False)
    again.close()
    assert about(tmp_path)["iteration"] == 6 and [row["step"] for row in rows(tmp_path)] == [0, 2, 4, 6]


def test_what_a_killed_process_kept_too_early_is_not_taken_for_the_best(tmp_path):
    """The policy of iteration 4 is kept, and the process killed before its checkpoint: iteration 2 is the last one."""
    killed = fresh(scripted(tmp_path, [(1.0, 0.0), (3.0, 0.0), (5.0, 0.0)]))
    states = {}
    for done in (0, 2, 4):
        killed(done, finished=False)
        states[done] = killed.state
    killed.close()
    # The policy at hand is the best one: it is kept again.
    again = scripted(tmp_path, [])
    again.open(2, states[2])
    again.close()
    assert about(tmp_path)["iteration"] == 2 and again.best == Best(2, 3.0, 0.0)
    # It is not: whatever comes next is better than a policy that is gone.
    again = scripted(tmp_path, [(0.5, 0.0)])
    again.open(3, states[0])
    again(4, finished=False)
    again.close()
    assert about(tmp_path)["iteration"] == 4 and about(tmp_path)["score"] == 0.5


def test_a_run_that_was_killed_before_its_first_checkpoint_measures_the_start_once(tmp_path):
    for _ in range(2):
        held_out = fresh(scripted(tmp_path, [(1.0, 0.0)]))
        held_out(0, finished=False)
        held_out.close()
    assert [row["step"] for row in rows(tmp_path)] == [0]


def test_what_a_reward_that_erred_left_out_is_measured_on_resuming(tmp_path):
    first = fresh(scripted(tmp_path, [(1.0, 0.0)]))
    first(0, finished=False)
    with pytest.raises(StopIteration):  # as a reward may, after two iterations
        first(2, finished=False)
    first.close()
    again = scripted(tmp_path, [(2.0, 0.0)])
    again.open(2, first.state)
    for _ in range(2):
        again(2, finished=False)
    again.close()
    assert [(row["step"], row["evaluation/score"]) for row in rows(tmp_path)] == [(0, 1.0), (2, 2.0)]


def test_a_reward_that_errs_is_told(tmp_path):
    collector, *_ = make_collector()
    held_out = fresh(make_held_out(tmp_path))
    right, collector.rewards = collector.rewards, [TextReward("wrong", lambda prompts, responses: [])]
    try:
        with pytest.raises(UserError, match="reward wrong returned 0 scores for 8 responses"):
            held_out(0, finished=False)
    finally:
        collector.rewards = right
        held_out.close()
