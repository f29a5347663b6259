"""The line that a training run ends with."""

import json

import pytest

from tfppo.stages.results import language_model_result, ppo_result


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def training_row(step, score):
    return {"step": step, "objective/score": score, "objective/kl": 2.0}


def held_out_row(step, score, kl):
    return {"step": step, "evaluation/score": score, "evaluation/kl": kl}


def test_scores_of_held_out_prompts_are_preferred(tmp_path):
    assert ppo_result(tmp_path) == "no iteration is on record"
    write(tmp_path / "ppo.jsonl", training_row(1, 0.25), training_row(2, 0.5), training_row(3, 0.75))
    in_training = "score 0.250 in iteration 1, 0.750 in 3; KL 2.0 nats a response"
    assert ppo_result(tmp_path) == in_training
    write(tmp_path / "ppo_evaluation.jsonl", held_out_row(0, 0.125, 0.0))
    assert ppo_result(tmp_path) == in_training  # nothing to compare with
    write(tmp_path / "ppo_evaluation.jsonl", held_out_row(0, 0.125, 0.0), held_out_row(3, 0.5, 1.25))
    assert ppo_result(tmp_path) == (
        "score on held-out prompts 0.125 before PPO, 0.500 after 3 iterations; KL 1.2 nats a response"
    )


def test_it_says_on_how_many_held_out_prompts(tmp_path):
    write(tmp_path / "ppo.jsonl", training_row(1, 0.25))
    held_out = [{**held_out_row(step, score, 1.0), "evaluation/prompts": 7.0} for step, score in ((0, 0.125), (1, 0.5))]
    write(tmp_path / "ppo_evaluation.jsonl", *held_out)
    assert ppo_result(tmp_path).startswith("score on 7 held-out prompts 0.125 before PPO, 0.500 after 1 iterations; ")


def test_a_kl_that_rounds_to_zero_has_no_sign(tmp_path):
    write(tmp_path / "ppo.jsonl", {**training_row(1, 0.25), "objective/kl": -0.01})
    assert ppo_result(tmp_path).endswith("KL 0.0 nats a response")
    write(tmp_path / "ppo_evaluation.jsonl", held_out_row(0, 0.125, 0.0), held_out_row(3, 0.5, -0.01))
    assert ppo_result(tmp_path).endswith("KL 0.0 nats a response")


@pytest.mark.parametrize(("a_word", "shown"), [(1.44, "1.4"), (99.9, "99.9"), (2500.4, "2500")])
def test_small_perplexities_have_a_decimal(tmp_path, a_word, shown):
    row = {"step": 5, "lm/held_out_loss": 0.25, "lm/held_out_perplexity": 1.28, "lm/held_out_word_perplexity": a_word}
    write(tmp_path / "lm_training.jsonl", row)
    assert language_model_result(tmp_path) == f"held-out perplexity 1.3 a token, {shown} a word, after 5 steps"
