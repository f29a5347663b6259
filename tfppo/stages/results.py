"""What a training run came to, in a line, from the metrics that it has written."""

from collections.abc import Mapping
from pathlib import Path

from tfppo.training.metrics import read_metrics, shown_perplexity


def ppo_result(folder: Path) -> str:
    """Score before and after PPO, and the distance that it took: on held-out prompts, where these were looked at.

    Else those of the first and the last iteration: the first one samples from the policy as it starts.
    """
    rows = read_metrics(folder / "ppo.jsonl")
    if not rows:
        return "no iteration is on record"
    held_out = read_metrics(folder / "ppo_evaluation.jsonl")
    if len(held_out) > 1:
        first, last = held_out[0], held_out[-1]
        count = f"{last['evaluation/prompts']:.0f} " if "evaluation/prompts" in last else ""  # of an older version
        return (
            f"score on {count}held-out prompts {first['evaluation/score']:z.3f} before PPO, "
            f"{last['evaluation/score']:z.3f} after {last['step']} iterations; "
            f"KL {last['evaluation/kl']:z.1f} nats a response"
        )
    first, last = rows[0], rows[-1]
    return (
        f"score {first['objective/score']:z.3f} in iteration {first['step']}, {last['objective/score']:z.3f} in "
        f"{last['step']}; KL {last['objective/kl']:z.1f} nats a response"
    )


def evaluation_result(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """What two columns of figures on the same prompts say: the scores, and the distance between the models."""
    return (
        f"score {before['reward']:z.3f} before PPO, {after['reward']:z.3f} after; KL {after['kl']:z.1f} nats a response"
    )


def language_model_result(folder: Path) -> str:
    """The held-out perplexity of the model that is kept, the best of WORKDIR/lm_training.jsonl."""
    rows = _with(read_metrics(folder / "lm_training.jsonl"), "lm/held_out_loss")
    if not rows:
        return "no held-out perplexity is on record"
    best = min(rows, key=lambda row: row["lm/held_out_loss"])
    return (
        f"held-out perplexity {best['lm/held_out_perplexity']:.1f} a token, "
        f"{shown_perplexity(best['lm/held_out_word_perplexity'])} a word, after {best['step']} steps"
    )


def reward_model_result(folder: Path) -> str:
    """The held-out figures of the reward model, the last ones of WORKDIR/reward_training.jsonl."""
    rows = _with(read_metrics(folder / "reward_training.jsonl"), "reward_model/held_out_accuracy")
    if not rows:
        return "no held-out accuracy is on record"
    last = rows[-1]
    return (
        f"held-out accuracy {last['reward_model/held_out_accuracy']:.3f}, "
        f"loss {last['reward_model/held_out_loss']:.3f}, after {last['step']} steps"
    )


def _with(rows, tag):
    return [row for row in rows if tag in row]
