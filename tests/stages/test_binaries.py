"""The quickstart at toy size, end to end, and the other binaries on what it leaves."""

import json
import math
import re
import shlex

import numpy as np
import pytest
import tensorflow as tf
from binaries import TINY, command, run, run_all, succeed, write_texts
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tfppo.models.folder import load_language_model

FIGURES = {
    "prompts",
    "reward",
    "reward_standard_error",
    "kl",
    "kl_standard_error",
    "distinct_1",
    "distinct_2",
    "length",
    "response_perplexity",
    "held_out_perplexity",
}
PPO_TAGS = [
    "objective/kl",
    "objective/kl_coef",
    "objective/entropy",
    "objective/score",
    "objective/rlhf_reward",
    "loss/policy",
    "loss/value",
    "loss/total",
    "policy/approx_kl",
    "policy/clip_fraction",
    "policy/entropy",
    "policy/ratio",
    "value/clip_fraction",
    "value/explained_variance",
    "value/mean",
    "response/length",
    "response/stopped",
    "time/rollout",
    "time/update",
    "time/reward",
    "time/reward_share",
]
ITERATIONS, LM_STEPS = 4, 12


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart") / "run"


@pytest.fixture(scope="module")
def settings(workdir):
    return (
        *TINY,
        write_texts(workdir.parent / "texts.txt"),
        "ppo.learning_rate=0.01",
        "ppo.value_clip_range=none",
        "profile_steps=1",
    )


@pytest.fixture(scope="module")
def quickstart(workdir, settings):
    return succeed(run(command("quickstart", f"--workdir={workdir}", config=settings)))


@pytest.fixture(scope="module")
def evaluation(quickstart, workdir):
    return json.loads((workdir / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def served(quickstart, workdir):
    return tf.saved_model.load(str(workdir / "export" / "1"))


@pytest.fixture(scope="module")
def others(quickstart, evaluation, served, workdir, settings):
    """The other binaries, on a finished workdir; what the quickstart wrote was read before."""
    here = f"--workdir={workdir}"
    printed = {
        line.split(":", 1)[0].strip(): shlex.split(line.split(":", 1)[1]) for line in quickstart.out.splitlines()[-3:]
    }
    prompts = ("--prompt=the film", "--prompt=a story of love")
    asked = workdir.parent / "asked.jsonl"
    asked.write_text("".join(f'{{"prompt": "the {n} film"}}\n' for n in range(40)))
    elsewhere = (f"--workdir={workdir.parent / 'elsewhere'}", f"--model={workdir / 'policy_best'}")
    prompts_alone = (*settings, f"data.source={asked}", f"language_model={workdir / 'lm'}", "data.max_prompt_tokens=20")
    names = ("ppo.jsonl", "lm_training.jsonl", "policy/model.keras", "config.json")
    before = {name: (workdir / name).read_bytes() for name in names}
    first = run_all(
        {
            # Where a command was printed to be typed next, it is that one.
            "generate": [*printed["try it"], *prompts],
            "again": [*printed["try it"], *prompts],
            "other seed": command("generate", here, *prompts, config=(*settings, "seed=1")),
            "before": command("generate", here, f"--model={workdir / 'lm'}", *prompts, config=settings),
            # What only reads a finished run leaves its configuration as it is.
            "evaluate": [*printed["measure it"], "--config.evaluation.num_samples=3"],
            "export": command("export", here, config=settings),
            "the best": [*printed["try it"], "--model=policy_best", *prompts],
            "prompts alone": command("evaluate", *elsewhere, config=prompts_alone),
        }
    )
    evaluated = json.loads((workdir / "evaluation.json").read_text())
    assert (workdir / "config.json").read_bytes() == before["config.json"]
    quickstart_again = run(command("quickstart", here, config=settings), fresh=False)
    return {**first, "evaluated": evaluated, "quickstart": quickstart_again, "files before": before}


def test_quickstart_goes_through_its_stages(quickstart):
    stages = ("1/5 language model", "2/5 PPO", "3/5 evaluation", "4/5 export", "5/5 the SavedModel", "] done")
    places = [quickstart.out.index(stage) for stage in stages]
    assert places == sorted(places)
    built = "building the C++ operations for this processor, once: up to a minute\n"
    assert quickstart.raw.replace(built, "") == ""  # neither warnings, nor TensorFlow's notes, nor a bar


def test_its_progress_is_a_line_an_iteration(quickstart):
    assert "language model: the first step compiles" in quickstart.out
    lines = re.findall(r"^PPO: iteration (\d)/4, score -?\d\.\d{3}, kl -?\d+\.\d\d, ", quickstart.out, re.MULTILINE)
    assert lines == ["1", "2", "3", "4"]
    assert quickstart.out.index("PPO: the first iteration compiles") < quickstart.out.index("PPO: iteration 1/4")


def test_it_ends_with_its_result_and_the_next_commands(quickstart, evaluation, workdir):
    before, after = evaluation["before PPO"], evaluation["after PPO"]
    result, done, *commands = quickstart.out.splitlines()[-5:]
    assert result.startswith(f"result: score {before['reward']:.3f} before PPO, {after['reward']:.3f} after; KL ")
    assert re.fullmatch(r"done in (\d+ min )?\d+ s; what next:", done)
    names = [line.split(":", 1)[0].strip() for line in commands]
    assert names == ["measure it", "try it", "look at the curves"]  # it has exported
    assert commands[-1].endswith(f"tensorboard --logdir={workdir}")


def test_one_step_of_each_training_is_in_a_profile(quickstart, workdir):
    profiles = workdir.glob("*/plugins/profile/*/*.xplane.pb")
    assert sorted(path.relative_to(workdir).parts[0] for path in profiles) == ["lm_training", "ppo"]


def test_the_config_is_kept(quickstart, workdir):
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["hidden_dim"] == 16 and config["ppo"]["learning_rate"] == 0.01
    assert config["ppo"]["value_clip_range"] is None  # said with =none
    assert config["sampling"]["stop_at_eos"] is True  # decided: these texts end


def test_evaluation_figures(evaluation):
    assert list(evaluation) == ["before PPO", "after PPO"]
    for figures in evaluation.values():
        assert set(figures) == FIGURES
        assert all(math.isfinite(value) for value in figures.values())
        assert figures["prompts"] == 16 and 1 <= figures["length"] <= 8.0
        assert -1 <= figures["reward"] <= 1
        assert 0 < figures["distinct_1"] <= 1 and 0 < figures["distinct_2"] <= 1
        assert 1 < figures["response_perplexity"] < 1000
    assert evaluation["before PPO"]["kl"] == 0.0
    assert evaluation["after PPO"]["kl"] > 1e-4


def test_samples(quickstart, workdir):
    lines = (workdir / "samples.md").read_text().splitlines()
    assert lines[0] == "| prompt | before PPO | score | after PPO | score |"
    rows = lines[2 : lines.index("")]
    assert len(rows) == 4
    assert all(len(row.strip("|").split("|")) == 5 for row in rows)
    assert any(line.startswith("| response_perplexity |") for line in lines)


def test_picture(quickstart, workdir):
    data = (workdir / "reward_over_kl.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82") and len(data) > 5000


def test_tensorboard_logs(quickstart, workdir):
    logs = {}
    for name in ("ppo", "lm_training"):
        logs[name] = EventAccumulator(str(workdir / name), size_guidance={"tensors": 0})
        logs[name].Reload()
    assert set(PPO_TAGS) <= set(logs["ppo"].Tags()["tensors"])
    for tag in PPO_TAGS:
        assert [event.step for event in logs["ppo"].Tensors(tag)] == list(range(1, ITERATIONS + 1))
    assert [event.step for event in logs["ppo"].Tensors("samples")] == [1, 3]
    assert [event.step for event in logs["ppo"].Tensors("charts/score")] == list(range(1, ITERATIONS + 1))
    for name, tag, step in (
        ("ppo_evaluation", "charts/score", ITERATIONS),
        ("ppo/picture", "charts/reward_over_kl", ITERATIONS),
        ("evaluation", "evaluation/figures", 0),
        ("evaluation", "evaluation/samples", 0),
    ):
        run_of_name = EventAccumulator(str(workdir / name), size_guidance={"tensors": 0}).Reload()
        assert run_of_name.Tensors(tag)[-1].step == step
    assert [event.step for event in logs["lm_training"].Tensors("lm/loss")] == list(range(1, LM_STEPS + 1))
    assert [event.step for event in logs["lm_training"].Tensors("lm/held_out_perplexity")] == [6, 12]


def test_saved_model(served):
    assert set(served.signatures) == {"serving_default", "generate", "generate_seeded", "score"}
    result = served.signatures["generate"](prompt=tf.constant(["the film", ""]))
    assert result["completion"].shape == [2] and all(1 <= count <= 8 for count in result["num_tokens"].numpy())


def test_generate_repeats_itself(others):
    text = succeed(others["generate"]).out
    assert text.startswith("...|") and "\nthe film|" in text and "\na story of love|" in text
    assert succeed(others["again"]).out == text
    assert succeed(others["other seed"]).out != text
    assert succeed(others["before"]).out.startswith("the film|")


def test_the_best_policy_is_kept_and_can_be_used(others, workdir):
    about = json.loads((workdir / "policy_best" / "about.json").read_text())
    rows = [json.loads(line) for line in (workdir / "ppo_evaluation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, ITERATIONS]
    best = max(rows, key=lambda row: row["evaluation/rlhf_reward"])
    assert about["iteration"] == best["step"] and about["score"] == best["evaluation/score"]
    kept, _ = load_language_model(workdir / "policy_best")
    expected, _ = load_language_model(workdir / {0: "lm", ITERATIONS: "policy"}[about["iteration"]])
    for weight, other in zip(kept.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, other)
    text = succeed(others["the best"]).out
    assert (text == others["generate"].out) == (about["iteration"] == ITERATIONS) and "the film|" in text


def test_evaluate_works_on_prompts_alone(others, workdir):
    table = succeed(others["prompts alone"]).out
    figures = json.loads((workdir.parent / "elsewhere" / "evaluation.json").read_text())
    for column in figures.values():
        assert set(column) == FIGURES - {"held_out_perplexity"}
        assert all(math.isfinite(value) for value in column.values()) and 1 <= column["prompts"] <= 40
    assert "| reward | " in table and "| the " in table


def test_evaluate_agrees_with_the_quickstart(others, evaluation):
    table = succeed(others["evaluate"]).out
    assert others["evaluated"] == evaluation
    assert table.startswith("reward functions measured: tfppo.rewards.vader:vader_sentiment\n")
    assert "the run was trained with other" not in table
    assert all(f"| {name} | " in table for name in FIGURES)


def test_evaluate_ends_with_its_files_its_result_and_the_next_commands(others, evaluation, workdir):
    files, result, done, *commands = others["evaluate"].out.splitlines()[-6:]
    assert all(f": {workdir / name}" in files for name in ("samples.md", "evaluation.json", "evaluation"))
    before, after = evaluation["before PPO"], evaluation["after PPO"]
    assert result.startswith(f"result: score {before['reward']:.3f} before PPO, {after['reward']:.3f} after; KL ")
    names = [line.split(":", 1)[0].strip() for line in commands]
    assert done.endswith("what next:") and names == ["try it", "serve it", "look at the curves"]
    assert not any("--model" in command for command in commands)
    of_another = others["prompts alone"].out.splitlines()[-3:-1]
    assert all(f"--model={workdir / 'policy_best'}" in command for command in of_another)


def test_export_writes_the_next_version(others, workdir):
    path = workdir / "export" / "2"
    written, how, *snippet = succeed(others["export"]).out.splitlines()
    assert written == f"SavedModel: {path}" and how.endswith(":")
    assert f'    model = tf.saved_model.load("{path}")' in snippet
    assert (path / "saved_model.pb").is_file()


def test_quickstart_on_a_finished_workdir_does_not_train_again(others, workdir, evaluation):
    again = succeed(others["quickstart"])
    assert "] done" in again.out
    for name in ("ppo.jsonl", "lm_training.jsonl"):
        assert (workdir / name).read_bytes() == others["files before"][name]
    assert json.loads((workdir / "evaluation.json").read_text()) == evaluation
    assert (workdir / "export" / "3" / "saved_model.pb").is_file()
