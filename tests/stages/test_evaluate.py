"""What an evaluation says of its reward functions."""

import json

from tfppo.config import Config
from tfppo.stages.evaluate import measured_rewards

VADER, SHORT = "tfppo.rewards.vader:vader_sentiment", "my_reward.py:short"


def test_it_names_the_reward_functions_and_those_of_the_training_where_they_are_others(tmp_path):
    config = Config()
    assert measured_rewards(config, tmp_path) == [f"reward functions measured: {VADER}"]  # nothing is known of others
    (tmp_path / "config.json").write_text(json.dumps({"seed": 1, "reward": {"functions": [SHORT]}}))
    measured, other = measured_rewards(config, tmp_path)
    assert measured == f"reward functions measured: {VADER}"
    assert other == (
        f"the run was trained with other reward functions: {SHORT}; to measure those, "
        f"--config.reward.functions=\"('{SHORT}',)\""
    )
    config.reward.functions = (SHORT,)
    assert measured_rewards(config, tmp_path) == [f"reward functions measured: {SHORT}"]
