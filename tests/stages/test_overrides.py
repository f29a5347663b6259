"""--config and its settings before absl reads them: names of configs, and none for what may be None."""

import pytest
from binaries import ROOT

from tfppo.stages.overrides import (
    estimator_first,
    resolve_config,
    shipped_configs,
    take_nones,
    unknown_flag,
    wrong_type,
)


@pytest.mark.parametrize(
    "argv",
    [["--config.ppo.value_clip_range=none"], ["-config.ppo.value_clip_range=None"]],
    ids=" ".join,
)
def test_none_for_a_number_that_may_be_none(argv):
    rest, nones = take_nones(["tool", "--config.seed=1", *argv, "--config.ppo.kl_coef=none", "--workdir=none"])
    assert nones == [("ppo", "value_clip_range")]
    # What may not be None is left for its own error; and what is no field, too.
    assert rest == ["tool", "--config.seed=1", "--config.ppo.kl_coef=none", "--workdir=none"]


@pytest.mark.parametrize("later", [["--config.reward.clip=5"], ["--config.reward.clip", "5"]], ids=" ".join)
def test_the_last_value_of_a_setting_counts_also_after_none(later):
    none = "--config.reward.clip=none"
    assert take_nones(["tool", none, *later]) == (["tool", *later], [])
    assert take_nones(["tool", *later, none, "--config.reward.scale=2"])[1] == [("reward", "clip")]


def test_the_configs_that_come_along():
    assert shipped_configs() == {path.stem: path for path in (ROOT / "configs").glob("*.py")}


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["--config=trl"], ["--config={trl}"]),
        (["-config=trl"], ["-config={trl}"]),
        (["--config", "trl", "--workdir", "x"], ["--config", "{trl}", "--workdir", "x"]),
        (["--config={trl}"], ["--config={trl}"]),
        (["--config.seed=1"], ["--config.seed=1"]),
    ],
    ids=str,
)
def test_a_config_goes_by_its_name_or_its_path(typed, read):
    trl = str(ROOT / "configs" / "trl.py")
    argv, file = resolve_config(["tool", *(word.format(trl=trl) for word in typed)])
    assert argv == ["tool", *(word.format(trl=trl) for word in read)]
    assert file == (None if typed == ["--config.seed=1"] else trl)


def test_the_estimator_is_assigned_before_what_else_is_given():
    argv = ["tool", "--config=a.py", "--config.ppo.group_size=16", "--workdir=w", "--config.ppo.estimator=grpo"]
    assert estimator_first(argv) == [*argv[:2], argv[4], *argv[2:4]]
    assert estimator_first(argv[:4]) == argv[:4]
    # Also where name and value are two arguments.
    assert estimator_first([*argv[:4], "--config.ppo.estimator", "grpo", "--x"]) == [
        *(*argv[:2], argv[4], *argv[2:4]),
        "--x",
    ]
    assert estimator_first(["tool", "--config.ppo.estimator"]) == ["tool", "--config.ppo.estimator"]  # absl tells that


def test_a_flag_that_is_the_name_of_settings():
    assert unknown_flag("seed") == "--seed is not a flag; did you mean --config.seed?"
    assert unknown_flag("source").endswith("mean --config.data.source or --config.reward_model.source?")
    assert unknown_flag("wrkdir") == ""


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ("flag --config.seed=a: invalid literal", "--config.seed is 'a'; it must be a whole number"),
        (
            "flag --config.ppo.target_score=x: could not",
            "--config.ppo.target_score is 'x'; it must be a number, or none",
        ),
        ("flag --config.reward.weights=x: malformed",) * 2,
        ("flag --model=x: wrong",) * 2,
    ],
)
def test_a_value_of_the_wrong_type_in_plain_words(message, plain):
    assert wrong_type(message) == plain
