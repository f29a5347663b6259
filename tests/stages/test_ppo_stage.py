"""The PPO stage: what it leaves beside the policy, and what is checked before it."""

import json
from types import SimpleNamespace

import pytest

from tfppo.config import Config
from tfppo.errors import UserError
from tfppo.stages.checks import check_batches
from tfppo.stages.ppo import draw_run


def test_a_run_is_drawn_and_one_without_a_record_is_not(tmp_path):
    """A finished run whose record is gone still ends well: its policy is whole."""
    draw_run(tmp_path)
    assert not list(tmp_path.iterdir())
    rows = [{"step": step, "objective/score": 0.1 * step, "objective/kl": 1.0 * step} for step in (1, 2)]
    (tmp_path / "ppo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_run(tmp_path)
    assert (tmp_path / "reward_over_kl.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("replicas", "batches", "name"),
    [
        (3, {}, "lm.batch_size is 32; the number of replicas, 3,"),
        (32, {}, "ppo.rollout_batch_size / ppo.num_minibatches / ppo.accumulation_steps is 16; .* replicas, 32,"),
        (8, {"evaluation": 12}, "evaluation.batch_size is 12; the number of replicas, 8,"),
    ],
)
def test_batches_that_the_replicas_do_not_divide_are_refused_before_anything_is_trained(replicas, batches, name):
    config = Config()
    for section, size in batches.items():
        getattr(config, section).batch_size = size
    check_batches(Config(), SimpleNamespace(num_replicas_in_sync=1))
    with pytest.raises(UserError, match=name):
        check_batches(config, SimpleNamespace(num_replicas_in_sync=replicas))
