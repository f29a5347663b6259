"""What TensorBoard shows of a PPO run first.

Its Time Series page opens with the first two groups by name: `charts`, which repeats the figures to watch, and
`evaluation`, those of held-out prompts. Training and evaluation are two runs (`ppo`, `ppo_evaluation`) with the same
tags in `charts`, so that both are lines of one chart.
"""

from tfppo.training.tensorboard import Layout

# Shown under this tag, too: that scalar. A run has those of its own.
OVERVIEW = {
    "charts/score": "objective/score",
    "charts/kl": "objective/kl",
    "charts/rlhf_reward": "objective/rlhf_reward",
    "charts/length": "response/length",
    "charts/ratio": "policy/ratio",
    "charts/clip_fraction": "policy/clip_fraction",
}
OVERVIEW_OF_EVALUATION = {
    "charts/score": "evaluation/score",
    "charts/kl": "evaluation/kl",
    "charts/rlhf_reward": "evaluation/rlhf_reward",
    "charts/length": "evaluation/length",
}
# The page Custom Scalars: charts that compare several figures.
LAYOUT: Layout = {
    "What the policy gains": {
        "score, in training and on held-out prompts": ("objective/score", "evaluation/score"),
        "KL to the reference (nats a response)": ("objective/kl", "evaluation/kl"),
        "score minus the KL penalty": ("objective/rlhf_reward", "evaluation/rlhf_reward"),
        "response length (tokens)": ("response/length", "evaluation/length"),
    },
    "How the update goes": {
        "probability ratio": ("policy/ratio",),
        "share clipped": ("policy/clip_fraction", "value/clip_fraction"),
        "approximate KL of an update": ("policy/approx_kl",),
        "losses": ("loss/policy", "loss/value", "loss/total"),
    },
    "Where the seconds go": {
        "seconds": ("time/rollout", "time/update", "time/evaluation"),
    },
}
