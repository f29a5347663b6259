"""The PPO stage: what it leaves beside the policy."""

import json

from tfppo.stages.ppo import draw_run


def test_a_run_is_drawn_and_one_without_a_record_is_not(tmp_path):
    """A finished run whose record is gone still ends well: its policy is whole."""
    draw_run(tmp_path)
    assert not list(tmp_path.iterdir())
    rows = [{"step": step, "objective/score": 0.1 * step, "objective/kl": 1.0 * step} for step in (1, 2)]
    (tmp_path / "ppo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_run(tmp_path)
    assert (tmp_path / "reward_over_kl.png").read_bytes().startswith(b"\x89PNG")
