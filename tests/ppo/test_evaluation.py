"""Evaluation of held-out prompts: in batches with seeds of their own, of few prompts, and its tables."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from computations import engines_of

from tfppo.config import Config, RewardConfig, SamplingConfig
from tfppo.data.prompts import PromptSet, Trajectory
from tfppo.data.tokenizer import Tokenizer
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops import chunks, sizes
from tfppo.ppo import evaluation
from tfppo.ppo.evaluation import (
    Evaluation,
    evaluate,
    figure_rows,
    format_figures,
    format_samples,
    sample_rows,
    write_evaluation,
)
from tfppo.ppo.types import Samples
from tfppo.rewards.scoring import TextReward
from tfppo.training.replicas import make_strategy


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
        PromptSet([Trajectory([1, 2 + n], []) for n in range(5)], 0, 4, seed=0),
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


@pytest.mark.parametrize("logits_at_once", [10**6, 5 * 40])
def test_kl_and_perplexity_are_those_of_plain_loops_also_by_chunks_of_logits(monkeypatch, logits_at_once):
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", logits_at_once)
    monkeypatch.setattr(sizes, "TILE", 1)
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(2, 40, [3, 4]).astype(np.int32), np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])

    class Drawn:
        def __init__(self, *_, **__):
            pass

        def __call__(self, prompts, seed):
            nothing = tf.zeros([3, 4])
            return Samples(tf.constant(ids), tf.constant(mask, tf.float32), nothing, nothing, tf.fill([3], False))

    monkeypatch.setattr(evaluation, "Sampler", Drawn)
    models = [LanguageModel(40, 1, 2, 8, 16, 8) for _ in range(2)]
    for model in models:
        model.set_weights([weight + rng.normal(0, 0.5, weight.shape) for weight in model.get_weights()])
    prompts = PromptSet([Trajectory([1, 2 + n], []) for n in range(3)], 0, 4, seed=0)
    result = evaluation.evaluate(
        Policy(models[0]),
        models[1],
        prompts,
        SamplingConfig(response_length=4),
        engines=(),
        tokenizer=Tokenizer([]),
        rewards=[TextReward("none", lambda prompts, responses: [0.0] * len(responses))],
        reward=RewardConfig(),
        strategy=tf.distribute.get_strategy(),
        seed=0,
        batch_size=3,
    )
    kl = nll = 0.0
    for row in range(3):
        for place in range(int(mask[row].sum())):
            read = np.array([[1, 2 + row, *ids[row, :place]]])
            logits, ref = (np.asarray(model(read))[0, -1].astype(np.float64) for model in models)
            logs, ref_logs = (each - np.log(np.exp(each).sum()) for each in (logits, ref))
            kl += (np.exp(logs) * (logs - ref_logs))[1:].sum() / 3
            nll -= ref_logs[ids[row, place]]
    np.testing.assert_allclose(result.figures["kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(result.figures["response_perplexity"], np.exp(nll / mask.sum()), rtol=1e-5)


def test_one_prompt_has_figures_and_no_standard_error(tmp_path):
    keras.utils.set_random_seed(0)
    model = LanguageModel(258, 1, 2, 8, 16, 16)
    config = Config(sampling=SamplingConfig(response_length=4, jit_compile=False, native=False))
    one = evaluate(
        Policy(model),
        model,
        PromptSet([Trajectory([1, 40], [1])], 0, 3, seed=0),
        config.sampling,
        engines=engines_of(config),
        tokenizer=Tokenizer([]),
        rewards=[TextReward("two", lambda prompts, responses: [2.0] * len(responses))],
        reward=RewardConfig(),
        strategy=make_strategy(1),
        seed=0,
        batch_size=4,
    )
    figures = one.figures
    assert figures["prompts"] == 1 and figures["reward"] == 2.0 and figures["kl"] == 0.0 and figures["length"] == 4.0
    assert all(math.isfinite(value) for value in figures.values())
    assert not any(name.endswith("standard_error") for name in figures)
    write_evaluation(tmp_path / "evaluation.json", figures)
    assert json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=lambda name: 1 / 0) == figures


def test_a_figure_that_one_column_lacks_is_a_dash():
    columns = {"before": {"reward": 0.123456, "kl": 0.0}, "after": {"reward": 2.0, "perplexity": 17.0}}
    rows = [("figure", "before", "after"), ("reward", "0.1235", "2"), ("kl", "0", "-"), ("perplexity", "-", "17")]
    assert figure_rows(columns) == rows
    assert format_figures(columns).splitlines() == [
        "| | before | after |",
        "|---|---:|---:|",
        "| reward | 0.1235 | 2 |",
        "| kl | 0 | - |",
        "| perplexity | - | 17 |",
    ]


def test_samples_stand_side_by_side_and_cannot_break_the_table():
    before = Evaluation({}, ["a|b", "c"], ["x\ny", "z"], np.array([0.5, -1.0]))
    after = Evaluation({}, ["a|b", "c"], ["u\u2028v", "w"], np.array([1.0, 2.0]))
    columns = {"before": before, "after": after}
    assert sample_rows(columns, rows=1) == [
        ("prompt", "before", "score", "after", "score"),
        ("a|b", "x\ny", "+0.50", "u\u2028v", "+1.00"),
    ]
    assert format_samples(columns, rows=9).splitlines() == [
        "| prompt | before | score | after | score |",
        "|---|---|---:|---|---:|",
        "| a/b | x y | +0.50 | u v | +1.00 |",
        "| c | z | -1.00 | w | +2.00 |",
    ]
