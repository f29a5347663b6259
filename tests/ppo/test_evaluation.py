"""Evaluation of few prompts, and its tables."""

import json
import math

import keras
import numpy as np
from computations import engines_of

from tfppo.config import Config, RewardConfig, SamplingConfig
from tfppo.data.prompts import PromptSet
from tfppo.data.tokenizer import Tokenizer
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ppo.evaluation import (
    Evaluation,
    evaluate,
    figure_rows,
    format_figures,
    format_samples,
    sample_rows,
    write_evaluation,
)
from tfppo.rewards.scoring import TextReward
from tfppo.training.replicas import make_strategy


def test_one_prompt_has_figures_and_no_standard_error(tmp_path):
    keras.utils.set_random_seed(0)
    model = LanguageModel(258, 1, 2, 8, 16, 16)
    config = Config(sampling=SamplingConfig(response_length=4, jit_compile=False, native=False))
    evaluation = evaluate(
        Policy(model),
        model,
        PromptSet([([1, 40], [1])], 0, 3, seed=0),
        config.sampling,
        engines=engines_of(config),
        tokenizer=Tokenizer([]),
        rewards=[TextReward("two", lambda prompts, responses: [2.0] * len(responses))],
        reward=RewardConfig(),
        strategy=make_strategy(1),
        seed=0,
        batch_size=4,
    )
    figures = evaluation.figures
    assert figures["prompts"] == 1 and figures["reward"] == 2.0 and figures["kl"] == 0.0 and figures["length"] == 4.0
    assert all(math.isfinite(value) for value in figures.values())
    assert not any(name.endswith("standard_error") for name in figures)
    write_evaluation(tmp_path / "evaluation.json", figures)
    assert json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=lambda name: 1 / 0) == figures


def test_a_figure_that_one_column_lacks_is_a_dash():
    columns = {"before": {"reward": 0.123456, "kl": 0.0}, "after": {"reward": 2.0, "perplexity": 17.0}}
    rows = [("", "before", "after"), ("reward", "0.1235", "2"), ("kl", "0", "-"), ("perplexity", "-", "17")]
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
